"""Words that captions keep from: the regression at its optimum, the rules written out, searches against closed words."""

import dataclasses

import numpy as np
import pytest
import torch
from sca_caption.cli.fit_presence import RIDGE, learnt, main
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import average
from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.decoding import stepper
from sca_caption.decoding.sampling import draw
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.consensus import powers
from sca_caption.guidance.hallucination import SUBJECTS, Rule, Subjects, closed, fitted, rules_of
from sca_caption.guidance.novel_objects import Namer
from sca_caption.guidance.object_classifier import original
from sca_caption.images import Transform, fit
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training import weight_soup
from sca_caption.vocab import Vocabulary
from tests.guidance.test_novel_objects import NOUNS, VOCABULARY, Seen, sure_of
from tests.guidance.test_object_classifier import network, speaking  # noqa: F401 (a fixture)
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import photo, record, write
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner

WORDS = Vocabulary(TINY_WORDS)
PEOPLE, DOGS, RED = {"man", "woman"}, {"dog"}, {"red"}  # of these words
ALWAYS, NEVER = 20.0, -20.0  # logits


def fond() -> SCACNN:
    """A captioner that likes to speak of people, dogs and red."""
    model = tiny_captioner()
    model.word.bias.data[WORDS.encode(sorted(PEOPLE | DOGS | RED))] += 2
    return model


def knowing(bias: list[float], names=("people", "dogs", "red")) -> Checkpoint:
    """The same, to whom all images have the same subjects."""
    model = fond()
    subjects = Subjects((model.backbone.channels[0],), names)
    subjects.classifier.weight.zero_()
    subjects.classifier.bias.copy_(torch.tensor(bias))
    return Checkpoint(model, WORDS, Transform(32), subjects=subjects)


def pixels(count: int) -> torch.Tensor:
    return stack([fit(photo(number), Transform(32)) for number in range(count)])


def said(captions) -> list[set[str]]:
    return [set(" ".join(each.text for each in image).split()) for image in captions]


# ---- what is learnt --------------------------------------------------------------------------------------------------


def examples(images: int = 90, channels: int = 5):
    """Features, and three references each, in which people and dogs come by chance."""
    made = np.random.default_rng(0)
    features = torch.from_numpy(made.random((images, channels))).float()
    texts = ["a man runs", "two dogs run", "grass", "a woman and a dog", "water"]
    return features, [[texts[i].split() for i in made.integers(0, 5, 3)] for _ in range(images)]


def test_at_its_optimum_the_gradient_is_zero():
    features, references = examples()
    found = fitted(features, references, 0.01, [5])
    assert found.names == ("people", "dogs") and not any(each.requires_grad for each in found.parameters())
    x = (features - features.mean(0)).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    words = [[{"man", "woman"} & set(text) for text in several] for several in references]
    dogs = [[{"dog", "dogs"} & set(text) for text in several] for several in references]
    y = np.array(
        [[np.mean(list(map(bool, each))) for each in both] for both in zip(words, dogs, strict=True)]
    )
    maps = (features**2)[:, :, None, None].expand(-1, -1, 2, 3)  # whose powers are the features
    error = found(maps).double().numpy() - y
    weights = found.classifier.weight.double().numpy().T
    assert np.abs(x.T @ error / len(x) + 2 * 0.01 * weights).max() < 1e-5
    assert np.abs(error.mean(0)).max() < 1e-5 and np.abs(weights).max() > 0.1


def test_it_reads_both_networks():
    features, references = examples()
    found = fitted(features, references, 1e-3, [2, 3])
    maps, seen = (features[:, :2] ** 2)[:, :, None, None], features[:, 2:] ** 2
    parts = [part - part.mean(0) for part in features.split((2, 3), 1)]
    x = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], 1) / 2**0.5
    wanted = 1 / (1 + torch.exp(-(x @ found.classifier.weight.T + found.classifier.bias)))
    assert found.reads_objects
    assert_close(found(maps, seen), wanted, rtol=1e-4, atol=1e-5)


def test_what_too_few_images_have_or_lack_is_not_learnt():
    features = torch.rand(60, 4)
    cases = {"a dog": 60, "a man": 60, "grass": 60}
    assert fitted(features, [[text.split()] for text in cases for _ in range(20)], 1e-3, [4]).names == (
        "people",
        "dogs",
    )
    few = [["red", "grass"]] * 41 + [["man"]] * 19
    assert fitted(features, [[text] for text in few], 1e-3, [4]) is None
    assert fitted(features, [[["dog"]]] * 20 + [[["man"]]] * 21 + [[["dog"]]] * 19, 1e-3, [4]).names == (
        "people",
        "dogs",
    )


def test_nobody_is_a_dog_nor_a_colour():
    people, dogs, *colours = (each.words for each in SUBJECTS.values())
    assert len(people | dogs | set().union(*colours)) == sum(map(len, (people, dogs, *colours)))
    assert {"grey"} in colours and {"dog", "puppies"} <= dogs and {"person", "children", "skier"} <= people
    assert all(word == word.lower().strip() and word.isalpha() for word in people | dogs)


