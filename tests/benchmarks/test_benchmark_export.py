"""The benchmark of exports at a tiny size: its rows, how many captions agree, and a score that can be worked out."""

import re

import pytest

from tests.helpers.made_photos import change, dataset, message, write
from tests.helpers.tables import rows

pytest.importorskip("onnxscript", reason="writing ONNX needs onnx and onnxscript")
pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")

from sca_caption.benchmarks import export
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from tests.helpers.thorough import thorough

pytestmark = pytest.mark.slow


@thorough
def test_every_way_has_its_rows(photos, tiny_checkpoint, tmp_path, capsys):
    data = tmp_path / "made.h5"
    source = dataset(12)
    for row in range(4):
        change(source, row, split="val")
    write(source, data)
    flags = [str(photos[0].parent), "--checkpoint", str(tiny_checkpoint), "--rounds", "1"]
    assert export.main([*flags, "--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"ONNX, float32: 7 of 7 captions are PyTorch's, scores at most \de-\d+ apart", out)
    assert re.search(r"ONNX, int8: \d of 7 captions are PyTorch's", out)
    _, _, times, _, scores = (rows(part) for part in out.split("\n\n"))
    assert [row[:2] for row in times] == [["1", "1"], ["1", "7"], ["2", "1"], ["2", "7"]]
    assert all(float(cell) > 0 for row in times for cell in row[2:])
    held = CaptionDataset(data)
    indices = held.indices("val").tolist()
    pipeline = CaptionPipeline.load(tiny_checkpoint, device="cpu")
    captions = [result.captions[0].text for result in pipeline.stream(indices, read=held.image)]
    cider = Cider([[ptb_tokenize(text) for text in held.references(index)] for index in indices])
    wanted = f"{cider.score([ptb_tokenize(caption) for caption in captions])[0]:.2f}"
    assert [row[1] for row in scores[:2]] == [wanted, wanted] and scores[0][2] == scores[1][2] == "+0.00"

    write(dataset(12), tmp_path / "large.h5", transform=Transform(40))
    assert export.main([*flags, "--data", str(tmp_path / "large.h5")]) == 2
    assert "the model takes images of 32 x 32 pixels" in capsys.readouterr().err
    write(dataset(3), tmp_path / "few.h5")
    assert "CIDEr needs two" in message(lambda: export.scored({}, CaptionDataset(tmp_path / "few.h5"), None))
