"""The hallucination mask: the regression at its optimum, the rules written out, searches against masked models."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import average, fit
from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.decoding.beam_search import beam_search
from sca_caption.decoding.rules import bad_endings
from sca_caption.decoding.sampling import draw
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.hallucination import (
    SUBJECTS,
    BanRule,
    HallucinationMask,
    PresenceClassifier,
    fit_presence,
)
from sca_caption.guidance.image_features import signed_sqrt_pool
from sca_caption.guidance.object_classifier import pretrained_classifier
from sca_caption.images import Transform
from sca_caption.images import fit as fit_image
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training import weight_soup
from sca_caption.training.fit_guidance import PRESENCE_RIDGE
from sca_caption.vocab import Vocabulary
from tests.helpers.guided_captioners import guided_checkpoint, imagenet_network, speaking
from tests.helpers.guided_captioners import pixels as larger_pixels
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import photo, record, write
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner

WORDS = Vocabulary(TINY_WORDS)
PEOPLE, DOGS, RED = {"man", "woman"}, {"dog"}, {"red"}  # of these words
ALWAYS, NEVER = 20.0, -20.0  # logits


def biased_captioner() -> SCACNN:
    """A captioner that often mentions people, dogs and red."""
    model = tiny_captioner()
    model.word.bias.data[WORDS.encode(sorted(PEOPLE | DOGS | RED))] += 2
    return model


def with_presence(bias: list[float], names=("people", "dogs", "red")) -> Checkpoint:
    """The same with a presence classifier that predicts the same rates for every image."""
    model = biased_captioner()
    presence = PresenceClassifier((model.backbone.channels[0],), names)
    presence.classifier.weight.zero_()
    presence.classifier.bias.copy_(torch.tensor(bias))
    return Checkpoint(model, WORDS, Transform(32), guides={"presence": presence})


def pixels(count: int) -> torch.Tensor:
    return stack([fit_image(photo(number), Transform(32)) for number in range(count)])


def words_of(captions) -> list[set[str]]:
    return [set(" ".join(each.text for each in image).split()) for image in captions]


# ---- the classifier ----------------------------------------------------------------------------------------------------


def examples(images: int = 90, channels: int = 5):
    """Features, and three references each, in which people and dogs come by chance."""
    made = np.random.default_rng(0)
    features = torch.from_numpy(made.random((images, channels))).float()
    texts = ["a man runs", "two dogs run", "grass", "a woman and a dog", "water"]
    return features, [[texts[i].split() for i in made.integers(0, 5, 3)] for _ in range(images)]


def test_at_its_optimum_the_gradient_is_zero():
    features, references = examples()
    found = fit_presence(features, references, 0.01, [5])
    assert found.names == ("people", "dogs") and not any(each.requires_grad for each in found.parameters())
    x = (features - features.mean(0)).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    words = [[{"man", "woman"} & set(text) for text in several] for several in references]
    dogs = [[{"dog", "dogs"} & set(text) for text in several] for several in references]
    y = np.array(
        [[np.mean(list(map(bool, each))) for each in both] for both in zip(words, dogs, strict=True)]
    )
    maps = (features**2)[:, :, None, None].expand(-1, -1, 2, 3)  # whose pooled features these are
    error = found(maps).double().numpy() - y
    weights = found.classifier.weight.double().numpy().T
    assert np.abs(x.T @ error / len(x) + 2 * 0.01 * weights).max() < 1e-5
    assert np.abs(error.mean(0)).max() < 1e-5 and np.abs(weights).max() > 0.1


def test_it_reads_both_networks():
    features, references = examples()
    found = fit_presence(features, references, 1e-3, [2, 3])
    maps, seen = (features[:, :2] ** 2)[:, :, None, None], features[:, 2:] ** 2
    parts = [part - part.mean(0) for part in features.split((2, 3), 1)]
    x = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], 1) / 2**0.5
    wanted = 1 / (1 + torch.exp(-(x @ found.classifier.weight.T + found.classifier.bias)))
    assert found.reads_features
    assert_close(found(maps, seen), wanted, rtol=1e-4, atol=1e-5)


def test_subjects_of_too_few_images_are_left_out():
    features = torch.rand(60, 4)
    cases = {"a dog": 60, "a man": 60, "grass": 60}
    assert fit_presence(features, [[text.split()] for text in cases for _ in range(20)], 1e-3, [4]).names == (
        "people",
        "dogs",
    )
    few = [["red", "grass"]] * 41 + [["man"]] * 19
    assert fit_presence(features, [[text] for text in few], 1e-3, [4]) is None
    assert fit_presence(
        features, [[["dog"]]] * 20 + [[["man"]]] * 21 + [[["dog"]]] * 19, 1e-3, [4]
    ).names == (
        "people",
        "dogs",
    )


def test_words_belong_to_one_subject():
    people, dogs, *colours = (each.words for each in SUBJECTS.values())
    assert len(people | dogs | set().union(*colours)) == sum(map(len, (people, dogs, *colours)))
    assert {"grey"} in colours and {"dog", "puppies"} <= dogs and {"person", "children", "skier"} <= people
    assert all(word == word.lower().strip() and word.isalpha() for word in people | dogs)


# ---- banned words ----------------------------------------------------------------------------------------------------


def test_words_of_absent_subjects_are_banned_without_a_primary_one():
    rates = torch.tensor(
        [[0.5, 0.05, 0], [0.1, 0.9, 0], [0.34, 0.09, 0.2], [0.35, 0.0, 0.0], [0.0, 0.0, 0.0]]
    )
    rules = [BanRule((4, 6), 0.35, True), BanRule((5,), 0.1, True), BanRule((7,), 0.1, False)]
    found = HallucinationMask(rules).banned_words(rates, [[], [], [], [], [[6, 8], [5]]], 9)
    assert [row.nonzero().flatten().tolist() for row in found] == [[], [], [4, 5, 6], [], [4, 7]]
    trained = PresenceClassifier((1,), ("people", "dogs", "red"))
    people, dogs, red = HallucinationMask.from_trained(trained, WORDS).rules
    assert people.primary and dogs.primary and not red.primary
    assert {WORDS.words[i] for i in people.words} == PEOPLE and {WORDS.words[i] for i in dogs.words} == DOGS
    assert (people.threshold, dogs.threshold) == (SUBJECTS["people"].threshold, SUBJECTS["dogs"].threshold)


@pytest.mark.parametrize(("bias", "banned"), [
    ([NEVER, NEVER, ALWAYS], PEOPLE | DOGS), ([NEVER, NEVER, NEVER], PEOPLE | DOGS | RED),
    ([ALWAYS, NEVER, NEVER], set()), ([NEVER, ALWAYS, NEVER], set()),
])  # fmt: skip
def test_a_search_under_the_mask(bias, banned):
    """As a search that forbids the words; log-probabilities are the model's, not renormalised."""
    search = SearchConfig(beam_size=4, num_captions=4)
    batch, given = pixels(8), with_presence(bias)
    found = CaptionPipeline.load(given, search=search).caption_batch(batch)
    without = dataclasses.replace(given, guides={})
    plain = CaptionPipeline.load(without, search=search).caption_batch(batch)
    model = given.model
    with torch.inference_mode():
        wanted = beam_search(
            model, model.start(model.encode(batch)), beam_size=4, num_captions=4, block_ngrams=2,
            length_penalty=search.length_penalty, bad_endings=bad_endings(WORDS),
            forbidden=[0, 1, 3, *WORDS.encode(sorted(banned))],
        )  # fmt: skip
    for ours, theirs in zip(found, wanted, strict=True):
        assert [list(each.tokens) for each in ours] == [each.tokens for each in theirs]
        assert [each.log_prob for each in ours] == pytest.approx([each.log_prob for each in theirs], abs=1e-4)
    assert not set.union(*words_of(found)) & banned
    assert (found != plain) == bool(banned) and set.union(*words_of(plain)) >= banned
    (alone,) = CaptionPipeline.load(given, search=search).caption_batch(batch[2:3])
    assert [each.text for each in alone] == [each.text for each in found[2]]
    off = CaptionPipeline.load(given, search=search, objects=False).caption_batch(batch)
    assert off == plain == CaptionPipeline.load(given).with_search(search, objects=False).caption_batch(batch)