# ---- what is closed --------------------------------------------------------------------------------------------------


def test_of_other_things_words_below_the_share_are_closed():
    shares = torch.tensor(
        [[0.5, 0.05, 0], [0.1, 0.9, 0], [0.34, 0.09, 0.2], [0.35, 0.0, 0.0], [0.0, 0.0, 0.0]]
    )
    rules = [Rule((4, 6), 0.35, True), Rule((5,), 0.1, True), Rule((7,), 0.1, False)]
    found = closed(shares, rules, 9, [[], [], [], [], [[6, 8], [5]]])
    assert [row.nonzero().flatten().tolist() for row in found] == [[], [], [4, 5, 6], [], [4, 7]]
    people, dogs, red = rules_of(Subjects((1,), ("people", "dogs", "red")), WORDS)
    assert people.main and dogs.main and not red.main
    assert {WORDS.words[i] for i in people.words} == PEOPLE and {WORDS.words[i] for i in dogs.words} == DOGS
    assert (people.least, dogs.least) == (SUBJECTS["people"].least, SUBJECTS["dogs"].least)


@pytest.mark.parametrize(("bias", "kept"), [
    ([NEVER, NEVER, ALWAYS], PEOPLE | DOGS), ([NEVER, NEVER, NEVER], PEOPLE | DOGS | RED),
    ([ALWAYS, NEVER, NEVER], set()), ([NEVER, ALWAYS, NEVER], set()),
])  # fmt: skip
def test_a_search_goes_as_if_the_model_had_no_such_words(bias, kept):
    search = SearchConfig(beam_size=4, num_captions=4)
    batch, given = pixels(8), knowing(bias)
    found = CaptionPipeline.load(given, search=search).caption_batch(batch)
    without = dataclasses.replace(given, model=fond(), subjects=None)
    plain = CaptionPipeline.load(without, search=search).caption_batch(batch)
    ids = WORDS.encode(sorted(kept))
    step = without.model.step

    def silent(tokens, state):
        logits, state = step(tokens, state)
        logits[:, ids] = -torch.inf
        return logits, state

    without.model.step = silent
    wanted = CaptionPipeline.load(without, search=search).caption_batch(batch)
    assert [[(each.text, each.score) for each in image] for image in found] == [
        [(each.text, each.score) for each in image] for image in wanted
    ]
    assert not set.union(*said(found)) & kept
    assert (found != plain) == bool(kept) and set.union(*said(plain)) >= kept
    (alone,) = CaptionPipeline.load(given, search=search).caption_batch(batch[2:3])
    assert [each.text for each in alone] == [each.text for each in found[2]]
    open_ = CaptionPipeline.load(given, search=search, objects=False).caption_batch(batch)
    assert open_ == plain == CaptionPipeline.load(given).with_search(search, objects=False).caption_batch(batch)


def test_images_of_a_batch_are_closed_each_for_itself():
    given, batch = knowing([-5.0, -5.0, -5.0]), pixels(8)
    with torch.inference_mode():
        features = powers(given.model.encode(batch)[0])
    given.subjects.centre.copy_(features.mean(0))
    given.subjects.classifier.weight[:] = 30 * torch.nn.functional.normalize(features[0] - features[1], dim=0)
    with torch.inference_mode():
        shares = given.subjects(given.model.encode(batch)[0])
    others = (shares < torch.tensor([SUBJECTS[name].least for name in given.subjects.names])).all(1)
    assert 2 <= others.sum() <= 6
    search = SearchConfig(beam_size=5, num_captions=5)
    found = said(CaptionPipeline.load(given, search=search).caption_batch(batch))
    for words, other in zip(found, others, strict=True):
        assert bool(words & (PEOPLE | DOGS | RED)) != other


def test_what_the_user_wants_is_said():
    batch = pixels(3)
    (first, *others) = said(CaptionPipeline.load(knowing([NEVER] * 3), force_words=["dog"]).caption_batch(batch))
    assert all("dog" in words and not words & PEOPLE for words in [first, *others])


def test_drawn_captions_keep_from_them_too():
    given, batch = knowing([NEVER] * 3), pixels(4)
    search, sampling = SearchConfig(num_captions=7), SamplingConfig(temperature=3.0, top_p=1.0)
    assert (
        not set.union(*said(CaptionPipeline.load(given, search=search, sampling=sampling).caption_batch(batch)))
        & PEOPLE
    )
    model = given.model
    state = model.start(model.encode(batch))
    free = draw(model, state, num_captions=7, temperature=3.0, top_p=1.0)
    assert {WORDS.words[i] for image in free for each in image for i in each.tokens} >= PEOPLE


