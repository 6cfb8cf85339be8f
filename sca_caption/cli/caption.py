"""Caption photographs in English.

One image file prints its caption. Several files or folders (searched recursively) print path<TAB>caption, a line per
image.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_caption.cli.flags import add_device, add_flags, add_style, make
from sca_caption.cli.inputs import paths_of, take_back_images
from sca_caption.cli.parser import Parser, program
from sca_caption.cli.serve import add_page_flags, check_page_flags, serve
from sca_caption.cli.terminal import Printer, missing_words_note, one_line, progress, report_all
from sca_caption.config import BATCH_SIZE, SamplingConfig, SearchConfig
from sca_caption.runtime.distributed import Processes, process_group
from sca_caption.runtime.errors import UserError, format_message, warn
from sca_caption.runtime.programs import command
from sca_caption.runtime.start import loading

if TYPE_CHECKING:
    from sca_caption.cli.explain import Drawing
    from sca_caption.inference.captioning import CaptionPipeline
    from sca_caption.inference.captions import Result
    from sca_caption.inference.results_file import Results
    from sca_caption.inference.sidecars import Sidecars


NUMERIC = (".json", ".jsonl")  # results files that can hold lists of numbers
BEAM_FLAGS = (
    "beam_size",
    "rerank_weight",
    "distinct",
    "grammar",
    "diverse_groups",
    "diversity",
)  # settings of beam search alone
EPILOG = """\
examples:
  python caption.py photo.jpg                          # prints the caption, nothing else
  python caption.py a.jpg b.png photos/                # path<TAB>caption, a line per image
  find . -name '*.jpg' | python caption.py -           # paths from standard input
  python caption.py photos/ --output captions.json     # COCO results; .jsonl and .csv likewise
  python caption.py photos/ --output gallery.html      # a page with all photographs
  python caption.py photos/ --output captions.json --resume   # captions new photographs only
  python caption.py photos/ --txt                      # photo.txt beside each photo.jpg
  python caption.py photo.jpg --explain why.png        # attention at every word
  python caption.py photo.jpg --num-captions 3         # three captions that differ in content
  python caption.py photo.jpg --force-words dog ball   # a caption with these words
  python caption.py --serve                            # a local page in the browser

