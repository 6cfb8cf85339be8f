"""Two data files to be mixed: coloured squares and fewer animals, both also with captions without photographs."""

from collections.abc import Sequence
from pathlib import Path

from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.datasets.sources.records import Source
from sca_caption.datasets.sources.texts import Texts
from tests.helpers.made_photos import record, write
from tests.helpers.training_runs import source

ANIMALS = {
    "train": [
        ["a dog runs on grass", "the dog runs"],
        ["two cats sleep"],
        ["a red bird", "a bird on a tree", "the bird sings"],
    ],
    "val": [["a dog sleeps", "the dog sleeps on grass"], ["two birds sing", "birds on a tree"]],
}
# Per file and photograph that is not there, its captions.
TEXTS = {
    "squares": [["a purple square", "one purple and red square"], ["orange squares"]],
    "animals": [["a cow stands on grass", "the cow eats", "a cow eats grass"]],
}


def texts_of(groups: Sequence[Sequence[str]]) -> Texts:
    """Captions without photographs, each inner list those of one photograph."""
    captions = [caption for several in groups for caption in several]
    return Texts("made", captions, [i for i, several in enumerate(groups) for _ in several], {})


def animals() -> Source:
    """Three training and two validation images. One of the training images has a single caption."""
    captions = [(split, texts) for split, several in ANIMALS.items() for texts in several]
    records = [record(100 + i, split, texts) for i, (split, texts) in enumerate(captions)]
    return Source("animals", "made for a test", records)


def write_two(folder: Path) -> list[Path]:
    """Write squares.h5 and animals.h5."""
    paths = []
    for name, given in (("squares", source()), ("animals", animals())):
        paths.append(folder / f"{name}.h5")
        write(given, paths[-1], encoding="raw", texts=texts_of(TEXTS[name]), min_count_texts=1)
    return paths


def mixture_of(paths: Sequence[Path]) -> Mixture:
    return Mixture([CaptionDataset(path) for path in paths])
