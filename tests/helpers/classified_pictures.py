"""A data set of four classes for tests: pictures whose class is their colour."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"apple": (200, 30, 30), "leaf": (30, 160, 40), "plum": (110, 30, 130), "sky": (90, 150, 230)}


def class_folders(root: Path, count: int = 10, size: tuple[int, int] = (40, 32)) -> Path:
    """root/CLASS/0.png ...: the class's colour with noise of its own in each picture."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-25, 26, (size[1], size[0], 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
