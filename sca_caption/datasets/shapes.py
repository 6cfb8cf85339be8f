"""Generated images of one or two coloured shapes with five captions each: a data set without a download.

A Scene describes an image; `draw` renders it and `captions` describes it in words. A scene depends on a seed and an index
alone, so images are generated on demand and not stored. `instances` returns the box and the mask of each shape.
"""

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96  # pixels, default width and height of an image
SUPERSAMPLING = 3  # each pixel is the mean of SUPERSAMPLING x SUPERSAMPLING drawn pixels
COLOURS = {
    "red": (214, 40, 40), "green": (34, 150, 70), "blue": (35, 80, 205), "yellow": (245, 205, 40),
    "purple": (135, 50, 165),
}  # fmt: skip
KINDS = ("circle", "square", "triangle")
SIZES = {"small": 0.11, "large": 0.21}  # half the width of a shape, as a fraction of the image's width
BACKGROUNDS = {"white": (250, 250, 250), "grey": (165, 165, 165), "black": (20, 20, 20)}
POSITIONS = {  # centre of a single shape: x, y as fractions of the image's width
    "at the top": (0.5, 0.27), "at the bottom": (0.5, 0.73), "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5), "in the middle": (0.5, 0.5),
}  # fmt: skip
RELATIONS = {  # of the first shape to the second: direction of the first from the image's centre
    "above": (0, -1), "below": (0, 1), "to the left of": (-1, 0), "to the right of": (1, 0),
}  # fmt: skip
INVERSE = {
    "above": "below", "below": "above",
    "to the left of": "to the right of", "to the right of": "to the left of",
}  # fmt: skip
CLASSES = tuple(sorted(f"{colour} {kind}" for colour in COLOURS for kind in KINDS))  # for classification


@dataclass(frozen=True)
class Shape:
    """One shape of a scene. `short` and `full` are its noun phrases in captions."""

    kind: str
    colour: str
    size: str
    centre: tuple[float, float]  # x, y as fractions of the image's width

    @property
    def short(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def full(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """The content of an image."""

    shapes: tuple[Shape, ...]  # one or two
    background: str
    where: str  # a key of POSITIONS for one shape, of RELATIONS for two
    noise: int  # seed of the choice of captions and of the exact colours


def scene(seed: int, index: int) -> Scene:
    """Return scene number `index` of the data set with this seed."""
    rng = random.Random(f"shapes/{seed}/{index}")
    background = rng.choice(list(BACKGROUNDS))
    kinds = [rng.choice(KINDS) for _ in range(2)]
    colours = rng.sample(list(COLOURS), 2)
    sizes = [rng.choice(list(SIZES)) for _ in range(2)]

    def near(x: float, y: float) -> tuple[float, float]:
        return x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04)

    if rng.random() < 0.4:
        where = rng.choice(list(POSITIONS))
        centres = [near(*POSITIONS[where])]
    else:
        where = rng.choice(list(RELATIONS))
        x, y = RELATIONS[where]
        centres = [near(0.5 + 0.24 * x, 0.5 + 0.24 * y), near(0.5 - 0.24 * x, 0.5 - 0.24 * y)]
    shapes = tuple(map(Shape, kinds, colours, sizes, centres))  # as many as centres
    return Scene(shapes, background, where, rng.randrange(2**31))


def labelled_scene(seed: int, index: int) -> Scene:
    """Return scene number `index` with a single shape, of class `CLASSES[index % len(CLASSES)]`."""
    rng = random.Random(f"shapes/labelled/{seed}/{index}")
    colour, kind = CLASSES[index % len(CLASSES)].split()
    where = rng.choice(list(POSITIONS))
    x, y = (c + rng.uniform(-0.04, 0.04) for c in POSITIONS[where])
    shape = Shape(kind, colour, rng.choice(list(SIZES)), (x, y))
    return Scene((shape,), rng.choice(list(BACKGROUNDS)), where, rng.randrange(2**31))


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """Render a scene as an RGB image of `size` x `size` pixels."""
    rng = random.Random(scene.noise)
    width = size * SUPERSAMPLING
    shade = rng.randint(-12, 5)
    image = Image.new("RGB", (width, width), tuple(level + shade for level in BACKGROUNDS[scene.background]))
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        colour = tuple(min(255, max(0, level + rng.randint(-12, 12))) for level in COLOURS[shape.colour])
        _paint(canvas, shape, width, colour)
    return image.resize((size, size), Image.Resampling.BOX)


def _paint(canvas: ImageDraw.ImageDraw, shape: Shape, width: int, fill: int | tuple[int, ...]) -> None:
    """Draw a shape on a canvas of `width` x `width` pixels."""
    x, y, r = shape.centre[0] * width, shape.centre[1] * width, SIZES[shape.size] * width
    if shape.kind == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape.kind == "square":
        r *= 0.9
        canvas.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    else:
        corners = (math.radians(angle) for angle in (-90, 30, 150))
        y, r = y + r / 5, 1.15 * r
        canvas.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in corners], fill=fill)


