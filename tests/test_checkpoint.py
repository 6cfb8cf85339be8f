"""Checkpoints come back bit for bit, whole or not at all, and never run code."""

import dataclasses
import errno
import json
import pickle
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import average
from sca_caption.config import ModelConfig
from sca_caption.guidance.words import PredictedWords
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.training import weight_soup
from sca_caption.vocab import Vocabulary
from tests.helpers.guided_captioners import guided_checkpoint, pixels
from tests.helpers.made_photos import message
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner
from tests.helpers.toy_backbone import toy  # noqa: F401

pytestmark = pytest.mark.usefixtures("toy")
TOY = ModelConfig(
    backbone="toy", layers=("block.relu", "block"), attention_width=4, embedding_size=6, lstm_size=8
)
WORDS = ["a", "dog", "café", "l'été", "犬", "\u2028", '"']


def made(config: ModelConfig = TOY) -> Checkpoint:
    torch.manual_seed(0)
    vocabulary = Vocabulary(WORDS)
    return Checkpoint(
        SCACNN(config, len(vocabulary)),
        vocabulary,
        Transform(size=48, mode="crop"),
        metrics={"val": {"CIDEr": 54.321, "epoch": 3}},
        training={"history": [{"loss": 0.1 + 0.2}]},
        extra={
            "0.step": torch.tensor(7.0),
            "0.exp_avg": torch.randn(3, 2, 5, 5).to(memory_format=torch.channels_last),
        },
    )


def text_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["sca_caption"])


def rewrite(path, change_text=None, change_tensors=None) -> None:
    """Write the file again with its JSON or its tensors changed."""
    text, tensors = text_of(path), load_file(path)
    if change_text:
        change_text(text)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, path, {"sca_caption": json.dumps(text)})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, made())
    return path


@pytest.mark.parametrize(
    "config",
    [
        TOY,
        dataclasses.replace(
            TOY, tie_embeddings=True, attention="S", layers=("block",), dropout=0.25, pool_norm=1.5
        ),
        # A batch norm that cannot be folded, with its counter, and attention of other forms.
        ModelConfig(
            backbone="densenet121",
            layers=("features.denseblock1",),
            attention="S-C",
            attention_width=4,
            embedding_size=6,
            lstm_size=8,
        ),
    ],
    ids=["toy", "tied", "densenet121"],
)
def test_what_went_in_comes_out_bit_for_bit(config, tmp_path):
    given = made(config)
    with torch.no_grad():
        learnt = given.model.state_dict()  # without the mean and deviation of pixels
        for buffer in (value for name, value in given.model.named_buffers() if name in learnt):
            buffer.copy_(torch.rand(buffer.shape) * 9)
    path = tmp_path / "runs" / "new" / "best.pt"
    checkpoint.save(path, given)
    assert [p.name for p in path.parent.iterdir()] == ["best.pt"]
    found = checkpoint.load(str(path))

    assert found.config == config
    wanted = given.model.state_dict()
    assert found.model.state_dict().keys() == wanted.keys()
    for name, value in found.model.state_dict().items():
        assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]), name
    assert (found.model.word.weight is found.model.embedding.weight) == config.tie_embeddings
    assert found.extra.keys() == given.extra.keys()
    assert all(torch.equal(value, given.extra[name]) for name, value in found.extra.items())
    assert found.vocabulary == given.vocabulary and found.vocabulary.words[4:] == tuple(WORDS)
    assert (found.transform, found.metrics) == (Transform(48, "crop"), given.metrics)
    assert found.training == given.training
    assert not any(module.training for module in found.model.modules())

    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        logits = []
        for model in (given.model.eval(), found.model):
            logits.append(model.step(torch.tensor([1, 1]), model.start(model.encode(images)))[0])
    assert torch.equal(*logits)


