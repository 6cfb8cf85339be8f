"""`python -m sca_caption ray`: caption photographs on the machines of a Ray cluster."""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from sca_caption.cli.flags import add_flags, add_style, make
from sca_caption.cli.parser import Parser, program
from sca_caption.cli.terminal import progress
from sca_caption.config import BATCH_SIZE, SearchConfig, require
from sca_caption.runtime.atomic_files import locked
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command

FORMATS = ("parquet", "jsonl")
EPILOG = """\
examples:
  python -m sca_caption ray photos/ --output captions/                        # Ray on this machine
  python -m sca_caption ray s3://photos/2024 --output s3://captions/2024 --address HOST:6379
  python -m sca_caption ray photos.parquet --column image --output captions/ --format jsonl

A Parquet file holds photographs, a row each, in the column --column: their bytes, their paths or their URLs. Relative
paths are relative to the file. Its column file_name, if there is one, names them in the result.

The result has a row per photograph: file_name, caption, score, confidence and error, of which caption or error is empty.
The same command again captions what is missing in --output.

Exit status: 0; 1 if some images could not be read; 2 if none could, or for a mistake in the command.
"""


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption ray",
        description="Caption photographs on the machines of a Ray cluster, or with several processes of this one.",
        epilog=EPILOG,
    )
    p.add_argument(
        "inputs",
        nargs="+",
        metavar="PATH",
        help="folder, image file or Parquet file, or their URL (s3://, gs://, ...)",
    )
    p.add_argument(
        "--output", required=True, metavar="DIR", help="folder or URL of the result, on all machines"
    )
    p.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of the result (default: %(default)s)"
    )
    p.add_argument("--column", default="image", metavar="NAME", help="column of images in Parquet files "
                   "(default: %(default)s)")  # fmt: skip
    g = p.add_argument_group("cluster")
    g.add_argument("--address", metavar="HOST:PORT", help="the cluster's head (default: $RAY_ADDRESS, else Ray "
                   "starts on this machine)")  # fmt: skip
    g.add_argument(
        "--workers", type=int, metavar="N", help="processes that caption (default: as many as fit)"
    )
    g.add_argument("--threads", type=int, default=1, metavar="N", help="CPUs of each (default: %(default)s)")
    g.add_argument("--gpus", type=float, default=0, metavar="X", help="GPUs of each, or a part of one "
                   "(default: %(default)s)")  # fmt: skip
    g.add_argument("--shard-size", type=int, default=128, metavar="N", help="photographs per file of the result; "
                   "a process that dies loses at most one file (default: %(default)s)")  # fmt: skip
    g = p.add_argument_group("model")
    g.add_argument("--checkpoint", type=Path, metavar="FILE", help="captioner, on all machines "
                   "(default: the model that ships)")  # fmt: skip
    add_style(g, "the model's first")
    g.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="images per batch "
                   "(default: %(default)s)")  # fmt: skip
    g.add_argument("--no-guidance", dest="guidance", action="store_false", help="do not exclude words that the "
                   "model predicts to be unlikely for an image")  # fmt: skip
    g.add_argument("--neutral", action="store_true", help="never use words for one gender")
    add_flags(p, SearchConfig, without=("num_captions",))
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name in ("threads", "shard_size", "batch_size"):
        require(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    require(arguments, "workers", arguments.workers is None or arguments.workers >= 1, "at least 1")
    require(arguments, "gpus", arguments.gpus >= 0, "0 or more")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise UserError(f"ray cannot be imported ({error}); run: {install_command('ray')}") from error
    with ExitStack() as opened:
        return run(arguments, opened)


def run(arguments: argparse.Namespace, opened: ExitStack) -> int:
    """Caption what the output folder lacks. The folder is locked until `opened` ends."""
    import ray

    from sca_caption.checkpoint import fingerprint
    from sca_caption.inference.captioning import CaptionPipeline
    from sca_caption.inference.ray_data import Job, ResultFolder, caption_shards, connect
    from sca_caption.inference.shards import (
        find_inputs,
        is_url,
        printable,
        shards_of_names,
        shards_of_parquet,
    )

    folder, size, search = arguments.output.rstrip("/"), arguments.shard_size, make(SearchConfig, arguments)
    if not is_url(folder):
        folder = os.path.abspath(arguments.output)
    if arguments.checkpoint:
        arguments.checkpoint = arguments.checkpoint.absolute()  # actors run in other folders
    names, tables = find_inputs(arguments.inputs, passed_over=folder)
    rows = [shard for table in tables for shard in shards_of_parquet(table, arguments.column, size)]
    style, guidance, neutral = arguments.style, arguments.guidance, arguments.neutral
    options = {"search": search, "style": style, "guidance": guidance, "neutral": neutral}
    options["batch_size"] = arguments.batch_size
    CaptionPipeline.load(arguments.checkpoint, device="cpu", **options)  # raises what its actors would raise
    checkpoint = fingerprint(arguments.checkpoint)
    settings = {"checkpoint": [checkpoint], **vars(search), "style": style, "no_guidance": not guidance}
    settings |= {
        "neutral": neutral,
        "format": arguments.format,
        "shard_size": size,
        "column": arguments.column,
    }

    output = ResultFolder(folder, arguments.format)
    parts = output.parts(settings)
    done = {name for part in parts for name in output.names(part)} if names else set()
    stems = {os.path.splitext(part)[0] for part in parts}
    shards = shards_of_names([name for name in names if printable(name) not in done], size)
    shards += [shard for shard in rows if shard.stem not in stems]
    missing = sum(map(len, shards))
    kept = len(names) + sum(map(len, rows)) - missing

    captioned = failed = 0
    if shards:
        connect(arguments.address or os.environ.get("RAY_ADDRESS"))
        opened.callback(ray.shutdown)
        output.begin(settings)
        if not is_url(folder):
            opened.enter_context(locked(Path(folder), f"another run is writing {folder}; wait until it ends"))
        bar, _ = progress(missing, quiet=False)
        options["device"] = "cuda" if arguments.gpus else "cpu"
        job = Job(arguments.checkpoint, checkpoint, options, arguments.threads, output)
        with bar:
            for counts in caption_shards(job, shards, arguments.workers, arguments.gpus):
                captioned, failed = captioned + counts[0], failed + counts[1]
                bar.update(sum(counts))
    print(f"{captioned} captioned, {failed} unreadable, {kept} kept: {folder}", file=sys.stderr)
    if not failed:
        return 0
    return 1 if captioned or kept else 2
