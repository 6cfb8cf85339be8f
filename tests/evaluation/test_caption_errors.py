"""Main nouns of captions, plurals and synonyms, and captions that contradict references."""

import pytest

from sca_caption.evaluation.caption_errors import (
    join_compounds,
    main_noun,
    names_main_noun,
    same_noun,
    singular,
    wrong_colour,
    wrong_gender,
    wrong_number,
)

CAPTIONS = {
    "a man riding a wave on top of a surfboard": "man",
    "the man smiles wearing a green neck tie": "man",
    "man riding an elephant into water": "man",
    "there is a bus on the side of the road": "bus",
    "this is a man riding a horse": "man",
    "a group of people sitting around a table": "person",
    "some people in the woods": "person",
    "a couple of men on a bench": "man",
    "a couple on a bench": "couple",
    "two women and a man": "woman",
    "a tennis player on the court": "player",
    "a male baseball player is swinging": "player",
    "a musician plays his guitar": "musician",
    "a snow boarder 's feet in the snow": "foot",
    "a herd of cows lies on the field": "cow",
    "cows lie in hay near stalls": "cow",
    "two giraffe stand near a fence": "giraffe",
    "a cat sits in a sink": "cat",
    "the cat sits in a sink": "cat",
    "a black and white cat is sleeping": "cat",
    "a red and white plane": "plane",
    "a small smiling dog running in grass": "dog",
    "a bird flies over the water": "bird",
    "a plate of food on a table": "plate",
    "a close up of a plate of food": "plate",
    "a close-up picture of two zebras": "zebra",
    "an image of a danger sign": "sign",
    "a photo showing a train": "train",
    "a picture on a wall": "picture",
    "a slice of pizza on a plate": "pizza",
    "a bunch of bananas": "banana",
    "an orange on a plate": "orange",
    "an orange and white cat": "cat",
    "a pile of oranges": "orange",
    "a night stand next to a bed": "stand",
    "a tagged traffic light displays a red arrow": "light",
    "a stop sign on a pole": "sign",
    "a red fire hydrant on a sidewalk": "hydrant",
    "a parking meter on the street": "meter",
    "a living room filled with furniture": "room",
    "a kitchen with a stove and a sink": "kitchen",
    "a large building with a clock tower": "building",
    "a table topped with donuts": "table",
    "a cell phone leaning against a cup": "phone",
    "a hot dog on a bun": "hotdog",
    "two teddy bears on a bed": "teddybear",
    "an air plane in the sky": "airplane",
    "a city bus parked on the street": "bus",
    "a glass bowl full of fruit": "bowl",
    "a person wearing a hat": "person",
    "on a bed": "bed",
    "in the": None,
    "": None,
}


@pytest.mark.parametrize(("caption", "noun"), CAPTIONS.items())
def test_main_nouns(caption, noun):
    assert main_noun(join_compounds(caption.split())) == noun


PLURALS = """
    people person men man women woman firemen fireman children child feet foot geese goose knives knife buses bus
    benches bench dishes dish boxes box glasses glass ponies pony cookies cookie ties tie shoes shoe potatoes potato
    canoes canoe houses house horses horse giraffes giraffe skis ski zebras zebra bus bus grass grass tennis tennis
    sheep sheep gas gas dog dog
"""


def test_singulars():
    words = PLURALS.split()
    assert [singular(word) for word in words[::2]] == words[1::2]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cat", "cat", True),
        ("couch", "sofa", True),
        ("motorbike", "bike", True),
        ("bike", "bicycle", True),
        ("motorcycle", "bicycle", False),
        ("plane", "airplane", True),
        ("man", "person", True),
        ("surfer", "man", True),
        ("man", "boy", True),
        ("woman", "lady", True),
        ("girl", "kid", True),
        ("man", "woman", False),
        ("girl", "boy", False),
        ("dog", "person", False),
    ],
)
def test_same_nouns(one, other, same):
    assert same_noun(one, other) is same and same_noun(other, one) is same


def words(*texts):
    return [join_compounds(text.split()) for text in texts]


def test_main_nouns_in_references():
    references = words("a lady on a sofa", "women sitting")
    assert [names_main_noun(each, references) for each in words("a person", "two couches", "a man", "a", "dogs")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("a man runs", ["a woman", "a person"], True),
        ("a man runs", ["a person on her bike"], True),
        ("a girl", ["a giraffe in his pen"], False),
        ("two girls", ["boys", "a guy"], True),
        ("a man runs", ["a woman", "a man"], False),
        ("a man runs", ["a person", "people"], False),
        ("a person", ["a woman"], False),
        ("a man and a woman", ["two women"], True),
        ("a man and a woman", ["a woman and a man"], False),
        ("a person with his dog", ["a woman"], False),
    ],
)
def test_wrong_gender(caption, references, wrong):
    assert wrong_gender(caption.split(), words(*references)) is wrong


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("two dogs", ["three dogs", "three brown dogs", "dogs"], True),
        ("two dogs", ["three dogs", "3 dogs"], True),
        ("2 dogs", ["two dogs", "two dogs"], False),
        ("two dogs", ["three dogs", "dogs"], False),
        ("two dogs", ["three dogs", "four dogs"], False),
        ("two dogs", ["three dogs", "three dogs", "two dogs"], False),
        ("two dogs", ["three dogs", "three dogs with a pair of balls"], False),
        ("two dogs and three cats", ["three cats", "three cats"], True),
        ("dogs", ["three dogs", "three dogs"], False),
    ],
)
def test_wrong_numbers(caption, references, wrong):
    assert wrong_number(caption.split(), words(*references)) is wrong


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("a red bus", ["a blue bus", "a bus"], True),
        ("a red bus", ["a bus", "the bus"], False),
        ("a red bus", ["a blue bus", "a red one"], False),
        ("a gray cat", ["a grey cat"], False),
        ("a red and blue bus", ["a blue bus"], True),
        ("a bus", ["a blue bus"], False),
    ],
)
def test_wrong_colours(caption, references, wrong):
    assert wrong_colour(caption.split(), words(*references), ["red", "blue", "gray", "grey"]) is wrong
