"""The attention blocks compared: every block trained under one recipe with several seeds, and what each costs.

Runs train.py --task classify for the plain network and each block, once per seed. The same command continues after an
interruption: finished runs are kept, an unfinished one goes on after its last complete epoch. DIR/BLOCK-SEED has the
checkpoints of a run, and epochs.json the scores of its epochs.

Prints the table, and draws it as DIR/blocks.svg. Scores are top-1 on the validation images: the mean and standard
deviation over seeds in the last epoch, and the mean of the best five epochs. p-values are those of paired comparisons
with the plain network, by Holm's method for the number of blocks (see evaluation/significance.py). Times are ratios to
the plain network, measured in turn in one run.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sca_caption.attention import BLOCKS, parse
from sca_caption.benchmarks.attention import Cost, measure_costs
from sca_caption.benchmarks.blocks_table import Row, draw, table
from sca_caption.cli import train_classifier
from sca_caption.cli.flags import add_device, make
from sca_caption.cli.parser import Parser, program
from sca_caption.config import ClassifierConfig, ClassifierTrainConfig
from sca_caption.datasets.classification import open_dataset
from sca_caption.models.networks import NETWORKS, build_network
from sca_caption.models.pretrained import pretrained_weights
from sca_caption.recipes import load_recipe
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.devices import find_device
from sca_caption.runtime.distributed import SINGLE_PROCESS
from sca_caption.runtime.errors import UserError, choice, warn
from sca_caption.runtime.figures import save_figure
from sca_caption.runtime.json_text import parse_json
from sca_caption.runtime.workers import end_with_parent

EPILOG = """\
Flags after -- are passed to train.py --task classify.

examples:
  python -m sca_caption.benchmarks.blocks --dataset caltech101 --backbone mobilenet_v2 --blocks all --seeds 3
  python -m sca_caption.benchmarks.blocks --dataset cifar10 --backbone resnet20 --jobs 2 -- --epochs 20
  python -m sca_caption.benchmarks.blocks --dataset folder --root photos --blocks se cbam bam:combine=add --seeds 5