Results files hold image_id, file_name, caption and score. image_id is the number that is the file's name if
all images have one (COCO's), else the position in the input, from 1. With --num-captions, JSON lists all
captions of an image under "captions", and CSV gives each a row. --resume keeps every caption in the file.

Exit status: 0; 1 if some images could not be read; 2 if none could, or for a mistake in the command.
"""


def parser() -> Parser:
    p = Parser(prog="caption.py", description=__doc__, epilog=EPILOG, usage="%(prog)s [options] [IMAGE ...]")
    p.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image file, folder, or - for paths on standard input"
    )
    p.add_argument("--demo", action="store_true", help="caption the photographs that ship with the package")
    g = p.add_argument_group("results")
    g.add_argument("--output", type=Path, metavar="FILE", help="write a results file: .json, .jsonl, .csv, or .html, a "
                   "gallery")  # fmt: skip
    g.add_argument("--txt", action="store_true", help="write a .txt beside each image")
    overwrite = g.add_argument("--overwrite", action="store_true", help="let --txt replace files that differ")
    g.add_argument("--resume", action="store_true", help="skip images that --output or --txt has already")
    g.add_argument("--scores", action="store_true", help="print the confidence before each caption")
    sort = g.add_argument("--sort", choices=("input", "confidence"), default="input",
                          help="confidence: the least confident first (default: %(default)s)")  # fmt: skip
    g.add_argument("--explain", type=Path, metavar="FILE", help="draw the attention at every word of one image: .png, "
                   ".svg, .pdf or .gif")  # fmt: skip
    patches = g.add_argument("--explain-data", type=Path, metavar="FILE.h5", help="illustrate channels by patches of "
                             "this data file's training images")  # fmt: skip
    attention = g.add_argument("--save-attention", action="store_true", help="add all attention weights to --output "
                               ".json or .jsonl")  # fmt: skip
    g.add_argument("--quiet", action="store_true", help="print only errors on standard error")
    g = p.add_argument_group("model")
    g.add_argument("--checkpoint", nargs="+", type=Path, metavar="FILE", help="a checkpoint of train.py; several are an "
                   "ensemble (default: the model that ships)")  # fmt: skip
    add_device(g)
    add_style(g, "the model's first")
    g.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="images per batch; smaller batches "
                   "take less memory (default: %(default)s)")  # fmt: skip
    g = p.add_argument_group("content")
    g.add_argument("--force-words", nargs="+", default=(), metavar="WORD", help="words that captions must contain, at "
                   "most three; dog/puppy: one of them")  # fmt: skip
    g.add_argument("--no-guidance", dest="guidance", action="store_false", help="do not exclude words that the model "
                   "predicts to be unlikely for an image")  # fmt: skip
    g.add_argument(
        "--neutral", action="store_true", help="never use words for one gender, such as man, girl and his"
    )
    g.add_argument("--sample", action="store_true", help="sample captions instead of beam search")
    add_page_flags(p)
    p.add_rare(overwrite, sort, patches, attention)
    add_flags(p, SearchConfig, SamplingConfig)
    add_earlier_flags(p)
    return p


def add_earlier_flags(p: Parser) -> None:
    """Accept the spellings of earlier versions, which no help shows."""
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    p.add_argument("--sidecar", dest="txt", action="store_true", **hidden)
    p.add_argument("--doubtful-first", dest="sort", action="store_const", const="confidence", **hidden)
    p.add_argument("--with-attention", dest="save_attention", action="store_true", **hidden)
    p.add_argument("--mention", dest="force_words", nargs="+", **hidden)
    p.add_argument("--no-objects", dest="guidance", action="store_false", **hidden)


@program
def main(argv: list[str] | None = None) -> int:
    try:
        with process_group() as processes:
            return run(argv, processes)
    finally:
        gc.unfreeze()  # see `loading`


def run(argv: list[str] | None, processes: Processes) -> int:
    """Caption the images, each process its share; the first process prints and writes all of them, in order."""
    p = parser()
    arguments = p.parse_args(argv)
    take_back_images(arguments)
    check_page_flags(p, arguments)
    if arguments.serve:
        return serve(arguments)
    search, sampling = settings_of(arguments)
    # Of several processes only one can read standard input.
    paths = processes.broadcast(paths_of(arguments) if processes.is_main else None)
    single = len(arguments.images) == 1 and arguments.images != ["-"] and paths == [Path(arguments.images[0])]
    if not any(
        os.path.exists(path) and not os.path.isdir(path) for path in paths
    ):  # spare the user the loading of the model
        return report_all(paths)
    if processes.is_main:
        check_outputs(arguments, paths)

    with loading():
        from sca_caption.decoding.lexical_constraints import dropped_words_note
        from sca_caption.inference.captioning import CaptionPipeline

        pipeline = CaptionPipeline.load(
            arguments.checkpoint,
            search=search,
            device=arguments.device,
            style=arguments.style,
            batch_size=arguments.batch_size,
            force_words=arguments.force_words,
            sampling=sampling if arguments.sample else None,
            guidance=arguments.guidance,
            neutral=arguments.neutral,
        )
    if pipeline.dropped_words and processes.is_main and not arguments.quiet:
        warn(dropped_words_note(pipeline.dropped_words))
    with ExitStack() as opened:
        outputs = Outputs(arguments, paths, single)
        if processes.is_main:
            outputs.open(opened, pipeline, made_with(arguments, search, sampling))
        todo = processes.broadcast(outputs.missing())
        results = processes.map_in_order(
            [paths[i] for i in todo], outputs.answer(pipeline), round_size=arguments.batch_size
        )
        failed = write_all(zip(todo, results, strict=True), outputs, len(todo))
    if not arguments.quiet:
        for line in outputs.summary(len(paths), failed):
            print(line, file=sys.stderr)
    if arguments.demo:
        call = command("caption.py")
        print(f"\nTo caption your own: {call} photo.jpg (or a folder; {call} --help)")
    if failed == len(paths):
        return 2
    return 1 if failed and processes.world_size == 1 else 0  # torchrun takes any other status for a crash


def settings_of(arguments: argparse.Namespace) -> tuple[SearchConfig, SamplingConfig]:
    """Settings of search and sampling. Raises UserError for flags that have no effect."""
    beam_flags = [name for name in BEAM_FLAGS if name in arguments] if arguments.sample else []
    if beam_flags:
        raise UserError(
            f"--{beam_flags[0].replace('_', '-')} has no effect on --sample, which needs no beams; leave one out"
        )
    if arguments.sample and "num_captions" in arguments:
        arguments.beam_size = arguments.num_captions  # no beam limits their number
    search, sampling = make(SearchConfig, arguments), make(SamplingConfig, arguments)
    useless = [name for name in vars(sampling) if name in arguments and not arguments.sample]
    if useless:
        raise UserError(f"--{useless[0].replace('_', '-')} has no effect on beam search; give --sample too")
    if arguments.resume and not (arguments.output or arguments.txt):
        raise UserError("--resume continues a results file; give --output FILE or --txt too")
    if arguments.overwrite and (arguments.resume or not arguments.txt):
        found = "--resume, which keeps what is there" if arguments.resume else "no --txt"
        raise UserError(f"--overwrite replaces what --txt wrote; found {found}")
    if arguments.txt and arguments.demo:
        raise UserError("--txt writes beside your own photographs; leave --demo out")
    if arguments.explain_data and not arguments.explain:
        raise UserError("--explain-data is for the patches of --explain FILE; give that too")
    if arguments.save_attention and (not arguments.output or arguments.output.suffix.lower() not in NUMERIC):
        found = arguments.output or "no --output"
        raise UserError(f"--save-attention adds weights to --output FILE.json or .jsonl; found {found}")
    return search, sampling


def check_outputs(arguments: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Raise UserError for mistakes that are known before the model is loaded."""
    if arguments.output:
        from sca_caption.inference.results_file import check_results_file

        check_results_file(arguments.output, arguments.resume)
    if arguments.txt:
        from sca_caption.inference.sidecars import Sidecars

        Sidecars(paths)
    if arguments.explain:
        from sca_caption.cli.explain import check_explanation

        check_explanation(arguments.explain, arguments.explain_data, paths)


def made_with(arguments: argparse.Namespace, search: SearchConfig, sampling: SamplingConfig) -> dict:
    """Everything that decides the captions, as JSON values; results files store it for --resume."""
    from sca_caption.checkpoint import fingerprint

    return {
        "checkpoint": [fingerprint(file) for file in arguments.checkpoint or [None]],
        **search_settings(arguments, search),
        "sample": arguments.sample,
        **(vars(sampling) if arguments.sample else {}),
        "force_words": list(arguments.force_words),
        "no_guidance": not arguments.guidance,
        **({"neutral": True} if arguments.neutral else {}),
        **({"style": arguments.style} if arguments.style else {}),
        **({"save_attention": True} if arguments.save_attention else {}),
    }


def search_settings(arguments: argparse.Namespace, search: SearchConfig) -> dict:
    """The settings of the search that decide these captions. Earlier versions lack some of the others."""
    idle = {"grammar": not arguments.force_words, "distinct": search.num_captions == 1 or arguments.sample}
    return {name: value for name, value in vars(search).items() if not idle.get(name)}


class Outputs:
    """The outputs: the terminal, or a results file and text files beside the images."""

    def __init__(self, arguments: argparse.Namespace, paths: Sequence[Path], single: bool):
        self.arguments, self.paths = arguments, paths
        self.results: Results | None = None
        self.sidecars: Sidecars | None = None
        self.printer: Printer | None = None
        if not (arguments.output or arguments.txt):
            least_confident_first = arguments.sort == "confidence"
            self.printer = Printer(single, arguments.scores, least_confident_first, names_only=arguments.demo)
        self.drawing: Drawing | None = None

    def open(self, opened: ExitStack, pipeline: "CaptionPipeline", settings: dict) -> None:
        """Open the files; those that need it are completed as `opened` ends. Raises UserError."""
        if self.arguments.output:
            from sca_caption.inference.results_file import image_ids, results_file

            self.results = opened.enter_context(
                results_file(
                    self.arguments.output,
                    image_ids(self.paths),
                    resume=self.arguments.resume,
                    least_confident_first=self.arguments.sort == "confidence",
                    numbers=("score", "confidence") if pipeline.gives_confidence else ("score",),
                    settings=settings,
                    words=pipeline.vocabulary,
                )
            )
        if self.arguments.txt:
            from sca_caption.inference.sidecars import Sidecars

            self.sidecars = Sidecars(self.paths, self.arguments.overwrite)
            if self.results and self.arguments.resume:
                self.sidecars.complete(self.results.entries())

        if self.arguments.explain:
            from sca_caption.cli.explain import Drawing

            self.drawing = Drawing(self.arguments.explain, pipeline, self.arguments.explain_data)

    def missing(self) -> list[int]:
        """Positions of the images that are to be captioned."""
        if self.results:
            return self.results.missing(self.paths)
        if self.sidecars and self.arguments.resume:
            return self.sidecars.missing(self.paths)
        return list(range(len(self.paths)))

    def answer(self, pipeline: "CaptionPipeline") -> Callable[[Sequence[Path]], Iterable["Result"]]:
        """The function that yields the results of paths, with traces if an output needs them."""
        traced = bool(self.arguments.explain or self.arguments.save_attention)
        if not self.arguments.output:
            return partial(pipeline.stream, traced=traced)
        from sca_caption.inference.results_file import format_of

        return partial(format_of(self.arguments.output).stream, pipeline, traced=traced)

    def write(self, index: int, result: "Result") -> None:
        """Write what became of the image at `index`. An output passes over errors that are none of its business."""
        outputs: tuple[Any, ...] = (self.results, self.sidecars, self.printer, self.drawing)
        for output in filter(None, outputs):
            output.write(index, result)

    def finish(self) -> None:
        """Print what waited for the end."""
        if self.printer:
            self.printer.finish()

    def summary(self, count: int, failed: int) -> list[str]:
        """Print a summary for the user."""
        lines: list[str] = []
        if self.results and failed < count:
            kept = f", {self.results.kept} of them before" if self.results.kept else ""
            lines.append(f"{count - failed} of {count} images captioned in {self.arguments.output}{kept}")
        if self.sidecars:
            lines += self.sidecars.summary(count)
        return lines


def write_all(results: Iterable[tuple[int, "Result"]], outputs: Outputs, count: int) -> int:
    """Write all results and count those that are errors, which are told as they come."""
    quiet = outputs.arguments.quiet or (bool(outputs.printer) and sys.stdout.isatty())
    failed, (bar, say) = 0, progress(count, quiet=quiet)
    try:
        for index, result in results:
            if result.error:
                failed += 1
                say(format_message("error", one_line(result.error), sys.stderr))
            outputs.write(index, result)
            if not outputs.arguments.quiet and result.captions and result.captions[0].missing_words:
                say(format_message("note", missing_words_note(result), sys.stderr))
            bar.update()
    except KeyboardInterrupt:
        if outputs.results and len(outputs.results.journal) and not outputs.arguments.quiet:
            say(f"{len(outputs.results.journal)} images are done; --resume goes on with the others")
        raise
    finally:
        bar.close()
    outputs.finish()
    return failed