def test_each_image_of_a_batch_has_its_own_mask():
    given, batch = with_presence([-5.0, -5.0, -5.0]), pixels(8)
    presence = given.guides["presence"]
    with torch.inference_mode():
        features = signed_sqrt_pool(given.model.encode(batch)[0])
    presence.center.copy_(features.mean(0))
    presence.classifier.weight[:] = 30 * torch.nn.functional.normalize(features[0] - features[1], dim=0)
    with torch.inference_mode():
        rates = presence(given.model.encode(batch)[0])
    absent = (rates < torch.tensor([SUBJECTS[name].threshold for name in presence.names])).all(1)
    assert 2 <= absent.sum() <= 6
    search = SearchConfig(beam_size=5, num_captions=5)
    found = words_of(CaptionPipeline.load(given, search=search).caption_batch(batch))
    for words, without in zip(found, absent, strict=True):
        assert bool(words & (PEOPLE | DOGS | RED)) != without


def test_forced_words_are_not_banned():
    pipeline = CaptionPipeline.load(with_presence([NEVER] * 3), force_words=["dog"])
    for words in words_of(pipeline.caption_batch(pixels(3))):
        assert "dog" in words and not words & PEOPLE


def test_sampled_captions_obey_the_mask():
    given, batch = with_presence([NEVER] * 3), pixels(4)
    search, sampling = SearchConfig(num_captions=7), SamplingConfig(temperature=3.0, top_p=1.0)
    pipeline = CaptionPipeline.load(given, search=search, sampling=sampling)
    assert not set.union(*words_of(pipeline.caption_batch(batch))) & PEOPLE
    state = given.model.start(given.model.encode(batch))
    free = draw(given.model, state, num_captions=7, temperature=3.0, top_p=1.0)
    assert {WORDS.words[i] for image in free for each in image for i in each.tokens} >= PEOPLE


