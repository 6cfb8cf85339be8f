"""Captioning a folder: the whole program against its floor, and against a beam search of one image at a time.

The floor decodes the same files and runs the CNN's trunk on them in batches, and does nothing else. The search of one
image at a time is the usual one: the model's equations as the paper writes them, an image's beams as the rows of a
batch. It is timed on the first images only. Ours is `caption.py --no-objects FOLDER` with all that it takes, from
starting Python to the last line written, and then without --no-objects, so that many images are searched twice; the
other two start in a process that has imported everything, with the model loaded.

Times alternate in one run; medians over rounds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption import images
from sca_caption.attention.sca import ConditionedAttention
from sca_caption.benchmarks.start import CAPTION
from sca_caption.cli.parser import Parser, program
from sca_caption.config import SearchConfig, require
from sca_caption.decoding.rules import Rules, bad_endings, conjunctions, repeated_conjuncts, repeated_ngrams
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.inference.batching import in_batches, stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import BOS, EOS

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.captioning photos/
  python -m sca_caption.benchmarks.captioning photos/ --checkpoint runs/flickr8k/best.pt --rounds 5
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.captioning", description=__doc__, epilog=EPILOG)
    p.add_argument("folder", type=Path, metavar="FOLDER", help="of photographs, all of them readable")
    p.add_argument("--checkpoint", metavar="FILE", help="(default: the model that ships)")
    p.add_argument(
        "--singly", type=int, default=20, metavar="N", help="images taken one by one (default: %(default)s)"
    )
    p.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timings of each (default: %(default)s)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    paths = images.find_images([arguments.folder])
    for name in ("singly", "rounds"):
        require(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    pipeline = CaptionPipeline.load(arguments.checkpoint, device="cpu", objects=False)
    few = paths[: arguments.singly]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "floor: decode, trunk": (len(paths), lambda: floor(pipeline, paths)),
        "caption.py, all of it": (len(paths), lambda: whole_program(arguments, "--no-objects")),
        "the same, naming objects": (len(paths), lambda: whole_program(arguments)),
        "the same, once started": (len(paths), lambda: ours(pipeline, paths)),
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
    print("| | ms an image | times the floor | caption.py is faster by |\n| --- | ---: | ---: | ---: |")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {1000 * median:.2f} | {median / least:.2f} | {median / whole:.2f} |")
    same = sum(a == singly(pipeline, path) for a, path in zip(ours(pipeline, few), few, strict=True))
    print(f"\none image at a time, {same} of {len(few)} captions are the same")
    return 0


@torch.inference_mode()
def floor(pipeline: CaptionPipeline, paths: list[Path]) -> None:
    def encode(contents: list) -> list:
        pipeline.model.encode(stack(contents), ())
        return contents

    read = partial(images.load, transform=pipeline.transform)
    for path, found in in_batches(paths, read, encode, pipeline.batch_size):
        if isinstance(found, UserError):
            raise UserError(f"{path} cannot be read; take it out of the folder")


def whole_program(arguments, *more: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "captions.json")
        flags = [str(arguments.folder), "--device", "cpu", "--output", str(output)]
        flags += ["--checkpoint", arguments.checkpoint] if arguments.checkpoint else []
        flags += more
        subprocess.run([sys.executable, "-c", CAPTION, *flags], check=True, stderr=subprocess.DEVNULL)
        return [entry["caption"] for entry in json.loads(output.read_text(encoding="utf-8"))]


def ours(pipeline: CaptionPipeline, paths: list[Path]) -> list[str]:
    return [result.captions[0].text for result in pipeline.stream(paths)]


# ---- one image at a time ---------------------------------------------------------------------------------------------


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
    pooled = normalised(model, top[0].mean((2, 3)))
    hidden, cell = torch.tanh(model.initial_hidden(pooled)), torch.tanh(model.initial_cell(pooled))
    beams, ended = [(0.0, [BOS])], []
    for length in range(1, search.max_length + 1):
        last = torch.tensor([tokens[-1] for _, tokens in beams])
        logits, hidden, cell = step(model, maps, last, hidden, cell)
        log_prob = rules.apply(logits.log_softmax(1), last, length)
        said = torch.tensor([[tokens[1:] for _, tokens in beams]], dtype=torch.long)  # (1, N, t)
        if search.block_ngrams:
            log_prob.masked_fill_(repeated_ngrams(said, search.block_ngrams, log_prob.shape[1])[0], -torch.inf)
            log_prob.masked_fill_(repeated_conjuncts(said, joining, log_prob.shape[1])[0], -torch.inf)
        total = torch.tensor([score for score, _ in beams])[:, None] + log_prob
        scores, choices = total.flatten().topk(2 * search.beam_size)
        following, rows = [], []
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
        if len(ended) >= search.beam_size:
            break
    found = sorted(ended, key=attrgetter("score"), reverse=True)[: search.beam_size]
    found = found or [Hypothesis(tokens[1:], score, score, False) for score, tokens in beams[:1]]
    best = pipeline.rate([found], predictions, [[]])[0][0]
    return pipeline.vocabulary.decode(best.tokens)


def step(model: SCACNN, maps: tuple[Tensor, ...], last: Tensor, hidden: Tensor, cell: Tensor):
    """Logits (N, W) and the new state of the N beams of one image."""
    maps = tuple(x.expand(len(last), *x.shape[1:]) for x in maps)
    for i, layer in enumerate(model.attention.values()):
        attended = attend(layer, maps[0], hidden)
        if i + 1 < len(model.attention):
            maps = model.backbone.segment(i, attended, maps[1:])
    embedded = model.embedding(last)
    pooled = normalised(model, attended.mean((2, 3)))
    hidden, cell = model.lstm(torch.cat((embedded, pooled), 1), (hidden, cell))
    return model.word(torch.tanh(model.hidden_to_word(hidden) + embedded)), hidden, cell


def attend(layer: ConditionedAttention, maps: Tensor, hidden: Tensor) -> Tensor:
    """The attended map of (N, C, H, W), by equations 5 to 8 of the paper."""
    rows, channels, height, width = maps.shape
    for letter in layer.mode.split("-"):
        if letter == "C":
            part = layer.channel
            scores = (
                torch.tanh(maps.mean((2, 3))[:, :, None] * part.visual + part.hidden(hidden)[:, None])
                @ part.score
            )
            maps = maps * (scores.softmax(1) * channels)[:, :, None, None]
        else:
            part = layer.spatial
            keys = part.visual(maps.flatten(2).transpose(1, 2))
            scores = torch.tanh(keys + part.hidden(hidden)[:, None]) @ part.score
            maps = maps * (scores.softmax(1) * height * width).view(rows, 1, height, width)
    return maps


def normalised(model: SCACNN, pooled: Tensor) -> Tensor:
    return F.normalize(pooled, dim=1) * model.config.pool_norm


if __name__ == "__main__":
    raise SystemExit(main())