@torch.inference_mode()
def test_a_noun_that_is_seen_is_named_all_the_same():
    """What is kept silent stays so in the second search, but for the noun itself."""
    namer = Namer(
        tiny_captioner(len(VOCABULARY)).requires_grad_(False), VOCABULARY, Seen().requires_grad_(False), NOUNS
    )
    namer.limits = dataclasses.replace(namer.limits, room=1e9)
    batch = torch.randint(256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    state = namer.model.start(namer.model.encode(batch))
    found = [[stepper.Hypothesis(VOCABULARY.encode(["water"]), -1.0, -1.0, True)]] * 6

    def named(silent: torch.Tensor | None) -> list[list[str]]:
        seen = torch.tensor([sure_of(0)] * 6)
        better = namer.improve(
            found, state, seen, [[]] * 6, silent=silent, beam_size=3, min_length=4, max_length=8
        )
        return [namer.vocabulary.decode(each[0].tokens).split() for each in better]

    free = named(None)
    others = sorted({word for words in free for word in words} - {"dog", "dogs"})[::2]
    quiet = torch.zeros(6, len(VOCABULARY), dtype=torch.bool)
    quiet[:3, VOCABULARY.encode(["dog", "dogs", *others])] = True
    kept = named(quiet)
    assert free[3:] == kept[3:] and any(set(words) & set(others) for words in free[:3])
    for words in kept[:3]:
        assert {"dog", "dogs"} & set(words) and not set(words) & set(others)


# ---- in a checkpoint -------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    texts = ["a man runs", "a dog sits on grass", "red water", "blue water", "the cat runs"]
    records = [record(i, "train", [texts[i % 5], texts[(i + 1) % 5]]) for i in range(60)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    return CaptionDataset(tmp_path / "made.h5")


def test_the_program_learns_from_the_train_split(tiny_checkpoint, data, tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    assert main([str(path), "--data", str(data.path)]) == 0
    assert "learnt people, dogs, red, blue from the references of 60 images" in capsys.readouterr().out
    before, after = checkpoint.load(tiny_checkpoint), checkpoint.load(path)
    for name, value in before.model.state_dict().items():
        assert_close(after.model.state_dict()[name], value, rtol=0, atol=0)
    rows = data.indices("train").tolist()
    with torch.inference_mode():
        maps = before.model.encode(stack([data.image(row) for row in rows]))
    references = [[ptb_tokenize(text) for text in data.references(row)] for row in rows]
    wanted = fitted(powers(maps[0]), references, RIDGE, [64])
    assert_close(after.subjects(maps[0]), wanted(maps[0]), rtol=1e-3, atol=1e-3)
    for dtype in ("float16", "int8"):
        checkpoint.save(tmp_path / "other.safetensors", after, dtype)
        other = checkpoint.load(tmp_path / "other.safetensors").subjects
        assert other.names == ("people", "dogs", "red", "blue") and other.channels == (64,)
        assert_close(other(maps[0]), wanted(maps[0]), rtol=0.02, atol=0.02)
        checkpoint.add_subjects(tmp_path / "other.safetensors", wanted)  # once more, in the file's own form
        assert_close(checkpoint.load(tmp_path / "other.safetensors").subjects(maps[0]), other(maps[0]))
    assert weight_soup.average([path], [1.0]).subjects is not None
    assert weight_soup.average([path, path], [1.0, 1.0]).subjects is None
    batch = pixels(1)
    assert CaptionPipeline.load([path, path]).caption_batch(batch) == CaptionPipeline.load(
        [tiny_checkpoint] * 2
    ).caption_batch(batch)


def test_photographs_of_nothing_but_people_teach_nothing(tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    write(
        Source("made", "made for a test", [record(i, "train", ["a man"]) for i in range(30)]),
        tmp_path / "made.h5",
    )
    assert main([str(path), "--data", str(tmp_path / "made.h5")]) == 2
    assert "speak of people, or of dogs" in capsys.readouterr().err
    assert path.read_bytes() == tiny_checkpoint.read_bytes()


def test_other_objects_make_it_useless(network, data, tmp_path, capsys):  # noqa: F811
    words = Vocabulary(["a", "dog", "man", "cat", "on", "runs"])
    model = speaking(network, words, 0)
    objects = original(lite_weights(), model.backbone, size=64)
    path, other = tmp_path / "best.pt", tmp_path / "other"
    checkpoint.save(path, Checkpoint(model, words, Transform(64), objects=objects))
    rows = data.indices("train").tolist()
    checkpoint.add_subjects(path, learnt(checkpoint.load(path), data, rows, torch.device("cpu")))
    assert checkpoint.load(path).subjects.channels == (320, 1280)
    pipeline, batch = CaptionPipeline.load(path), stack([fit(photo(number), Transform(64)) for number in range(6)])
    pipeline.namer = None  # it may name what it sees all the same
    with torch.inference_mode():
        encoded, seen = pipeline.encode(batch)
    silent = closed(pipeline.subjects(encoded[0], seen), pipeline.rules, len(words), [[]] * 6)
    for captions, closed_ in zip(pipeline.caption_batch(batch), silent, strict=True):
        assert not closed_[list(captions[0].tokens)].any()
    CaptionPipeline.load(path).caption_batch(
        tuple(each.float() for each in encoded)
    )  # of stored features nothing is known
    torch.save(lite_weights("efficientnet_lite1"), tmp_path / "lite.pth")
    assert average.main([str(other), str(path), "--objects", str(tmp_path / "lite.pth")]) == 0
    assert checkpoint.load(other).subjects is None and "learn_subjects" in capsys.readouterr().err