def test_an_inserted_noun_is_not_banned_by_the_mask():
    """The second search obeys the mask except for the noun itself."""
    pipeline = CaptionPipeline.load(guided_checkpoint())
    lexicon = next(guide for guide in pipeline.guides if guide.inserts)
    dog = next(row for row, noun in enumerate(lexicon.nouns) if noun.name == "dog")
    banned = torch.zeros(2, len(lexicon.vocabulary), dtype=torch.bool)
    banned[:, lexicon.vocabulary.encode(["dog", "man", "red"])] = True
    predicted = torch.zeros(2, len(lexicon.nouns))
    predicted[0, dog] = 0.9
    insertion = lexicon.insertion(predicted, ["a cat", "a cat"], [[], []], banned)
    assert list(insertion.images) == [0] and insertion.margins == pytest.approx([0.8 + 2.2 * 0.9])
    still = {lexicon.vocabulary.words[i] for i in insertion.mask.banned[0].nonzero().flatten().tolist()}
    assert {"man", "red"} <= still and not {"dog", "dogs"} & still


# ---- in a checkpoint -------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    texts = ["a man runs", "a dog sits on grass", "red water", "blue water", "the cat runs"]
    records = [record(i, "train", [texts[i % 5], texts[(i + 1) % 5]]) for i in range(60)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    return CaptionDataset(tmp_path / "made.h5")


def test_the_program_fits_the_train_split(tiny_checkpoint, data, tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    assert fit.main(["presence", str(path), "--data", str(data.path)]) == 0
    assert "people, dogs, red, blue" in capsys.readouterr().out
    before, after = checkpoint.load(tiny_checkpoint), checkpoint.load(path)
    for name, value in before.model.state_dict().items():
        assert_close(after.model.state_dict()[name], value, rtol=0, atol=0)
    rows = data.indices("train").tolist()
    with torch.inference_mode():
        maps = before.model.encode(stack([data.image(row) for row in rows]))
    references = [[ptb_tokenize(text) for text in data.references(row)] for row in rows]
    wanted = fit_presence(signed_sqrt_pool(maps[0]), references, PRESENCE_RIDGE, [64])
    assert_close(after.guides["presence"](maps[0]), wanted(maps[0]), rtol=1e-3, atol=1e-3)
    for dtype in ("float16", "int8"):
        checkpoint.save(tmp_path / "other.safetensors", after, dtype)
        other = checkpoint.load(tmp_path / "other.safetensors").guides["presence"]
        assert other.names == ("people", "dogs", "red", "blue") and other.channels == (64,)
        assert_close(other(maps[0]), wanted(maps[0]), rtol=0.02, atol=0.02)
        checkpoint.add_guide(tmp_path / "other.safetensors", "presence", wanted)  # in the file's own dtype
        again = checkpoint.load(tmp_path / "other.safetensors").guides["presence"]
        assert_close(again(maps[0]), other(maps[0]))
    assert "presence" in weight_soup.average([path], [1.0]).guides
    assert not weight_soup.average([path, path], [1.0, 1.0]).guides


def test_photographs_of_people_alone_cannot_be_fitted(tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    records = [record(i, "train", ["a man"]) for i in range(30)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    assert fit.main(["presence", str(path), "--data", str(tmp_path / "made.h5")]) == 2
    error = capsys.readouterr().err
    assert "people or dogs" in error and "20" in error and error.count("\n") == 1
    assert path.read_bytes() == tiny_checkpoint.read_bytes()


@pytest.mark.slow
def test_it_reads_features_and_another_classifier_makes_it_useless(data, tmp_path, capsys):
    words = Vocabulary(["a", "dog", "man", "cat", "on", "runs"])
    model = speaking(imagenet_network(), words, 0)
    objects = pretrained_classifier(lite_weights(), model.backbone, size=64)
    path, other = tmp_path / "best.pt", tmp_path / "other"
    checkpoint.save(path, Checkpoint(model, words, Transform(64), guides={"objects": objects}))
    assert fit.main(["presence", str(path), "--data", str(data.path)]) == 0
    assert checkpoint.load(path).guides["presence"].channels == (320, 1280)
    pipeline, batch = CaptionPipeline.load(path), larger_pixels(6)
    pipeline.guides = [guide for guide in pipeline.guides if not guide.inserts]
    _, predictions = pipeline.model.start(batch, pipeline.guides)
    banned = pipeline.guides[0].banned_words(predictions["presence"], [[]] * 6, len(pipeline.vocabulary))
    for captions, row in zip(pipeline.caption_batch(batch), banned, strict=True):
        assert not row[list(captions[0].tokens)].any()
    with torch.inference_mode():
        stored = tuple(each.float() for each in pipeline.sca_cnn.encode(batch))
    CaptionPipeline.load(path).caption_batch(stored)  # without features nothing is banned
    torch.save(lite_weights("efficientnet_lite1"), tmp_path / "lite.pth")
    assert average.main([str(other), str(path), "--objects", str(tmp_path / "lite.pth")]) == 0
    assert set(checkpoint.load(other).guides) == {"objects"} and "fit presence" in capsys.readouterr().err