"""
PLAIN = "none"  # the name of the network without a block
RECIPE_OF = {"caltech101": "caltech30"}  # where train.py has another default
TIMED_BATCH, TIMED_ROUNDS = 16, 5


@dataclass(frozen=True)
class Run:
    """One training: a block's specification, "" for none, with a seed, in its folder."""

    spec: str
    seed: int
    folder: Path
    flags: tuple[str, ...]  # of train.py, in every case
    settings: tuple[str, ...]  # further flags, of a new run

    @property
    def epochs_file(self) -> Path:
        return self.folder / "epochs.json"

    def scores(self) -> list[float]:
        """Top-1 of the epochs so far. Raises UserError if the file is damaged."""
        if not self.epochs_file.exists():
            return []
        try:
            found = parse_json(self.epochs_file.read_bytes())
            return [float(record["top-1"]) for record in found["epochs"]]
        except (LookupError, OSError, TypeError, ValueError) as error:
            raise UserError(f"{self.epochs_file} is damaged ({error}); remove {self.folder}") from error


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.blocks", description=__doc__, epilog=EPILOG)
    p.add_argument("--dataset", default="caltech101", metavar="NAME", help="(default: %(default)s)")
    p.add_argument("--root", type=Path, metavar="DIR", help="where its files are (default: data/NAME)")
    p.add_argument("--backbone", default="mobilenet_v2", metavar="NAME", help="(default: %(default)s)")
    p.add_argument(
        "--blocks",
        nargs="+",
        default=["all"],
        metavar="BLOCK",
        help="blocks, with options if any (default: all)",
    )
    p.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)"
    )
    p.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: %(default)s)"
    )
    p.add_argument(
        "--recipe", metavar="NAME", help="settings of training (default: caltech30, or the data set's)"
    )
    p.add_argument("--backbone-weights", metavar="FILE", help="ImageNet weights, 'download' or 'none' "
                   "(default: download with a recipe for it, else none)")  # fmt: skip
    p.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the runs (default: runs/blocks-DATASET-BACKBONE)",
    )
    add_device(p)
    p.add_argument("training", nargs="*", metavar="-- FLAG", help="flags of train.py --task classify")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    specs = list(BLOCKS) if arguments.blocks == ["all"] else list(dict.fromkeys(arguments.blocks))
    for spec in specs:
        parse(spec)  # raises UserError for a wrong name before any work
    choice(arguments.backbone, NETWORKS, "backbone")
    output = arguments.output or Path("runs") / f"blocks-{arguments.dataset}-{arguments.backbone}"
    flags, weights, model_config, train_config = settings_of(arguments)
    split = {"per_class": train_config.train_per_class} if train_config.train_per_class else {}
    data = open_dataset(arguments.dataset, arguments.root, **split)
    model_config = dataclasses.replace(model_config, classes=data.classes)
    unfit = {spec: reason for spec in specs if (reason := misfit(spec, model_config))}
    for spec, reason in unfit.items():
        warn(f"{spec} does not fit {arguments.backbone}: {reason}")
    fitting = ["", *(spec for spec in specs if spec not in unfit)]
    find_device(arguments.device)
    if weights != "none":
        pretrained_weights(arguments.backbone, None if weights == "download" else weights)
    keep_settings(output, model_config, train_config, weights)

    runs = {
        (spec, seed): make_run(spec, seed, output, arguments, flags)
        for seed in range(arguments.seeds)
        for spec in fitting
    }
    todo = [run for run in runs.values() if len(run.scores()) < train_config.epochs]
    failures = [reason for reason in train_all(todo, arguments.jobs) if reason]
    costs = costs_of(fitting, output, model_config, arguments.device)
    rows = [
        Row(spec or PLAIN, [s for seed in range(arguments.seeds)
                            if len(s := runs[spec, seed].scores()) == train_config.epochs], costs[spec])
        for spec in fitting
    ]  # fmt: skip
    trained, tested = train_config.limit or len(data.indices("train")), len(data.indices("val"))
    heading = (
        f"{arguments.backbone} on {data.name}: {trained:,} training and {tested:,} test images, "
        f"{model_config.image_size} px, {train_config.epochs} epochs"
    )
    print(f"{heading}\n\n{table(rows, tested / trained if split else 0.0, unfit)}")
    save_figure(draw(rows, heading), output / "blocks.svg", "--output")
    for reason in failures:
        warn(reason)
    return 1 if failures else 0


def settings_of(
    arguments: argparse.Namespace,
) -> tuple[list[str], str, ClassifierConfig, ClassifierTrainConfig]:
    """The flags of train.py that all runs share, the --backbone-weights among them, and the settings of all flags.

    Raises UserError for a mistake in them.
    """
    flags = ["--backbone", arguments.backbone]
    recipe = arguments.recipe or RECIPE_OF.get(arguments.dataset)
    if recipe:
        flags += ["--recipe", recipe]
    flags += arguments.training
    given = train_classifier.parser().parse_args(["--dataset", arguments.dataset, *flags])
    name = given.recipe or train_classifier.RECIPE_OF.get(arguments.dataset, "caltech")
    weights = arguments.backbone_weights or ("download" if name in train_classifier.PRETRAINED else "none")
    values = load_recipe(name, "classify")
    model, train = make(ClassifierConfig, given, values), make(ClassifierTrainConfig, given, values)
    settings = vars(given) | {"attention": model.attention, "at": model.at, "patience": train.patience}
    for name in ("attention", "at", "patience", "seed", "resume", "root", "output", "backbone_weights"):
        if settings.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {settings[name]}: the comparison sets it, or trains all blocks without; leave it out"
            )
    return [*flags, "--backbone-weights", weights], weights, model, train


