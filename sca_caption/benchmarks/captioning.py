"""Time of caption.py: for a folder of photographs, and for one photograph from the start of Python.

folder (default): the whole program, compared with its floor and with a beam search of one image at a time. The floor
decodes the same files and runs the first part of the CNN on them in batches, and does nothing else. The search of one
image at a time computes the model's equations as the paper writes them, with an image's beams as the rows of a batch;
it is timed on the first images only, without guidance. The program is timed from the start of Python to the last line
written. Floor and search run in a process that has imported everything and loaded the model.

start: `caption.py IMAGE` compared with the bare import of torch and torchvision, as whole processes in turn, after one
run of each that warms the disk's cache. The ratios are medians over rounds, of wall time and of processor time, which
other work on the machine disturbs less.

Times are measured in turn, round after round; the tables show medians over rounds.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption import images
from sca_caption.attention.sca import ConditionedAttention
from sca_caption.benchmarks.parts import set_defaults
from sca_caption.cli.parser import Parser, program
from sca_caption.config import SearchConfig, require
from sca_caption.decoding.rules import Rules, bad_endings, conjunctions, repeated_conjuncts, repeated_ngrams
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.inference.batching import in_batches, stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import BOS, EOS

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.captioning photos/
  python -m sca_caption.benchmarks.captioning photos/ --checkpoint runs/flickr8k/best.pt --rounds 5
  python -m sca_caption.benchmarks.captioning start photo.jpg
  python -m sca_caption.benchmarks.captioning start photo.jpg --imports 15    # also time per package
"""
DEFAULTS: dict[str, dict[str, object]] = {
    "folder": {"singly": 20, "rounds": 3},
    "start": {"imports": 0, "rounds": 5},
}
CAPTION = "from sca_caption.cli.caption import main; raise SystemExit(main())"
# torchvision cannot be imported directly if its build does not match torch's; the second command then works.
IMPORTS = (
    "import torch, torchvision",
    "import torch; from sca_caption.runtime.torchvision_compat import torchvision",
)
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption.benchmarks.captioning",
        usage="%(prog)s FOLDER [flags]\n       %(prog)s start IMAGE [flags]",
        description=__doc__,
        epilog=EPILOG,
    )
    p.add_argument("part", nargs="?", choices=list(DEFAULTS), default="folder", help="(default: %(default)s)")
    p.add_argument(
        "path", type=Path, metavar="PATH", help="folder of readable photographs; start: a photograph"
    )
    p.add_argument("--checkpoint", metavar="FILE", help="(default: the shipped model)")
    p.add_argument("--rounds", type=int, metavar="N", help="timings of each (default: 3; start: 5)")
    folder = p.add_argument_group("folder")
    folder.add_argument("--singly", type=int, metavar="N", help="images searched one at a time (default: 20)")
    start = p.add_argument_group("start")
    start.add_argument("--imports", type=int, metavar="N", help="list the N packages with the longest import")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    set_defaults(arguments, DEFAULTS)
    require(arguments, "rounds", arguments.rounds >= 1, "at least 1")
    if arguments.part == "start":
        report_start(arguments)
    else:
        require(arguments, "singly", arguments.singly >= 1, "at least 1")
        report_folder(arguments)
    return 0


# ---- a folder --------------------------------------------------------------------------------------------------------


def report_folder(arguments: argparse.Namespace) -> None:
    paths = images.find_images([arguments.path])
    pipeline = CaptionPipeline.load(arguments.checkpoint, device="cpu", guidance=False)
    few = paths[: arguments.singly]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "floor: decode files, first part of the CNN": (len(paths), lambda: floor(pipeline, paths)),
        "caption.py, whole program": (len(paths), lambda: whole_program(arguments)),
        "caption.py --no-guidance": (len(paths), lambda: whole_program(arguments, "--no-guidance")),
        "CaptionPipeline, loaded": (len(paths), lambda: ours(pipeline, paths)),
        "one image at a time": (len(few), lambda: [singly(pipeline, path) for path in few]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    floor(pipeline, few)  # warms up
    for _ in range(arguments.rounds):
        for name, (count, run) in ways.items():
            began = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - began) / count)
    least, whole, *_ = (statistics.median(times) for times in seconds.values())
    print(f"{len(paths)} images, beam {SearchConfig.beam_size}, {torch.get_num_threads()} threads\n")
    print("| | ms per image | times the floor | times caption.py |\n| --- | ---: | ---: | ---: |")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {1000 * median:.2f} | {median / least:.2f} | {median / whole:.2f} |")
    same = sum(a == singly(pipeline, path) for a, path in zip(ours(pipeline, few), few, strict=True))
    print(f"\none image at a time, {same} of {len(few)} captions are the same")


