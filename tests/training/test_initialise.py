"""`--init` with another vocabulary: the vectors of shared words are kept."""

import pytest
import torch

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ModelConfig
from sca_caption.images import Transform
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.caption_task import initialise_from
from sca_caption.vocab import Vocabulary

SIZES = {"attention_width": 4, "embedding_size": 5, "lstm_size": 6, "dropout": 0.0}


def captioner(words: str, **config) -> tuple[SCACNN, Vocabulary]:
    vocabulary = Vocabulary(words.split())
    torch.manual_seed(len(vocabulary))
    return SCACNN(ModelConfig(layers=("features.2",), **(SIZES | config)), len(vocabulary)), vocabulary


def test_shared_words_keep_their_vectors():
    (old, before), (new, after) = captioner("dog runs a"), captioner("a cat runs fast today")
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    assert initialise_from(new, Checkpoint(old, before, Transform(32), {}), after.words) == []
    for name, value in new.state_dict().items():
        if not name.startswith(("word.", "embedding.")):
            torch.testing.assert_close(value, old.state_dict()[name])
            continue
        for i, word in enumerate(after.words):
            known = word in before.words
            wanted = old.state_dict()[name][before.words.index(word)] if known else fresh[name][i]
            torch.testing.assert_close(value[i], wanted)


def test_embeddings_of_another_size_are_not_copied():
    (old, words), (new, _) = captioner("dog a"), captioner("dog a", embedding_size=3)
    left = initialise_from(new, Checkpoint(old, words, Transform(32), {}), words.words)
    assert {"embedding.weight", "word.weight"} <= set(left) and "word.bias" not in left


READING = {"word_rank": 3, "styles": ("one", "two")}


def test_a_predictor_of_words_keeps_the_rows_of_shared_words():
    """Both vocabularies have the same size. The idf is left to training, which counts the words of the new data."""
    (old, before), (new, after) = captioner("dog runs a", **READING), captioner("a cat dog", **READING)
    old.word_predictor.idf.uniform_(1, 2)
    with torch.no_grad():
        for parameter in old.word_predictor.parameters():
            parameter += 1
    fresh = {name: value.clone() for name, value in new.word_predictor.state_dict().items()}
    left = initialise_from(new, Checkpoint(old, before, Transform(32), {}), after.words)
    assert left == ["word_predictor.idf"] and not new.word_predictor.idf.any()
    for name, value in old.word_predictor.up.state_dict().items():
        found = new.word_predictor.up.state_dict()[name]
        for i, word in enumerate(after.words):
            known = word in before.words
            assert torch.equal(found[i], value[before.words.index(word)] if known else fresh[f"up.{name}"][i])
    assert torch.equal(new.word_predictor.down.weight, old.word_predictor.down.weight)


def test_the_same_words_keep_their_idf():
    (old, words), (new, _) = captioner("dog runs a", **READING), captioner("dog runs a", **READING)
    old.word_predictor.idf.uniform_(1, 2)
    assert initialise_from(new, Checkpoint(old, words, Transform(32), {}), words.words) == []
    assert torch.equal(new.word_predictor.idf, old.word_predictor.idf)


def test_styles_are_matched_by_name():
    (old, words), (new, _) = (
        captioner("dog a", styles=styles) for styles in (("one", "two"), ("two", "one"))
    )
    assert initialise_from(new, Checkpoint(old, words, Transform(32), {}), words.words) == []
    assert torch.equal(new.style.weight, old.style.weight.flip(0))


@pytest.mark.parametrize("reads_words", [False, True])
@torch.no_grad()
def test_a_model_without_styles_captions_in_the_default_style(reads_words):
    sizes = {"word_rank": 3} if reads_words else {}
    (old, words), (new, _) = captioner("dog a", styles=("one", "two"), **sizes), captioner("dog a", **sizes)
    if reads_words:
        old.word_predictor.idf.uniform_(1, 2)
        old.word_predictor.up.bias.fill_(0.0)  # so that words are read
    old.style.weight.mul_(200)
    old.set_style("two")
    assert initialise_from(new, Checkpoint(old, words, Transform(32), {}), words.words) == []
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens = torch.tensor([words.words.index("dog"), words.words.index("a")])
    starts = [lambda model: model.start(model.encode(images))]
    if reads_words:
        starts.append(lambda model: model.start_without_image(torch.full((2, len(words)), 0.5)))
    for start in starts:
        found, wanted = (model.eval().step(tokens, start(model))[0] for model in (new, old))
        torch.testing.assert_close(found, wanted)
        old.set_style("one")
        assert (old.step(tokens, start(old))[0] - wanted).abs().max() > 1e-3
        old.set_style("two")


def test_new_styles_start_as_the_default_one():
    (old, words), (new, _) = (
        captioner("dog a", styles=styles) for styles in (("one", "two"), ("own", "one", "other"))
    )
    old.set_style("two")
    assert initialise_from(new, Checkpoint(old, words, Transform(32), {}), words.words) == []
    assert torch.equal(new.style.weight, old.style.weight[[1, 0, 1]])


def test_a_model_without_a_neck_has_the_head_as_its_last_layer():
    cnn = {"backbone": "efficientnet_lite0", "layers": ("features.16", "features.17")}
    models = [SCACNN(ModelConfig(**(SIZES | cnn), neck=neck), 6) for neck in (10, 0)]
    (old, new), words = models, Vocabulary(["dog", "a"])
    fresh = initialise_from(new, Checkpoint(old, words, Transform(32), {}), words.words)
    assert not [name for name in fresh if name.startswith("backbone.")]
    last = new.backbone.network.features[17]
    assert torch.equal(last.weight, old.backbone.head.weight)
    assert torch.equal(last.bias, old.backbone.head.bias)
