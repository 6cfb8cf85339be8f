"""Score a classifier on labelled images: top-1 with its 95% interval, top-5, and its confusions."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_caption import __version__
from sca_caption.cli.flags import add_batch_size, add_device
from sca_caption.cli.parser import Parser
from sca_caption.evaluation.classification_metrics import (
    CONFIDENCE,
    Scores,
    most_confused,
    score,
    worst_classes,
)
from sca_caption.runtime.atomic_files import check_writable
from sca_caption.runtime.distributed import Processes
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import check_figure

if TYPE_CHECKING:
    import numpy as np

    from sca_caption.checkpoint import Checkpoint
    from sca_caption.datasets.classification import LabelledImages
    from sca_caption.inference.classification import ClassificationPipeline

BATCH_SIZE = 64
EPILOG = """\
examples:
  python evaluate.py --task classify --checkpoint runs/cifar10-resnet18-cbam/best.pt
  python evaluate.py --task classify --checkpoint F --confusion confusion.png --output scores.json
  python evaluate.py --task classify --checkpoint F --dataset folder --root photos --split val

The data are those that the checkpoint was trained on, unless --dataset or --root says otherwise. A data set without
a test split of its own (caltech101, imagenet) is tested on its validation images. The interval is Wilson's.
"""


def parser() -> Parser:
    p = Parser(
        prog="evaluate.py --task classify",
        usage="evaluate.py --task classify --checkpoint FILE [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    p.add_argument("--task", choices=("classify",), default="classify", help=argparse.SUPPRESS)
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt of a classifier")
    p.add_argument("--dataset", metavar="NAME", help="other data: cifar10, cifar100, caltech101, imagenet, folder or "
                   "shapes (see data/README.md)")  # fmt: skip
    p.add_argument("--root", type=Path, metavar="DIR", help="where its files are (default: data/NAME)")
    p.add_argument("--split", choices=("train", "val", "test"), default="test", help="(default: %(default)s)")
    p.add_argument("--output", type=Path, metavar="FILE.json", help="write scores and every prediction there")
    p.add_argument(
        "--confusion", type=Path, metavar="FILE", help="draw the confusion matrix: .png, .svg or .pdf"
    )
    p.add_argument("--markdown", action="store_true", help="print a row for a README instead")
    add_device(p)
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    add_batch_size(p, BATCH_SIZE)
    return p


def run(argv: list[str] | None, processes: Processes) -> int:
    """Score the classifier that the flags name. Raises UserError for a mistake in them."""
    arguments = parser().parse_args(argv)
    if arguments.output:
        check_writable(arguments.output)
    if arguments.confusion:
        check_figure(arguments.confusion, "--confusion")

    import numpy as np

    from sca_caption import checkpoint as checkpoints
    from sca_caption.inference.classification import ClassificationPipeline

    checkpoint = checkpoints.load(arguments.checkpoint, task="classify")
    data, source = open_data(arguments, checkpoint)
    model = ClassificationPipeline(checkpoint, device=arguments.device, batch_size=arguments.batch_size)
    rows = data.indices(arguments.split).tolist()
    logits = np.stack(processes.gather(predict(model, data, processes.shard(rows), arguments.quiet)))
    if not processes.is_main:
        return 0
    scores = score(logits, data.labels[rows], data.classes)
    provenance = {
        "checkpoint": str(arguments.checkpoint),
        "checkpoint_sha256": hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest(),
        **source,
        "split": arguments.split,
        "splits": data.splits_note,
        "images": scores.images,
    }
    if arguments.output:
        from sca_caption.cli.reports import write

        write(arguments.output, results(scores, data, rows, logits, provenance))
    if arguments.confusion:
        from sca_caption.evaluation.confusion_plot import save_confusion

        save_confusion(arguments.confusion, scores, title(provenance))
    print(markdown(scores, provenance) if arguments.markdown else report(scores, provenance))
    return 0


def open_data(
    arguments: argparse.Namespace, checkpoint: "Checkpoint"
) -> "tuple[LabelledImages, dict[str, Any]]":
    """The data set of the flags, else the one that the checkpoint was trained on, and where it is from.

    Raises UserError if neither names one, and if its classes are not the model's.
    """
    from sca_caption.datasets.classification import open_dataset

    trained_on = checkpoint.metrics.get("data") or checkpoint.training.get("data") or {}
    name = arguments.dataset or trained_on.get("dataset")
    if not name:
        raise UserError(f"{arguments.checkpoint} has no record of its training data; give --dataset NAME")
    same = name == trained_on.get("dataset")
    root = arguments.root or (trained_on.get("root") if same else None)
    split = (trained_on.get("per_class_split") if same else None) or {}
    data = open_dataset(name, root, split.get("seed", 0), split.get("per_class", 0))
    classes = checkpoint.classifier.config.classes
    if data.classes != tuple(classes):
        raise UserError(
            f"{name} has other classes ({listed(data.classes)}) than {arguments.checkpoint} ({listed(classes)}); "
            "give the --dataset and --root that it was trained for"
        )
    source = {"dataset": name, "root": str(root) if root else None}
    return data, source | ({"per_class_split": split} if split else {})


def listed(classes: "Sequence[str]") -> str:
    from sca_caption.datasets.image_folders import first_few

    return f"{len(classes)}: {first_few(list(classes))}"


def predict(
    model: "ClassificationPipeline", data: "LabelledImages", rows: "Sequence[int]", quiet: bool = False
) -> "list[np.ndarray]":
    """Logits (K,) of each image in `rows`; quiet: without a progress bar.

    Raises UserError with the path of an image that cannot be read.
    """
    from PIL import Image
    from tqdm import tqdm

    from sca_caption.images import fit

    def read(row: int) -> "np.ndarray":
        return fit(Image.fromarray(data.pixels(row)), model.transform)

    found = []
    for _, logits in tqdm(
        model.stream(rows, read), total=len(rows), unit="image", disable=quiet or None, dynamic_ncols=True
    ):
        if isinstance(logits, UserError):
            raise logits
        found.append(logits)
    return found


def results(
    scores: "Scores",
    data: "LabelledImages",
    rows: "Sequence[int]",
    logits: "np.ndarray",
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The contents of the file --output, as JSON values. Accuracies are 0 to 100, probabilities 0 to 1."""
    import torch

    from sca_caption.cli.reports import rounded

    probability, predicted = torch.from_numpy(logits).softmax(1).max(1)
    images = [
        {
            "file_name": data.file_name(row),
            "class": data.classes[data.labels[row]],
            "predicted": data.classes[k],
            "probability": round(p, 4),
        }
        for row, k, p in zip(rows, predicted.tolist(), probability.tolist(), strict=True)
    ]
    return {
        "metrics": rounded(scores.metrics()),
        "confidence": {"top-1": rounded(scores.interval)},
        "per_class": rounded(scores.per_class),
        "classes": list(data.classes),
        "confusion": scores.confusion.tolist(),
        "provenance": {**provenance, "sca_caption": __version__},
        "images": images,
    }


