"""The maps of a frozen CNN, computed once before training instead of once per epoch."""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sca_caption.datasets.mixture import Mixture
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.batches import split_batches

BATCH_SIZE = 16


class FeatureCache:
    """A data set whose images are replaced by the CNN's maps, float16 in memory, as if it had been preprocessed so.

    Everything else is that of `data`. Memory: the number of images times the size of the maps (57 kB for 352 channels of
    9 x 9 positions).
    """

    encoding = "features"

    def __init__(self, data: Mixture, model: SCACNN, rows: list[int], quiet: bool = False):
        self.data = data
        self._position = {row: i for i, row in enumerate(rows)}
        self._maps: list[np.ndarray] = []
        model.eval()
        device = model.mean.device
        with (
            torch.inference_mode(),
            tqdm(total=len(rows), desc="CNN", unit="img", disable=quiet or None) as bar,
        ):
            for number, batch in enumerate(split_batches(rows, BATCH_SIZE)):
                pixels = torch.from_numpy(np.stack([data.image(row) for row in batch])).permute(0, 3, 1, 2)
                maps = [x.half().cpu().numpy() for x in model.encode(pixels.to(device))]
                if not self._maps:
                    self._maps = [np.empty((len(rows), *x.shape[1:]), np.float16) for x in maps]
                for cached, x in zip(self._maps, maps, strict=True):
                    cached[number * BATCH_SIZE :][: len(x)] = x
                bar.update(len(batch))

    def features(self, index: int) -> tuple[np.ndarray, ...]:
        """The CNN's maps of image `index`."""
        return tuple(cached[self._position[index]] for cached in self._maps)

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        if name == "data":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.data, name)