@torch.inference_mode()
def floor(pipeline: CaptionPipeline, paths: list[Path]) -> None:
    """Decode the files and run the first part of the CNN, in batches. Raises UserError for an unreadable file."""

    model = pipeline.model
    assert isinstance(model, TorchCaptioner)

    def encode(contents: list) -> list:
        model.encode(stack(contents))
        return contents

    read = partial(images.load, transform=pipeline.transform)
    for path, found in in_batches(paths, read, encode, pipeline.batch_size):
        if isinstance(found, UserError):
            raise UserError(f"{path} cannot be read; take it out of the folder")


def whole_program(arguments: argparse.Namespace, *options: str) -> list[str]:
    """The captions that caption.py writes."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "captions.json")
        flags = [str(arguments.path), "--device", "cpu", *options, "--output", str(output)]
        flags += ["--checkpoint", arguments.checkpoint] if arguments.checkpoint else []
        subprocess.run([sys.executable, "-c", CAPTION, *flags], check=True, stderr=subprocess.DEVNULL)
        return [entry["caption"] for entry in json.loads(output.read_text(encoding="utf-8"))]


def ours(pipeline: CaptionPipeline, paths: list[Path]) -> list[str]:
    return [result.captions[0].text for result in pipeline.stream(paths)]


# ---- a folder, one image at a time -------------------------------------------------------------------------------------


@torch.inference_mode()
def singly(pipeline: CaptionPipeline, path: Path) -> str:
    """The caption of one image, by beam search with the rules of `decoding.beam_search`."""
    search, model = pipeline.search, pipeline.sca_cnn
    rules = Rules(search.max_length, search.min_length, bad_endings=bad_endings(pipeline.vocabulary))
    joining = torch.tensor(conjunctions(pipeline.vocabulary))
    pixels = torch.from_numpy(images.load(path, pipeline.transform)).permute(2, 0, 1)[None]
    state, predictions = pipeline.model.start(pixels, pipeline.guides)
    maps = state.maps
    top = maps
    for i in range(len(model.attention) - 1):
        top = model.backbone.segment(i, top[0], top[1:])
    pooled = normalize(model, top[0].mean((2, 3)))
    hidden, cell = torch.tanh(model.initial_hidden(pooled)), torch.tanh(model.initial_cell(pooled))
    wanted = max(search.beam_size, search.candidates if pipeline.reranks else 0)
    context = 0.0 if state.context is None else state.context
    beams, ended = [(0.0, [BOS])], []
    for length in range(1, search.max_length + 1):
        last = torch.tensor([tokens[-1] for _, tokens in beams])
        logits, hidden, cell = step(model, maps, last, hidden, cell, context)
        log_prob = rules.apply(logits.log_softmax(1), last, length)
        words = torch.tensor([[tokens[1:] for _, tokens in beams]], dtype=torch.long)  # (1, N, t)
        if search.block_ngrams:
            log_prob.masked_fill_(
                repeated_ngrams(words, search.block_ngrams, log_prob.shape[1])[0], -torch.inf
            )
            log_prob.masked_fill_(repeated_conjuncts(words, joining, log_prob.shape[1])[0], -torch.inf)
        total = torch.tensor([score for score, _ in beams])[:, None] + log_prob
        scores, choices = total.flatten().topk(2 * search.beam_size)
        following: list[tuple[float, list[int]]] = []
        rows: list[int] = []
        for rank, (score, choice) in enumerate(zip(scores.tolist(), choices.tolist(), strict=True)):
            row, word = divmod(choice, total.shape[1])
            if word == EOS and rank < search.beam_size:
                ended.append(
                    Hypothesis(beams[row][1][1:], score, score / length**search.length_penalty, True)
                )
            elif word != EOS and len(rows) < search.beam_size:
                following.append((score, [*beams[row][1], word]))
                rows.append(row)
        beams, hidden, cell = following, hidden[rows], cell[rows]
        if len(ended) >= wanted:
            break
    best = sorted(ended, key=attrgetter("score"), reverse=True)[:wanted]
    best = best or [Hypothesis(tokens[1:], score, score, False) for score, tokens in beams[:1]]
    return pipeline.vocabulary.decode(pipeline.rate([best], predictions, [[]])[0][0].tokens)


def step(
    model: SCACNN,
    maps: tuple[Tensor, ...],
    last: Tensor,
    hidden: Tensor,
    cell: Tensor,
    context: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, W) and the new state of the N beams of one image."""
    maps = tuple(x.expand(len(last), *x.shape[1:]) for x in maps)
    for i, layer in enumerate(model.attention.values()):
        assert isinstance(layer, ConditionedAttention)
        attended = attend(layer, maps[0], hidden)
        if i + 1 < len(model.attention):
            maps = model.backbone.segment(i, attended, maps[1:])
    embedded = model.embedding(last)
    pooled = normalize(model, attended.mean((2, 3)))
    inputs = F.linear(torch.cat((embedded, pooled), 1), model.lstm.weight_ih, model.lstm.bias_ih)
    gates = inputs + F.linear(hidden, model.lstm.weight_hh, model.lstm.bias_hh) + context
    enter, forget, new, output = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    hidden = output.sigmoid() * cell.tanh()
    return model.word(torch.tanh(model.hidden_to_word(hidden) + embedded)), hidden, cell