@dataclass(frozen=True, eq=False)
class Instance:
    """The visible part of one shape of an image, for detection and segmentation.

    label: index in CLASSES. box: x1, y1, x2, y2 in pixels, the smallest that contains the mask; x2 and y2 are exclusive.
    mask: bool (size, size), the pixels that show more of the shape than of another shape or the background.
    """

    label: int
    box: tuple[int, int, int, int]
    mask: np.ndarray


def instances(scene: Scene, size: int = SIZE) -> list[Instance]:
    """Return the visible shapes of `draw(scene, size)` in the order of drawing. Their masks are disjoint.

    A later shape hides the earlier ones below it. A shape without any pixel is left out.
    """
    width = size * SUPERSAMPLING
    owners = Image.new("L", (width, width))  # number of the shape that each sample shows, 0: background
    canvas = ImageDraw.Draw(owners)
    for number, shape in enumerate(scene.shapes, 1):
        _paint(canvas, shape, width, number)
    samples = np.asarray(owners).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING)
    shown = np.stack([(samples == number).sum((1, 3)) for number in range(len(scene.shapes) + 1)]).argmax(0)
    found = []
    for number, shape in enumerate(scene.shapes, 1):
        mask = shown == number
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        if len(rows):
            box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
            found.append(Instance(CLASSES.index(shape.short), box, mask))
    return found


def captions(scene: Scene) -> tuple[str, ...]:
    """Return five different captions of a scene. All of them are correct."""
    first, *rest = scene.shapes
    if not rest:
        sentences = [
            f"a {first.full} {scene.where}",
            f"a {first.full} on a {scene.background} background",
            f"there is a {first.short} {scene.where}",
            f"a {first.short} {scene.where} of the picture",
            f"the picture shows a {first.full}",
            f"a {scene.background} picture with a {first.short} {scene.where}",
            f"one {first.full} is {scene.where}",
        ]
    else:
        second, inverse = rest[0], INVERSE[scene.where]
        sentences = [
            f"a {first.full} {scene.where} a {second.full}",
            f"a {first.short} {scene.where} a {second.short}",
            f"a {second.full} {inverse} a {first.full}",
            f"a {second.short} is {inverse} a {first.short}",
            f"there is a {first.short} {scene.where} a {second.short}",
            f"the {first.full} is {scene.where} the {second.short}",
            f"a {first.short} and a {second.short} on a {scene.background} background",
        ]
    return tuple(random.Random(scene.noise).sample(sentences, 5))


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A generated image. Calling it returns the bytes of a PNG file."""

    seed: int
    index: int
    size: int = SIZE

    def __call__(self) -> bytes:
        buffer = io.BytesIO()
        draw(scene(self.seed, self.index), self.size).save(buffer, "PNG")
        return buffer.getvalue()


def sample(count: int, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Return `count` (image, caption) pairs. None of them is in the data set of the same seed."""
    scenes = [scene(seed, -1 - index) for index in range(count)]
    return [(draw(one), captions(one)[0]) for one in scenes]
