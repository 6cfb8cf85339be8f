"""Result files of evaluate.py."""

import json
from pathlib import Path
from typing import Any

from sca_caption.runtime.atomic_files import atomic_write


def rounded(numbers: Any) -> Any:
    """Numbers, in whatever dicts and tuples, to four decimals."""
    if isinstance(numbers, dict):
        return {name: rounded(each) for name, each in numbers.items()}
    if isinstance(numbers, tuple):
        return [rounded(each) for each in numbers]
    return numbers if numbers is None else round(numbers, 4)


def write(path: Path, content: dict) -> None:
    with atomic_write(path) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        # Unpaired surrogates are not valid UTF-8; they are written as \udXXX, which JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
