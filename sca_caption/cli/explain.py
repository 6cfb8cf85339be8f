"""`caption.py --explain`: the figure that explains the caption of an image."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.cli.inputs import require_reread
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import ANIMATION_FORMAT, check_figure

if TYPE_CHECKING:
    from sca_caption.inference.captioning import CaptionPipeline
    from sca_caption.inference.captions import Result


FLAG, DATA_FLAG = "--explain", "--explain-data"


def check_explanation(path: Path, data: Path | None, images: Sequence[Path]) -> None:
    """Raise UserError for invalid flags before the model is loaded."""
    check_figure(path, FLAG, extra_formats=(ANIMATION_FORMAT,))
    if len(images) != 1:
        raise UserError(f"{FLAG} draws a single image, found {len(images)}; give one")
    require_reread(images[0], FLAG)
    if data:
        if path.suffix.lower() == ANIMATION_FORMAT:
            raise UserError(f"{DATA_FLAG} draws channels, which {ANIMATION_FORMAT} does not show; remove it")
        from sca_caption.datasets.hdf5_reader import CaptionDataset

        CaptionDataset(data)


class Drawing:
    """Draws the explanation of an image. `write` raises UserError if the file cannot be written."""

    def __init__(self, path: Path, pipeline: "CaptionPipeline", data: Path | None):
        self.path, self.pipeline, self.data = path, pipeline, data

    def write(self, index: int, result: "Result") -> None:
        if result.error:
            return
        from sca_caption.explain.explanation import explained

        examples = None
        if self.data:
            from tqdm import tqdm

            from sca_caption.datasets.hdf5_reader import CaptionDataset
            from sca_caption.explain.channel_patches import find_examples

            bar = partial(tqdm, desc="patches", unit="batch", disable=not sys.stderr.isatty(), leave=False)
            examples = find_examples(self.pipeline, CaptionDataset(self.data), progress=bar)
        assert result.trace is not None
        found = explained(self.pipeline, result.item, result.captions[0], result.trace, examples)
        found.save(self.path, FLAG)