def misfit(spec: str, config: ClassifierConfig) -> str:
    """Why a block does not fit the network, or ""."""
    import torch

    try:
        with torch.device("meta"):
            build_network(config.backbone, len(config.classes), stem=config.stem, attention=spec)
    except UserError as error:
        return str(error)
    return ""


def keep_settings(output: Path, model: ClassifierConfig, train: ClassifierTrainConfig, weights: str) -> None:
    """Write settings.json, or compare with the one that is there. Raises UserError if a setting differs."""
    settings: dict[str, Any] = dataclasses.asdict(model) | dataclasses.asdict(train)
    del settings["attention"], settings["at"], settings["seed"]
    settings["weights"] = Path(weights).name
    wanted = json.loads(json.dumps(settings))
    file = output / "settings.json"
    if not file.exists():
        with atomic_write(file, make_folder=True) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        return
    try:
        found = parse_json(file.read_bytes())
        differing = [name for name in wanted if name not in found or found[name] != wanted[name]]
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); choose another --output") from error
    if differing:
        name = differing[0]
        kept = str(found.get(name))[:40]
        raise UserError(
            f"{output} has a comparison with {name}={kept}, found {str(wanted[name])[:40]}; choose another --output"
        )


# ---- training --------------------------------------------------------------------------------------------------------


def make_run(spec: str, seed: int, output: Path, arguments: argparse.Namespace, flags: Sequence[str]) -> Run:
    name = spec.translate(str.maketrans(":,=+", "----")) or PLAIN
    folder = output / f"{name}-{seed}"
    common = ["--dataset", arguments.dataset, "--output", str(folder), "--device", arguments.device]
    if arguments.root:
        common += ["--root", str(arguments.root)]
    settings = [*flags, "--seed", str(seed), *(["--attention", spec] if spec else [])]
    return Run(spec, seed, folder, tuple(common), tuple(settings))


def train_all(runs: Sequence[Run], jobs: int) -> Iterator[str]:
    """Train each run, `jobs` at a time. Yields the reason why a run failed, or "", per run."""
    if jobs == 1 or len(runs) < 2:
        yield from map(train_one, runs)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context, start_worker, (threads,)) as pool:
        try:
            yield from pool.map(train_one, runs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def start_worker(threads: int) -> None:
    """Share the cores, and end with the process that started this one, even if that was killed."""
    import torch

    torch.set_num_threads(threads)
    end_with_parent()


def train_one(run: Run) -> str:
    """Train or resume a run; what train.py prints goes to stderr. Returns the reason if it fails, or ""."""

    def keep(history: list[dict]) -> None:
        found = {"block": run.spec or PLAIN, "seed": run.seed, "epochs": history}
        with atomic_write(run.epochs_file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    resumed = (run.folder / "last.pt").exists()
    more = ["--resume"] if resumed else run.settings
    try:
        with contextlib.redirect_stdout(sys.stderr):
            train_classifier.run([*run.flags, *more], SINGLE_PROCESS, keep)
    except UserError as error:
        return f"{run.folder}: {error}"
    return ""


# ---- costs -----------------------------------------------------------------------------------------------------------


def costs_of(specs: Sequence[str], output: Path, config: ClassifierConfig, device: str) -> dict[str, Cost]:
    """The costs in costs.json, or new ones of all blocks, measured together, if the file lacks any."""
    file = output / "costs.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = {spec: Cost(**cost) for spec, cost in parse_json(file.read_bytes()).items()}
        if set(specs) <= set(found):
            return found
    configs = [dataclasses.replace(config, attention=spec) for spec in specs]
    measured = measure_costs(configs, TIMED_BATCH, TIMED_ROUNDS, find_device(device))
    costs = dict(zip(specs, measured, strict=True))
    with atomic_write(file) as temporary:
        text = json.dumps({spec: dataclasses.asdict(cost) for spec, cost in costs.items()}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    return costs


if __name__ == "__main__":
    raise SystemExit(main())
