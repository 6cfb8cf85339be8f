"""Teach a captioner what people would agree on: `python -m sca_caption fit consensus`.

Reads the train split's images and references and writes into the checkpoint a linear map that foretells, of a new image,
the words of its references and what tells them from others' (see `consensus`). Searches then rank their captions by
it too (--rerank-weight).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sca_caption import checkpoint
from sca_caption.cli.parser import Parser, program
from sca_caption.config import BATCH_SIZE
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.consensus import Consensus, fitted, powers
from sca_caption.inference.batching import in_batches, reader, stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.devices import find_device
from sca_caption.runtime.errors import UserError

RANK = 256  # of the linear map: as good as the whole on Flickr8k's dev, and smaller
RIDGE, CONTRAST = 1.0, 0.05  # chosen there too


def parser() -> Parser:
    return teaching("learn_consensus", __doc__)


def teaching(name: str, description: str) -> Parser:
    """The flags of a program that teaches a checkpoint something from a data file."""
    p = Parser(prog=f"python -m sca_caption.{name}", description=description)
    p.add_argument("checkpoint", type=Path, help="best.pt of a run, or another captioner; it is changed")
    p.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    p.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the first GPU, or the CPU)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    data, found = CaptionDataset(arguments.data), checkpoint.load(arguments.checkpoint)
    rows = data.indices("train").tolist()
    checkpoint.add_consensus(arguments.checkpoint, learnt(found, data, rows, find_device(arguments.device)))
    print(f"{arguments.checkpoint}: learnt from the references of {len(rows)} images")
    return 0


def learnt(
    found: checkpoint.Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> Consensus:
    """The consensus of people who described the images `rows` of a data file, as the checkpoint's captioner sees them."""
    words = found.vocabulary
    features, channels = seen_of(found, data, rows, device)
    captions = [
        [words.encode(word for word in ptb_tokenize(text) if word in words) for text in data.references(row)]
        for row in rows
    ]
    return fitted(features, captions, len(words), RANK, RIDGE, CONTRAST, channels)


def seen_of(
    found: checkpoint.Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> tuple[Tensor, list[int]]:
    """`consensus.powers` of the images `rows` (N, C), and how many of them are of which network.

    Raises UserError for an image that cannot be read.
    """
    pipeline = CaptionPipeline(found, device=str(device))
    read = reader(data, pipeline.models, found.transform)

    def features_of(contents: list) -> Tensor:
        batch = stack(contents)
        batch = batch.to(device) if isinstance(batch, Tensor) else tuple(each.to(device) for each in batch)
        (first, *_), seen = pipeline.encode(batch)
        return powers(first, seen).cpu()

    features = []
    with torch.inference_mode():
        answers = in_batches(rows, read, features_of, BATCH_SIZE)
        for _, each in tqdm(answers, total=len(rows), unit="image", disable=None, dynamic_ncols=True):
            if isinstance(each, UserError):
                raise each
            features.append(each)
    stacked, own = torch.stack(features), found.model.backbone.channels[0]
    return stacked, [count for count in (own, stacked.shape[1] - own) if count]


if __name__ == "__main__":
    raise SystemExit(main())
