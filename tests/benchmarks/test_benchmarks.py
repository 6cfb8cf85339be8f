"""Benchmarks at tiny sizes: counts are right, and the implementations that are compared compute the same."""

import re
import sys

import pytest
import torch

from sca_caption.benchmarks import attention, growth, memory, recipes, training
from sca_caption.benchmarks.parts import set_defaults
from sca_caption.config import ClassifierConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.training.batches import Batch
from tests.helpers.made_photos import message, write
from tests.helpers.tables import rows
from tests.helpers.training_runs import source


def test_the_table_of_blocks(capsys):
    flags = [
        "--backbone",
        "lenet",
        "--image-size",
        "32",
        "--attention",
        "se",
        "bam:combine=add",
        "--rounds",
        "1",
    ]
    assert attention.main([*flags, "--batch-size", "2", "--device", "cpu"]) == 0
    plain, se, bam = rows(capsys.readouterr().out)
    assert (plain[0], se[0], bam[0]) == ("none", "se", "bam:combine=add")
    assert plain[3:] == ["1.00", "1.00"] and all(float(ratio) > 0 for ratio in se[3:] + bam[3:])
    parameters = [int(row[1].replace(",", "")) for row in (plain, se, bam)]
    assert parameters[0] < min(parameters[1:])
    assert attention.main(["--attention", "cbma"]) == 2
    assert "'cbma'" in capsys.readouterr().err


def test_multiply_adds_equal_those_of_the_layers():
    model = attention.build_classifier(ClassifierConfig("lenet", image_size=32, classes=("a", "b")))
    counted = []

    def note(module, inputs, output):
        fan_in = module.weight[0].numel()  # of a convolution's or a linear layer's one output
        counted.append(output.numel() * fan_in)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(note)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert attention.multiply_adds(model, images) == sum(counted) > 0


@pytest.mark.slow
def test_the_two_formulas_of_channel_attention_agree(capsys):
    size = ["--batch-size", "32", "--channels", "256", "--width", "64", "--rounds", "1", "--device", "cpu"]
    if sys.platform != "linux":
        pytest.skip("peak memory is measured on Linux only")
    assert attention.main(["channel", *size]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in rows(out)] == ["plain", "interpolated"]
    differences = [float(x) for x in re.findall(r"\d\.?\d*e-\d+", out.splitlines()[-1])]
    assert len(differences) == 5 and max(differences) < 1e-3 and differences[0] < 1e-5


def test_each_part_has_its_own_flags_and_defaults(capsys):
    parts = {name: attention.parser().parse_args([name, "--rounds", "2"]) for name in attention.DEFAULTS}
    for arguments in parts.values():
        set_defaults(arguments, attention.DEFAULTS)
    assert (parts["blocks"].batch_size, parts["channel"].batch_size) == (16, 64)
    assert parts["blocks"].rounds == parts["channel"].rounds == 2
    assert attention.main(["--channels", "64"]) == 2
    assert attention.main(["channel", "--classes", "64"]) == 2
    wrong, other = capsys.readouterr().err.splitlines()
    assert wrong.startswith("error: --channels ") and other.startswith("error: --classes ")


def _nothing(size: int) -> tuple[int]:
    return (size,)


def _hold(size: int) -> None:
    torch.zeros(size, dtype=torch.uint8).fill_(1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured on Linux only")
def test_peak_memory_is_the_memory_allocated():
    assert memory.peak_growth(_nothing, _hold, 100_000_000) == pytest.approx(100e6, rel=0.05)


def test_other_systems_than_linux_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "RESET", tmp_path / "missing")
    assert "Linux" in message(lambda: memory.peak_growth(_nothing, _hold, 1))


@pytest.mark.slow
def test_plain_and_optimised_training_steps_agree():
    model, batch = training.build("resnet18", "1", 2, 3, 40)
    gradients = []
    for way in training.WAYS:
        loss = training.step(model, batch, way)
        parts = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        gradients.append((loss, parts))
    (plain, wanted), (ours, found) = gradients
    assert ours == pytest.approx(plain, rel=1e-6) and found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(
            value, wanted[name], atol=1e-4 * wanted[name].abs().max().item(), rtol=1e-3
        )
    work = [training.multiply_adds(model, batch, way) for way in training.WAYS]
    trunk = training.multiply_adds(
        model, Batch(batch.images[:1], batch.captions[:1, :1], torch.zeros(1).long()), "ours"
    )
    assert work[0] - work[1] > 4 * 2 * 0.9 * 1.5e9 and trunk < work[1]  # the CNN, of 1.8 G, runs 8 times less


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured on Linux only")
def test_growth_prints_a_row_per_point(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, "AXES", {"images": (2, 4), "beams": (1, 2)})
    small = {"images": 2, "pixels": 32**2, "words": 2, "beams": 2, "vocabulary": 20, "batch": 2}
    monkeypatch.setattr(growth, "FIXED", small)
    assert growth.main(["--output", str(tmp_path / "x.svg"), "--sizes", "images"]) == 0
    out = rows(capsys.readouterr().out)
    assert [row[:2] for row in out] == [["images", "2"], ["images", "4"]]
    assert out[1][3].startswith("2 times the size, ")
    assert "seconds" in (tmp_path / "x.svg").read_text()
    pipeline, pixels, count = growth.prepare(small | {"beams": 1, "words": 3}, toy=True)
    assert count == 2
    for result in pipeline.stream(range(2), lambda number: pixels[number]):
        assert len(result.captions[0].text.split()) == 3 and not result.captions[0].finished
    assert growth.main(["--output", str(tmp_path / "x.svg"), "--sizes", "colours"]) == 2
    assert "'colours'" in capsys.readouterr().err
    assert growth.main(["--output", str(tmp_path / "x.txt")]) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured on Linux only")
def test_recipes_are_timed_one_after_the_other(tmp_path, capsys):
    data = tmp_path / "squares.h5"
    write(source(), data, encoding="raw")
    images = len(CaptionDataset(data).indices("train"))
    small = 'task = "caption"\nbackbone = "resnet18"\nlayers = ["1"]\nbatch_size = 2\n'
    frozen, learning = tmp_path / "frozen.toml", tmp_path / "learning.toml"
    frozen.write_text(small + "cache_features = true\naugment = false\nfinetune_backbone_at = -1\n")
    learning.write_text('task = "caption"\nbatch_size = 2\nfinetune_backbone_at = 0\nema = 0.9\n')
    given = [str(frozen), str(learning), "--data", str(data)]
    assert recipes.main([*given, "--steps", "2"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == [str(frozen), str(learning)]
    for _, rate, waiting, cnn, ratio, per_epoch, *_ in found:
        assert int(per_epoch) == images and 0 <= float(waiting.rstrip("%")) <= 100 and float(cnn) > 0
        assert ratio == "" or float(ratio) == pytest.approx(float(rate) / float(cnn), rel=0.1)
    assert [row[4] == "" for row in found] == [True, False]
    # A step from stored maps spares the CNN, which the other recipe runs forward and backward.
    assert float(found[0][1]) > float(found[1][1])
    assert recipes.main([*given, "--steps", "0"]) == 2