def attend(layer: ConditionedAttention, maps: Tensor, hidden: Tensor) -> Tensor:
    """The attended map of (N, C, H, W), by equations 5 to 8 of the paper."""
    rows, channels, height, width = maps.shape
    for letter in layer.mode.split("-"):
        if letter == "C":
            channel = layer.channel
            assert channel is not None
            keys = maps.mean((2, 3))[:, :, None] * channel.visual
            scores = torch.tanh(keys + channel.hidden(hidden)[:, None]) @ channel.score
            maps = maps * (scores.softmax(1) * channels)[:, :, None, None]
        else:
            spatial = layer.spatial
            assert spatial is not None
            keys = spatial.visual(maps.flatten(2).transpose(1, 2))
            scores = torch.tanh(keys + spatial.hidden(hidden)[:, None]) @ spatial.score
            maps = maps * (scores.softmax(1) * height * width).view(rows, 1, height, width)
    return maps


def normalize(model: SCACNN, pooled: Tensor) -> Tensor:
    return F.normalize(pooled, dim=1) * model.config.pool_norm


# ---- one photograph, from the start of Python ------------------------------------------------------------------------


def report_start(arguments: argparse.Namespace) -> None:
    imports = next((code for code in IMPORTS if not run_python("-c", code).returncode), IMPORTS[-1])
    caption = ["-c", CAPTION, str(arguments.path)]
    caption += ["--checkpoint", arguments.checkpoint] if arguments.checkpoint else []
    commands = {"caption.py IMAGE": caption, "import torch, torchvision": ["-c", imports]}
    for name, command in commands.items():
        if (done := run_python(*command)).returncode:
            raise UserError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            times[name].append(process_times(command))
    ours, bare = times.values()
    print("| | wall | processor |\n| --- | ---: | ---: |")
    for name, pairs in times.items():
        medians = [statistics.median(x) for x in zip(*pairs, strict=True)]
        print(f"| {name} | " + " | ".join(f"{seconds:.2f} s" for seconds in medians) + " |")
    ratios = ([a[i] / b[i] for a, b in zip(ours, bare, strict=True)] for i in range(2))
    print("| ratio | " + " | ".join(f"{statistics.median(each):.2f}" for each in ratios) + " |")
    if arguments.imports:
        for name, command in commands.items():
            print_imports(name, run_python("-X", "importtime", *command).stderr, arguments.imports)


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def process_times(command: list[str]) -> tuple[float, float]:
    """Seconds of wall time and of processor time that Python takes for a command."""
    before, began = os.times(), time.perf_counter()
    run_python(*command)
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def print_imports(name: str, profile: str, count: int) -> None:
    """Print the import time per package, without the packages that it imports, longest first.

    profile: the output of `python -X importtime`. count: packages to print.
    """
    taken: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for microseconds, module in IMPORTED.findall(profile):
        parts = module.split(".")
        package = ".".join(parts[:2] if parts[0] == "torch" else parts[:1])
        taken[package] += int(microseconds)
        modules[package] += 1
    print(f"\n| imported by {name} | modules | ms |\n| --- | ---: | ---: |")
    print(f"| all | {modules.total()} | {taken.total() / 1000:.0f} |")
    for package, microseconds in taken.most_common(count):
        print(f"| {package} | {modules[package]} | {microseconds / 1000:.0f} |")


if __name__ == "__main__":
    raise SystemExit(main())
