"""Formats of results files: COCO's results format as .json, .jsonl and .csv."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sca_caption.evaluation.coco_format import ESCAPED_BYTE
from sca_caption.inference.journal import require_same
from sca_caption.runtime.json_text import parse_json

if TYPE_CHECKING:
    from sca_caption.inference.captioning import CaptionPipeline
    from sca_caption.inference.captions import Result
    from sca_caption.vocab import Vocabulary


class ResultsFormat:
    """Base class of the formats: converts results to entries, writes entries to a file and reads them back.

    An entry is the dict {"image_id", "file_name", "caption", numbers...}. With several captions per image it also has
    "captions", their list; if the settings have "save_attention", it has "attention" (see
    `attention_trace.trace_to_json`). A caption that lacks forced words names them in the list "missing_words".

    Args:
        path: the results file.
        numbers: fields of a Caption to write: "score" and, if the model has it, "confidence".
        settings: the settings of the captions, as JSON values. `--resume` requires the same settings.
        words: the vocabulary of the captions' tokens.
        least_confident_first: sort the entries by ascending confidence.
    """

    def __init__(
        self,
        path: Path,
        numbers: Sequence[str],
        settings: dict,
        words: "Vocabulary",
        least_confident_first: bool = False,
    ):
        self.path, self.numbers, self.settings, self.words = path, numbers, settings, words
        self.least_confident_first = least_confident_first

    @staticmethod
    def stream(
        pipeline: "CaptionPipeline",
        paths: Iterable[Path],
        traced: bool = False,
    ) -> Iterable["Result"]:
        """Caption the images. Results have what `entry` needs; if `traced`, they also have their attention traces."""
        return pipeline.stream(paths, traced=traced)

    @property
    def sort_key(self) -> Callable[[dict], float] | None:
        """The sort key of the entries, or None to keep their order."""
        return confidence_of if self.least_confident_first else None

    def entry(self, image_id: int, result: "Result") -> dict:
        """The entry of one captioned image."""
        captions = [
            {"caption": caption.text}
            | {name: round(getattr(caption, name), 4) for name in self.numbers}
            | ({"missing_words": [*caption.missing_words]} if caption.missing_words else {})
            for caption in result.captions
        ]
        entry = {"image_id": image_id, "file_name": str(result.item)} | captions[0]
        if len(captions) > 1:
            logs = ({"log_prob": round(caption.log_prob, 4)} for caption in result.captions)
            entry["captions"] = [each | log for each, log in zip(captions, logs, strict=True)]
        if self.settings.get("save_attention"):
            # Imported here because PyTorch takes seconds to import.
            from sca_caption.models.attention_trace import trace_to_json

            assert result.trace is not None
            words = self.words.to_words(result.captions[0].tokens)
            entry["attention"] = trace_to_json(result.trace, words)
        return entry

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        """Write all entries. `failed`: an error message for each image without captions."""
        raise NotImplementedError

    def read(self) -> Iterator[dict]:
        """Yield the entries of the file. Raises ValueError, KeyError or TypeError if the file has another format."""
        raise NotImplementedError

    def require_compatible(self, entry: dict) -> None:
        """Raise UserError if an entry of the file was written by another model or with other settings."""
        numbers = [name for name in ("score", "confidence") if name in entry]
        if numbers != list(self.numbers):
            require_same(self.path, {"checkpoint": numbers}, {"checkpoint": self.numbers})
        count, expected = len(entry.get("captions", [entry])), self.settings["num_captions"]
        if count > expected or (count == 1) != (expected == 1):
            require_same(self.path, {"num_captions": count}, {"num_captions": expected})


class JsonArray(ResultsFormat):
    """COCO's results format: a list with one entry per line."""

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        start = "[\n"
        for entry in entries:
            file.write(start + json.dumps(entry, ensure_ascii=False))
            start = ",\n"
        file.write("\n]\n")

    def read(self) -> Iterator[dict]:
        yield from parse_json(self.path.read_bytes())


class JsonLines(ResultsFormat):
    """JSON lines: one entry per line, without the list."""

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def read(self) -> Iterator[dict]:
        with open(self.path, encoding="utf-8") as file:
            yield from (parse_json(line) for line in file if line.strip())


class Table(ResultsFormat):
    """CSV with one row per caption. If words are forced, a last column names those that a caption lacks, with spaces."""

    @property
    def columns(self) -> tuple[str, ...]:
        missing = ("missing_words",) if self.settings.get("force_words") else ()
        return ("image_id", "file_name", "caption", *self.numbers, *missing)

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        rows = csv_writer(file)
        rows.writerow(self.columns)
        for entry in entries:
            for caption in entry.get("captions", [entry]):
                missing = {"missing_words": " ".join(caption.get("missing_words", ()))}
                rows.writerow((entry | caption | missing)[name] for name in self.columns)

    def read(self) -> Iterator[dict]:
        entry: dict = {}
        with open(self.path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or self.columns)[:4] != self.columns[:4]:
                raise ValueError(f"columns {rows.fieldnames}")
            for row in rows:
                image_id, name = int(row.pop("image_id")), row.pop("file_name")
                name = ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), name)
                missing = (row.pop("missing_words", None) or "").split()
                caption = {
                    key: float(value) if key in ("score", "confidence") else value
                    for key, value in row.items()
                } | ({"missing_words": missing} if missing else {})
                if entry and (entry["image_id"], entry["file_name"]) == (image_id, name):
                    entry.setdefault("captions", [entry["first"]]).append(caption)
                    continue
                if entry:
                    yield without_first(entry)
                entry = {"image_id": image_id, "file_name": name, **caption, "first": caption}
        if entry:
            yield without_first(entry)


def csv_writer(file: TextIO) -> Any:
    """csv.writer with lines that end in LF, whose fields may hold CR. With lineterminator LF, these are not quoted."""

    class Lines:
        def write(self, line: str) -> None:
            file.write(line.removesuffix("\r\n") + "\n")

    return csv.writer(Lines(), lineterminator="\r\n")


def without_first(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key != "first"}


def confidence_of(entry: dict) -> float:
    """The confidence of an entry's first caption; its score if the model has no confidence."""
    return entry.get("confidence", entry["score"])
