"""How captions are written to results files: COCO's results format as .json, .jsonl and .csv, and read back."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sca_caption.inference.journal import require_same

if TYPE_CHECKING:
    from sca_caption.inference.captioning import CaptionPipeline, Result
    from sca_caption.vocab import Vocabulary


ESCAPED_BYTE = re.compile(
    r"\\u(dc[89a-f][0-9a-f])"
)  # as "backslashreplace" writes a name's byte that is no UTF-8


class Kind:
    """How entries are made of results, written to a file of one kind and read back from it.

    An entry is {"image_id", "file_name", "caption", numbers...} and, with several captions, "captions", their list; and
    where the settings say "save_attention", "attention": see `attention_trace.numbers`.

    Args:
        path: of the file. numbers: fields of a Caption that it has, "score" and perhaps "confidence". settings: what
        the captions were made with, JSON-able. words: the vocabulary of their tokens. doubtful_first: write the
        captions that are trusted least first.
    """

    def __init__(
        self,
        path: Path,
        numbers: Sequence[str],
        settings: dict,
        words: "Vocabulary",
        doubtful_first: bool = False,
    ):
        self.path, self.numbers, self.settings, self.words = path, numbers, settings, words
        self.doubtful_first = doubtful_first

    @staticmethod
    def stream(
        pipeline: "CaptionPipeline",
        paths: Iterable[Path],
        traced: bool = False,
    ) -> Iterable["Result"]:
        """Results with all that entries of this kind need; `traced`, with their traces in any case."""
        return pipeline.stream(paths, traced=traced)

    @property
    def sort_key(self) -> Callable[[dict], float] | None:
        """What entries are sorted by; None: they stay as they came."""
        return trust if self.doubtful_first else None

    def entry(self, image_id: int, result: "Result") -> dict:
        captions = [
            {"caption": caption.text} | {name: round(getattr(caption, name), 4) for name in self.numbers}
            for caption in result.captions
        ]
        entry = {"image_id": image_id, "file_name": str(result.item)} | captions[0]
        if len(captions) > 1:
            logs = ({"log_prob": round(caption.log_prob, 4)} for caption in result.captions)
            entry["captions"] = [each | log for each, log in zip(captions, logs, strict=True)]
        if self.settings.get("save_attention"):
            from sca_caption.models.attention_trace import numbers  # here, as PyTorch takes its time

            words = self.words.to_words(result.captions[0].tokens)
            entry["attention"] = numbers(result.trace, words)
        return entry

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        """Write all entries. failed: why other images have none."""
        raise NotImplementedError

    def read(self) -> Iterator[dict]:
        """The entries of the file. Raises ValueError, KeyError or TypeError where it is none of this kind."""
        raise NotImplementedError

    def require_alike(self, entry: dict) -> None:
        """Raise UserError where an entry that was read cannot be of the same model and settings."""
        numbers = [name for name in ("score", "confidence") if name in entry]
        if numbers != list(self.numbers):
            require_same(self.path, {"checkpoint": numbers}, {"checkpoint": self.numbers})
        count, expected = len(entry.get("captions", [entry])), self.settings["num_captions"]
        if count > expected or (count == 1) != (expected == 1):
            require_same(self.path, {"num_captions": count}, {"num_captions": expected})


class JsonArray(Kind):
    """COCO's results format: a list, an entry a line."""

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        start = "[\n"
        for entry in entries:
            file.write(start + json.dumps(entry, ensure_ascii=False))
            start = ",\n"
        file.write("\n]\n")

    def read(self) -> Iterator[dict]:
        yield from json.loads(self.path.read_bytes())


class JsonLines(Kind):
    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def read(self) -> Iterator[dict]:
        with open(self.path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())


class Table(Kind):
    """CSV: a row a caption."""

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image_id", "file_name", "caption", *self.numbers)

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(self.columns)
        for entry in entries:
            for caption in entry.get("captions", [entry]):
                rows.writerow((entry | caption)[name] for name in self.columns)

    def read(self) -> Iterator[dict]:
        entry: dict = {}
        with open(self.path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or self.columns)[:4] != self.columns[:4]:
                raise ValueError(f"columns {rows.fieldnames}")
            for row in rows:
                image_id, name = int(row.pop("image_id")), row.pop("file_name")
                name = ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), name)
                caption = {
                    key: float(value) if key in ("score", "confidence") else value
                    for key, value in row.items()
                }
                if entry and (entry["image_id"], entry["file_name"]) == (image_id, name):
                    entry.setdefault("captions", [entry["first"]]).append(caption)
                    continue
                if entry:
                    yield without_first(entry)
                entry = {"image_id": image_id, "file_name": name, **caption, "first": caption}
        if entry:
            yield without_first(entry)


def without_first(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key != "first"}


def trust(entry: dict) -> float:
    return entry.get("confidence", entry["score"])
