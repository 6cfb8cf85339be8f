"""Training runs of a second: a data set of coloured squares, a small captioner, and `run`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from sca_caption import checkpoint
from sca_caption.config import ModelConfig, TrainConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.distributed import SINGLE_PROCESS
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.loop import train
from tests.helpers.made_photos import encoded, record

MODEL = ModelConfig(
    backbone="toy",
    layers=("block.relu", "block"),
    attention_width=6,
    embedding_size=16,
    lstm_size=24,
    dropout=0.3,
)
QUICK = TrainConfig(epochs=2, batch_size=3, workers=0, lr=0.01, finetune_backbone_at=-1)
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "cyan")


class Interruption(Exception):
    """Stands for Ctrl-C, a power cut, a time limit."""


def source(sided: bool = False) -> Source:
    """Seven training, three validation and one test image: a colour on the left and one on the right."""
    records = []
    for i, split in enumerate(["train"] * 7 + ["val"] * 3 + ["test"]):
        one, two = COLOURS[i % 7], COLOURS[(i + 3) % 7]
        image = Image.new("RGB", (32, 32), one)
        image.paste(Image.new("RGB", (16, 32), two), (16, 0))
        captions = [f"a {one} square", f"{one} and {two} squares", f"two squares , one is {two}"][: 1 + i % 3]
        if sided and i % 2:
            captions.append(("a square on the left", "the rightmost square", "a left-hand square")[i % 3])
        records.append(record(i, split, captions, encoded(image)))
    return Source("squares", "made for a test", records)


def captioner(data: CaptionDataset, **changes) -> SCACNN:
    torch.manual_seed(0)
    return SCACNN(dataclasses.replace(MODEL, **changes), len(data.vocabulary))


def reporter(stop_after: int | None) -> tuple[Callable[[str], None], list[str]]:
    """A function that collects reported lines, and the lines. It raises Interruption after epoch `stop_after`."""
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if stop_after is not None and line.startswith(f"epoch {stop_after:2}/"):
            raise Interruption

    return report, lines


def assert_equal_tensors(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name


def assert_equal_histories(found: list[dict], wanted: list[dict]) -> None:
    """The records of two runs are equal, except for their times."""
    timing = {"seconds", "images_per_second"}
    one, two = ([{k: v for k, v in r.items() if k not in timing} for r in each] for each in (found, wanted))
    assert one == two


def run(
    data: CaptionDataset,
    output: Path,
    config: TrainConfig,
    stop_after: int | None = None,
    resume=False,
    processes=SINGLE_PROCESS,
    **changes,
):
    """(history, lines said); stop_after: the run dies once that many epochs have been reported. changes: of MODEL."""
    say, lines = reporter(stop_after)
    resumed = checkpoint.load(output / "last.pt") if resume else None
    model = resumed.model if resume else captioner(data, **changes)
    return train(CaptionTask(model, data, config, processes), config, output, resumed, say), lines
