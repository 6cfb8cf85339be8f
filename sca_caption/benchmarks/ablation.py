"""The paper's ablation: every form of attention on one to three layers, trained with several seeds.

Runs train.py for each form, number of layers and seed, and scores the captions of the splits val and test. Finished
runs are not repeated: give the same command again to continue after an interruption.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from sca_caption.cli.parser import Parser, program
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.errors import UserError

EPILOG = """\
Flags after -- are passed to train.py. {layers} in the name of FILE.h5 is replaced by the number of layers, because stored
features of a frozen CNN depend on it:

  python preprocess.py --dataset flickr8k --encoding features --layers 1 --output data/features1.h5     # and 2, and 3
  python -m sca_caption.benchmarks.ablation --data data/features{layers}.h5 -- --epochs 8 --finetune-backbone-at -1
"""
FORMS = ("S", "C", "S-C", "C-S")
COLUMNS = (("val", "CIDEr"), ("val", "BLEU-4"), ("test", "CIDEr"), ("test", "BLEU-4"))
Scores = dict[str, dict[str, float]]  # split -> metric -> 0 to 100


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.ablation", description=__doc__, epilog=EPILOG)
    p.add_argument(
        "--data", required=True, metavar="FILE.h5", help="data file with the splits train, val and test"
    )
    p.add_argument("--attention", nargs="+", choices=FORMS, default=FORMS, help="(default: all four)")
    p.add_argument("--layers", nargs="+", type=int, default=(1, 2, 3), metavar="N", help="(default: 1 2 3)")
    p.add_argument("--seeds", nargs="+", type=int, default=(0, 1), metavar="N", help="(default: 0 1)")
    p.add_argument(
        "--output", type=Path, default=Path("runs/ablation"), metavar="DIR", help="(default: %(default)s)"
    )
    p.add_argument("training", nargs="*", metavar="-- FLAG", help="flags of train.py")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    scores: dict[tuple[int, str], list[Scores]] = {}
    for seed in arguments.seeds:
        for layers in arguments.layers:
            data = Path(arguments.data.replace("{layers}", str(layers)))
            for form in arguments.attention:
                run = arguments.output / f"{form}-{layers}-{seed}"
                flags = f"--attention {form} --layers {layers} --seed {seed}".split()
                scores.setdefault((layers, form), []).append(
                    scores_of_run(run, data, [*flags, *arguments.training])
                )
    print(table(scores))
    return 0


def scores_of_run(run: Path, data: Path, flags: Sequence[str]) -> Scores:
    """Scores of the model that train.py makes with these flags; read from the run's scores.json if that exists.

    Raises UserError before training if the data file has no images in the split val or test.
    """
    file = run / "scores.json"
    if not file.exists():
        from sca_caption.cli import train
        from sca_caption.datasets.hdf5_reader import CaptionDataset
        from sca_caption.runtime.distributed import SINGLE_PROCESS

        empty = [split for split in ("val", "test") if not len(CaptionDataset(data).indices(split))]
        if empty:
            raise UserError(
                f"{data} has no images in split {empty[0]}, which the table needs; preprocess a data set that has some"
            )
        settings = ["--resume"] if (run / "last.pt").exists() else flags
        train.run(
            ["--dataset", "ablation", "--data", str(data), "--output", str(run), *settings], SINGLE_PROCESS
        )
        scores = {split: score_captions(run / "best.pt", data, split) for split in ("val", "test")}
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def score_captions(checkpoint: Path, path: Path, split: str) -> dict[str, float]:
    """CIDEr and BLEU-4 of the captions that caption.py finds for a split."""
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.evaluation.bleu import bleu, bleu_statistics
    from sca_caption.evaluation.cider import cider
    from sca_caption.evaluation.ngrams import count_ngrams
    from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
    from sca_caption.inference.batching import reader
    from sca_caption.inference.captioning import CaptionPipeline

    data, pipeline = CaptionDataset(path), CaptionPipeline.load(checkpoint)
    rows = data.indices(split).tolist()
    read = reader(data, pipeline.networks, pipeline.transform)
    captions = [result.captions[0].text for result in pipeline.stream(rows, read)]
    candidates = [count_ngrams(ptb_tokenize(caption)) for caption in captions]
    references = [[count_ngrams(ptb_tokenize(text)) for text in data.references(row)] for row in rows]
    bleu_4 = float(bleu(bleu_statistics(candidates, references).sum(0))[3])
    return {"CIDEr": cider(candidates, references)[0], "BLEU-4": bleu_4}


def table(scores: dict[tuple[int, str], list[Scores]]) -> str:
    """A Markdown table of the mean over seeds, with the lowest and the highest score in brackets."""
    lines = [
        "| layers | attention | " + " | ".join(f"{split} {metric}" for split, metric in COLUMNS) + " |",
        "| ---: | --- |" + " ---: |" * len(COLUMNS),
    ]
    for (layers, form), runs in scores.items():
        cells = []
        for split, metric in COLUMNS:
            values = [run[split][metric] for run in runs]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {layers} | {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
