"""The gallery: one HTML file with all photographs and captions, which can be searched and needs no network.

The template is in gallery_page/. The page holds its data as JSON with one entry per line. An entry has the fields of
other results files and

    link        the photograph's URL, relative to the page
    thumbnail   a small WebP image as a data: URL
    attention   spatial attention at each word, if the model has it:
                {"words": [T texts], "shape": [T, H, W], "peak": the weight that 255 stands for, as a multiple of uniform
                 attention, "alpha": T * H * W bytes in base64, "cropped": whether the model saw the central square only}
"""

import base64
import hashlib
import io
import itertools
import json
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sca_caption.inference import confidence_scale
from sca_caption.inference.journal import require_same
from sca_caption.inference.results_formats import ResultsFormat

if TYPE_CHECKING:
    import numpy as np

    from sca_caption.images import Transform
    from sca_caption.inference.captioning import CaptionPipeline
    from sca_caption.inference.captions import Result
    from sca_caption.models.attention_trace import Trace
    from sca_caption.vocab import Vocabulary


PAGES = Path(__file__).with_name("gallery_page")
SIDE, QUALITY = 256, 60  # of thumbnails: longer side in pixels, WebP quality
ENTRIES, ABOUT = (
    '<script type="application/json" id="entries">\n',
    '<script type="application/json" id="about">',
)
END = "</script>\n"


@dataclass
class Photograph:
    """An image file, with its thumbnail as WebP once it has been read."""

    path: Path
    thumbnail: bytes = b""
    cropped: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


def read(photograph: Photograph, transform: "Transform") -> "np.ndarray":
    """Read the photograph at model size, uint8 (S, S, 3), and set its thumbnail."""
    from sca_caption.images import load_with_thumbnail

    pixels, small = load_with_thumbnail(photograph.path, transform, SIDE)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=QUALITY, method=2)
    photograph.thumbnail, photograph.cropped = stream.getvalue(), transform.mode == "crop"
    return pixels


class Gallery(ResultsFormat):
    """The page. `least_confident_first` sets how it is sorted when opened; entries keep the photographs' order."""

    sort_key = None

    @staticmethod
    def stream(
        pipeline: "CaptionPipeline", paths: Iterable[Path], traced: bool = False
    ) -> Iterable["Result"]:
        traced = traced or len(pipeline.networks) == 1  # an ensemble has one trace per network
        photographs = map(Photograph, paths)
        return pipeline.stream(photographs, partial(read, transform=pipeline.transform), traced=traced)

    def entry(self, image_id: int, result: "Result") -> dict:
        entry = super().entry(image_id, result)
        entry["link"] = link(result.item.path, self.path.parent)
        entry["thumbnail"] = f"data:image/webp;base64,{base64.b64encode(result.item.thumbnail).decode()}"
        attention = result.trace and attention_of(result.trace, result.captions[0].tokens, self.words)
        if attention:
            entry["attention"] = attention | ({"cropped": True} if result.item.cropped else {})
        return entry

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        style, script = (
            (PAGES / f"gallery.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js")
        )
        style, script = confidence_scale.style() + style, confidence_scale.script(module=False) + script
        page = (PAGES / "gallery.html").read_text(encoding="utf-8")
        page = page.replace("{{style}}", style).replace("{{style hash}}", hash_of(style))
        page = page.replace("{{script hash}}", hash_of(script))
        before, after = page.split("{{data}}\n")
        file.write(before + ENTRIES)
        for entry in entries:
            file.write(in_script(entry) + "\n")
        about = {
            "settings": self.settings,
            "failed": list(failed),
            "least_confident_first": self.least_confident_first,
        }
        file.write(END + ABOUT + in_script(about) + END + after.replace("{{script}}", script))

    def read(self) -> Iterator[dict]:
        with open(self.path, encoding="utf-8") as file:
            about = next((line for line in file if line.startswith(ABOUT)), "")
            about = json.loads(about.removeprefix(ABOUT).removesuffix(END))
            require_same(self.path, about["settings"], self.settings)
            file.seek(0)
            for line in file:
                if line == ENTRIES:
                    break
            for line in file:
                if line.startswith(END.strip()):
                    return
                yield json.loads(line)


def attention_of(trace: "Trace", tokens: Sequence[int], words: "Vocabulary") -> dict | None:
    """Spatial attention of the last layer that has it, as 8-bit levels in base64; None if no layer has it."""
    import numpy as np

    spatial = next((layer.spatial for layer in reversed(trace.layers) if layer.spatial is not None), None)
    if spatial is None or not spatial.size:
        return None
    peak = spatial.max().item()
    levels = np.round(spatial * (255 / peak)).astype(np.uint8)  # (T, H, W)
    texts = [words.decode(tokens[:count]) for count in range(len(tokens) + 1)]
    return {
        "words": [text[len(before) :] for before, text in itertools.pairwise(texts)],
        "shape": list(levels.shape),
        "peak": round(peak * spatial[0].size, 3),
        "alpha": base64.b64encode(levels.tobytes()).decode(),
    }


def link(path: Path, folder: Path) -> str:
    """The URL of a file in a page in `folder`. Names may have any bytes."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return Path(path).absolute().as_uri()
    return urllib.parse.quote(os.fsencode(relative.replace(os.sep, "/")))


def in_script(value: dict) -> str:
    """JSON for a script element: "<" is escaped, so that no string (a file name, say) can close the element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def hash_of(text: str) -> str:
    """The hash by which a Content-Security-Policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