def test_half_rounds_weights_to_float16_and_nothing_else(tmp_path):
    given = made()
    checkpoint.save(tmp_path / "whole", given)
    checkpoint.save(tmp_path / "half", given, dtype="float16")
    found = checkpoint.load(tmp_path / "half")
    wanted = given.model.state_dict()
    for name, value in found.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted[name].half().float()), name
    assert torch.equal(found.extra["0.exp_avg"], given.extra["0.exp_avg"])
    stored = {name: value.dtype for name, value in load_file(tmp_path / "half").items()}
    assert {dtype for name, dtype in stored.items() if name.startswith("model.")} == {torch.float16}
    weights = sum(value.numel() for value in wanted.values())
    sizes = [(tmp_path / name).stat().st_size for name in ("whole", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, abs=64)


def test_a_checkpoint_to_ship(saved, tmp_path, capsys):
    output = tmp_path / "captioner.safetensors"
    assert average.main([str(output), str(saved)]) == 0
    assert capsys.readouterr().out == f"{output}: {output.stat().st_size / 1e6:.1f} MB\n"
    found = checkpoint.load(output)
    assert (found.training, found.extra) == ({}, {})
    assert found.metrics == made().metrics
    assert {value.dtype for value in load_file(output).values()} == {torch.float16}
    assert average.main([str(output), str(tmp_path / "none.pt")]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: cannot load checkpoint {tmp_path / 'none.pt'}: no such file"
    )


def test_the_average_is_of_every_weight(saved, tmp_path, capsys):
    other = made()
    with torch.no_grad():
        for number, parameter in enumerate(other.model.parameters()):
            parameter += number
    checkpoint.save(tmp_path / "other.pt", other)
    given = [str(tmp_path / "out"), str(saved), str(tmp_path / "other.pt")]
    assert average.main([*given, "--shares", "3", "1"]) == 0
    found, wanted = checkpoint.load(tmp_path / "out"), made().model
    pairs = zip(found.model.parameters(), wanted.parameters(), strict=True)
    for number, (mean, first) in enumerate(pairs):
        assert torch.allclose(mean, first + number / 4, rtol=1e-3, atol=1e-3)
    assert found.metrics == {}  # it was never scored
    assert average.main([*given, "--shares", "1"]) == 2
    assert "--shares [1.0]: give one number per checkpoint" in capsys.readouterr().err


def test_models_that_attend_in_other_forms_share_what_both_have(tmp_path):
    for name, form in (("both", "S-C"), ("spatial", "S")):
        model = tiny_captioner(
            config=dataclasses.replace(TINY, attention=form, feature_dropout=len(name) / 10)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(len(name))
        checkpoint.save(tmp_path / name, Checkpoint(model, Vocabulary(TINY_WORDS), Transform(32)))
    found = weight_soup.average([tmp_path / "both", tmp_path / "spatial"], [2, 1])
    assert found.config.attention == "S-C"
    for name, value in found.model.named_parameters():
        wanted = 4.0 if ".channel." in name else (4.0 * 2 + 7.0) / 3
        torch.testing.assert_close(value, torch.full_like(value, wanted))
    found = weight_soup.average([tmp_path / "spatial", tmp_path / "both"], [2, 1])
    assert found.config.attention == "S" and found.model.word.bias.unique().tolist() == [6.0]
    text = message(lambda: weight_soup.average([tmp_path / "both", tmp_path / "spatial"], [0, 1]))
    assert ".channel." in text and text.endswith("give one of them a share")


def test_models_that_differ_are_not_averaged(saved, tmp_path, tiny_checkpoint):
    text = message(lambda: weight_soup.average([saved, tiny_checkpoint], [1, 1]))
    assert (
        text == f"{tiny_checkpoint} is of another model or vocabulary than {saved}; average runs of one model"
    )


def test_the_tiny_checkpoint_says_the_same_after_loading(tiny_checkpoint):
    model = tiny_captioner()
    found = checkpoint.load(tiny_checkpoint)
    assert (found.config, found.vocabulary) == (TINY, Vocabulary(TINY_WORDS))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), found.model.state_dict().values(), strict=True)
    )


