"""The table of nouns, and what counts as a mention."""

import pytest

from sca_caption.guidance.object_nouns import CLASSES, Noun, read_nouns
from sca_caption.runtime.torchvision_compat import torchvision
from tests.helpers.made_photos import message


def table(tmp_path, text: str):
    path = tmp_path / "nouns.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table(tmp_path):
    path = table(
        tmp_path,
        "# said of it\nowl | owls | 3\n\n[animals]\ncat | cats, kitten | 0-1 4\n[]\nbread | -, loaf | 2\n",
    )
    assert read_nouns(path, classes=5) == (
        Noun("", "owl", "owls", ("owl", "owls"), (3,)),
        Noun("animals", "cat", "cats", ("cat", "cats", "kitten"), (0, 1, 4)),
        Noun("", "bread", None, ("bread", "loaf"), (2,)),
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cat | cats", "is not noun | forms | classes; e.g."),
        ("cat | cats | one", "is not noun | forms | classes; e.g."),
        ("cat | cats | ", "needs a noun, and different classes from 0 to 4"),
        ("cat | cats | 4-5", "needs a noun, and different classes from 0 to 4"),
        ("cat | cats | 1 0-2", "needs a noun, and different classes from 0 to 4"),
        ("cat | cats,, kitten | 1", "needs a noun"),
        (" | cats | 1", "needs a noun"),
        ("owl | owls | 1", "'owl' has a line already"),
    ],
)
def test_lines_that_are_wrong(line, found, tmp_path):
    path = table(tmp_path, f"owl | owls | 3\n{line}\n")
    text = message(lambda: read_nouns(path, classes=5))
    assert text.startswith(f"{path}, line 2: ") and found in text


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a cat on a mat", True),
        ("two kittens", True),
        ("the polar bear's cub", True),
        ("cattle", False),
        ("a cat-like dog", False),
        ("a polar expedition meets a bear", False),
    ],
)
def test_a_mention_is_whole_words(caption, found):
    assert Noun("", "cat", "cats", ("cat", "cats", "kittens", "polar bear"), (1,)).is_in(caption) is found


@pytest.mark.parametrize(
    ("category", "nouns"),
    [
        ("tabby", {"cat"}),
        ("Persian cat", {"cat"}),
        ("golden retriever", {"dog"}),
        ("Pembroke", {"dog"}),
        ("espresso", {"cup of coffee", "cup", "plate of food"}),
        ("cock", {"rooster", "chicken", "bird"}),
        ("ice bear", {"polar bear", "bear"}),
        ("sax", {"saxophone"}),
        ("airliner", {"airplane"}),
        ("Granny Smith", {"apple", "fruit", "plate of food"}),
        ("street sign", {"sign"}),
        ("upright", {"piano"}),
        ("toilet tissue", set()),
        ("groom", set()),
    ],
)
def test_the_shipped_table_counts_as_torchvision_does(category, nouns):
    categories = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    index = categories.index(category)
    assert {noun.name for noun in read_nouns() if index in noun.classes} == nouns


def test_names_of_classes_are_under_their_nouns():
    """Where the name of a class is a noun of the table, the class is under it, but for words of two meanings."""
    categories = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(categories) == CLASSES
    by_name = {noun.name: noun for noun in read_nouns()}
    assert len(by_name) > 250
    wrong = [
        name
        for index, name in enumerate(categories)
        if name in by_name and index not in by_name[name].classes
    ]
    assert wrong == []
