"""The Python code of docs/attention.md runs as written, and its table has every block."""

import re
import warnings

import pytest
import torch

from sca_caption.attention import BLOCKS, build, options_of
from tests.helpers.documents import ROOT, blocks

DETERMINED_BY_THE_NETWORK = {"out_channels", "stride"}
TEXT = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")


def test_the_table_has_every_block_with_its_parameters_and_options():
    rows = {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)`, .*$", TEXT, re.MULTILINE)}
    assert list(rows) == list(BLOCKS)
    for name, row in rows.items():
        count = sum(p.numel() for p in build(name, 256).parameters())
        assert f"| {count:,} |" in row, name
        listed = set(re.findall(r"`(\w+)[=`]", row))
        assert set(options_of(name)) <= listed | DETERMINED_BY_THE_NETWORK, name


@pytest.mark.slow
def test_its_code_runs(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own dependencies
        for language, content in blocks(TEXT):
            if language == "python":
                exec(content, names)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 40, 33)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), names["model"](x), rtol=1e-4, atol=1e-4)