def test_anyone_may_read_it_who_may_read_new_files(saved, tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


# ---- when writing fails ----------------------------------------------------------------------------------------------


def assert_untouched(saved, text: str) -> None:
    assert text.startswith(f"cannot write {saved} (")
    assert text.endswith("free space or choose another --output")
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert checkpoint.load(saved).metrics == made().metrics


def test_one_without_permission_is_not_called_damaged(saved, monkeypatch):
    """The tests' user may read every file, so the check is told otherwise."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    message(lambda: checkpoint.load(saved), "no permission", str(saved))


def test_a_full_disk_leaves_the_old_file(saved, monkeypatch):
    def fill(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fill)
    text = message(lambda: checkpoint.save(saved, made()))
    assert "No space left on device" in text
    assert_untouched(saved, text)


def test_a_limit_of_the_system_leaves_the_old_file(saved):
    """A write that truly fails in the middle, inside the library."""
    resource = pytest.importorskip("resource")
    large = made(dataclasses.replace(TOY, lstm_size=512))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        text = message(lambda: checkpoint.save(saved, large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(saved, text)


def test_an_interrupted_write_leaves_the_old_file(saved, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, made())
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "runs" / "best.pt"
    assert message(lambda: checkpoint.save(path, made())).startswith(f"cannot write {path} (")


# ---- what is no checkpoint -------------------------------------------------------------------------------------------


def test_files_that_are_not_there(tmp_path):
    message(
        lambda: checkpoint.load(tmp_path / "best.pt"), str(tmp_path / "best.pt"), "no such file", "train.py"
    )
    message(lambda: checkpoint.load(tmp_path), str(tmp_path), "a folder", "train.py")


@pytest.mark.parametrize("kept", [0, 5, 8, 100, 0.5, 0.999])
def test_cut_short(saved, kept):
    data = saved.read_bytes()
    saved.write_bytes(data[: kept if kept >= 1 or kept == 0 else int(len(data) * kept)])
    text = message(lambda: checkpoint.load(saved))
    assert text.startswith(f"{saved} is not a checkpoint of sca_caption, or it is damaged or cut short (")
    assert text.endswith("; copy or train it again")


class Malicious:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_does_not_run(saved, tmp_path):
    mark = tmp_path / "it ran"
    for save in (
        lambda: torch.save({"x": Malicious(mark)}, saved),
        lambda: saved.write_bytes(pickle.dumps(Malicious(mark))),
    ):
        save()
        with pytest.raises(UserError, match="is not a checkpoint of sca_caption"):
            checkpoint.load(saved)
        assert not mark.exists()


def test_other_files(saved):
    for data in (b"a text", b"\x08\0\0\0\0\0\0\0{}      ", b"PK\3\4" + bytes(99)):
        saved.write_bytes(data)
        assert message(lambda: checkpoint.load(saved)).startswith(f"{saved} is ")
    for metadata in (None, {"format": "pt"}, {"sca_caption": "null"}, {"sca_caption": "[1]"}):
        save_file({"x": torch.ones(2)}, saved, metadata)
        message(lambda: checkpoint.load(saved), str(saved), "not a checkpoint of sca_caption", "train.py")
    save_file({"x": torch.ones(2)}, saved, {"sca_caption": '{"format_version": 1'})
    assert "damaged" in message(lambda: checkpoint.load(saved))


def test_another_version(saved):
    rewrite(saved, lambda text: text.update(format_version=9))
    error = message(lambda: checkpoint.load(saved))
    assert str(saved) in error and "format 9" in error and "1, 2, 3" in error


# ---- guides of earlier versions --------------------------------------------------------------------------------------


def without_guides(given: Checkpoint, *names: str) -> Checkpoint:
    guides = {name: each for name, each in given.guides.items() if name not in names}
    return dataclasses.replace(given, guides=guides)


def test_earlier_formats_load_with_their_guides(tmp_path):
    """Versions 1 and 2 had each guide under a name of its own, and confidence among the metrics."""
    given = without_guides(guided_checkpoint(), "words")
    for version, dtype in ((1, "float32"), (2, "int8")):
        new, path = tmp_path / f"new{version}.pt", tmp_path / f"old{version}.pt"
        checkpoint.save(new, given, dtype)
        text, tensors = text_of(new), load_file(new)
        renamed = {
            "guides.consensus.center": "consensus.centre",
            "guides.consensus.down.weight": "consensus.narrow.weight",
            "guides.consensus.up.weight": "consensus.widen.weight",
            "guides.consensus.up.bias": "consensus.widen.bias",
            "guides.consensus.idf": "consensus.idf",
        }
        old = {}
        for key, value in tensors.items():
            scale = "scale." if key.startswith("scale.") else ""
            plain = key.removeprefix("scale.")
            old[scale + renamed.get(plain, plain)] = value
        old["subjects.classifier.bias"] = torch.zeros(2)  # the hallucination mask, which is left out
        guides = text.pop("guides")
        text |= {"format_version": version, "consensus": guides["consensus"]}
        text["subjects"] = {"channels": [64], "names": ["people", "dogs"]}
        text["metrics"] |= {
            "confidence_slope": 2.0,
            "confidence_intercept": 1.5,
            "confidence_consensus": 4.0,
        }
        save_file(old, path, {"sca_caption": json.dumps(text)})
        loaded = checkpoint.load(path)
        assert loaded.metrics == given.metrics and set(loaded.guides) == set(given.guides)
        expected, found = (CaptionPipeline.load(each).caption_batch(pixels(4)) for each in (new, path))
        assert found == expected and found[0][0].confidence is not None


REMOVED = {
    "objects": ({"first": 14, "network": "mobilenet_v2"}, {"classifier.bias": torch.zeros(1000)}),
    "presence": ({"channels": [64], "names": ["dogs"]}, {"classifier.weight": torch.ones(1, 64)}),
}


def with_removed(path, given: Checkpoint, *names: str, channels: list[int] | None = None) -> None:
    """Save a checkpoint with guides that this version no longer has. channels: of the consensus predictor's networks."""
    checkpoint.save(path, given, "int8")

    def change_text(text: dict) -> None:
        text["guides"] |= {name: REMOVED[name][0] for name in names}
        text["guides"].get("consensus", {}).update({"channels": channels} if channels else {})

    def change_tensors(tensors: dict) -> None:
        for name in names:
            tensors |= {f"guides.{name}.{key}": value for key, value in REMOVED[name][1].items()}
        tensors |= {f"scale.guides.{name}.features.weight": torch.ones(3) for name in names}

    rewrite(path, change_text, change_tensors)


@pytest.mark.parametrize(
    ("names", "channels", "left_out"),
    [
        (["presence"], None, {"presence"}),
        (["objects"], [64], {"objects"}),
        # Consensus of two networks needs the features of objects, and confidence needs its rating.
        (["objects", "presence"], [40, 24], {"objects", "presence", "consensus", "confidence"}),
    ],
)
def test_removed_guides_are_left_out_with_a_note(names, channels, left_out, tmp_path, capsys):
    """Captions are those of the model without them; a guide that is added replaces them."""
    given, path = guided_checkpoint(), tmp_path / "old.pt"
    with_removed(path, given, *names, channels=channels)
    checkpoint.save(tmp_path / "plain.pt", without_guides(given, *left_out), "int8")
    found = checkpoint.load(path)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning: ") and str(path) in warning
    assert all((name in warning) == (name in left_out) for name in (*REMOVED, "consensus", "confidence"))
    assert set(found.guides) == set(given.guides) - left_out
    expected = CaptionPipeline.load(tmp_path / "plain.pt").caption_batch(pixels(4))
    assert CaptionPipeline.load(found).caption_batch(pixels(4)) == expected
    assert capsys.readouterr().err == ""

    checkpoint.add_guide(path, "words", PredictedWords({"dogs": 0.25}))
    again = checkpoint.load(path)
    assert set(again.guides) == set(given.guides) - left_out
    assert again.guides["words"].thresholds == {"dogs": 0.25}
    assert capsys.readouterr().err == ""
    assert not [key for key in load_file(path) if any(f"guides.{name}." in key for name in left_out)]


def test_words_that_only_a_removed_guide_knew(tmp_path):
    with_removed(tmp_path / "old.pt", guided_checkpoint(), "objects")
    error = message(lambda: CaptionPipeline.load(tmp_path / "old.pt", force_words=["owl"]))
    assert "--force-words 'owl'" in error


def test_settings_of_a_newer_version(saved):
    rewrite(saved, lambda text: text["config"].update(rotary=True))
    message(lambda: checkpoint.load(saved), "unknown settings rotary", "upgrade sca_caption")


def test_guides_of_a_newer_version(saved):
    rewrite(saved, lambda text: text["guides"].update(humour={}))
    message(lambda: checkpoint.load(saved), str(saved), "unknown guides humour", "upgrade sca_caption")


@pytest.mark.parametrize(
    ("change_text", "change_tensors"),
    [
        (lambda text: text["config"].update(lstm_size=9), None),
        (lambda text: text["guides"].update(confidence={"slope": 1.0}), None),
        (lambda text: text["guides"].update(confidence={"slope": 1.0, "intercept": 0.0, "jokes": 2}), None),
        (lambda text: text["guides"].update(words={"thresholds": {"jokes": 0.1}}), None),
        (lambda text: text["words"].pop(), None),
        (lambda text: text["config"].update(attention="S"), None),
        (None, lambda tensors: tensors.pop("model.lstm.weight_hh")),
        (None, lambda tensors: tensors.pop("model.embedding.weight")),
        (
            lambda text: text["config"].update(tie_embeddings=True),
            lambda tensors: tensors.pop("model.embedding.weight"),
        ),
    ],
)
def test_weights_that_do_not_fit_the_config(saved, change_text, change_tensors):
    rewrite(saved, change_text, change_tensors)
    text = message(lambda: checkpoint.load(saved))
    assert text.startswith(f"{saved}: its weights do not fit its own config (")
