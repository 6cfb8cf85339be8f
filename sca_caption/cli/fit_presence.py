"""Teach a captioner which images have people, dogs and which colours: `python -m sca_caption fit presence`.

Reads the train split's images and references and writes into the checkpoint a logistic regression that foretells, of a
new image, which share of its references speaks of each of them. Captions of other things than people and dogs leave out
what too few would speak of (see `subjects`). Give it photographs of those: from Flickr8k alone it learns that there are
people where no dogs are.
"""

from collections.abc import Sequence

import torch

from sca_caption import checkpoint
from sca_caption.cli.fit_consensus import seen_of, teaching
from sca_caption.cli.parser import Parser, program
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.hallucination import FEWEST, Subjects, fitted
from sca_caption.runtime.devices import find_device
from sca_caption.runtime.errors import UserError

RIDGE = 1e-4  # ten times less or three times more is as good on MSCOCO's photographs


def parser() -> Parser:
    return teaching("learn_subjects", __doc__)


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    data, found = CaptionDataset(arguments.data), checkpoint.load(arguments.checkpoint)
    rows = data.indices("train").tolist()
    subjects = learnt(found, data, rows, find_device(arguments.device))
    if subjects is None:
        raise UserError(
            f"{arguments.data}: not {FEWEST} images whose captions speak of people, or of dogs, and {FEWEST} whose do "
            f"not; add photographs of other things"
        )
    checkpoint.add_subjects(arguments.checkpoint, subjects)
    print(
        f"{arguments.checkpoint}: learnt {', '.join(subjects.names)} from the references of {len(rows)} images"
    )
    return 0


def learnt(
    found: checkpoint.Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> Subjects | None:
    """What the references of the images `rows` of a data file speak of, as the checkpoint's captioner sees them."""
    features, channels = seen_of(found, data, rows, device)
    return fitted(features, [list(map(ptb_tokenize, data.references(row))) for row in rows], RIDGE, channels)


if __name__ == "__main__":
    raise SystemExit(main())