def title(provenance: dict) -> str:
    return f"{provenance['checkpoint']} on {provenance['dataset']} {provenance['split']}"


def report(scores: Scores, provenance: dict) -> str:
    low, high = scores.interval
    lines = [
        f"{title(provenance)}: {scores.images} images, {len(scores.per_class)} classes",
        "",
        f"top-1           {scores.top1:6.2f}   {CONFIDENCE}% interval {low:.2f} to {high:.2f}",
        f"top-5           {scores.top5:6.2f}",
        f"mean per class  {scores.mean_per_class:6.2f}",
    ]
    worst, confused = worst_classes(scores), most_confused(scores)
    if worst:
        lines += ["", "hardest classes"] + [f"{right:8.2f}   {name}" for name, right in worst]
    if confused:
        lines += ["", "most frequent mistakes"]
        lines += [f"{count:8d}   {truth} taken for {guess}" for truth, guess, count in confused]
    return "\n".join(lines)


def markdown(scores: Scores, provenance: dict) -> str:
    """A header and a row."""
    low, high = scores.interval
    head = ["model", "images", "top-1", f"{CONFIDENCE}% interval", "top-5", "mean per class"]
    on = f"{provenance['dataset']} {provenance['split']}, {scores.images}"
    row = [provenance["checkpoint"], on, f"{scores.top1:.2f}", f"{low:.2f} to {high:.2f}", f"{scores.top5:.2f}",
           f"{scores.mean_per_class:.2f}"]  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), row))
