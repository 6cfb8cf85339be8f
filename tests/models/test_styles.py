"""SCACNN with styles and predicted words: the step against its equation, rows, defaults, checkpoints."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.decoding.beam_search import beam_search, greedy
from sca_caption.images import Transform
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training import weight_soup
from sca_caption.training.losses import caption_loss
from sca_caption.training.text_only import TextBatch, text_loss
from sca_caption.vocab import BOS, EOS, Vocabulary
from tests.helpers.made_photos import message
from tests.helpers.small_captioner import FORMS, WORDS, batch_of, captioner, pixels
from tests.helpers.toy_backbone import toy  # noqa: F401

pytestmark = pytest.mark.usefixtures("toy")

STYLES = ("formal", "plain", "terse")
KINDS = {
    "styles": {"styles": STYLES},
    "words": {"word_rank": 5},
    "both": {"styles": STYLES, "word_rank": 5},
}
STYLE_OF = torch.tensor([2, 0, 1, 0])


def styled(mode: str = "C-S", layers: int = 2, kind: str = "both", **changes) -> SCACNN:
    """A small captioner whose styles and predicted words change its logits."""
    model = captioner(mode, layers, word_dropout_rate=0.0, **KINDS[kind], **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if model.style is not None:
            model.style.weight.normal_(generator=generator)
        if model.word_predictor is not None:
            model.word_predictor.idf.uniform_(0.5, 3.0, generator=generator)
            model.word_predictor.up.bias.normal_(0, 2, generator=generator)
            model.null_image.normal_(generator=generator)
    return model.eval()


def walk(model: SCACNN, state, words: list[list[int]]) -> torch.Tensor:
    """Logits (steps, rows, W) of columns of words."""
    logits = []
    for column in words:
        step_logits, state = model.step(torch.tensor(column), state)
        logits.append(step_logits)
    return torch.stack(logits)


# ---- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_steps_against_the_equation(kind):
    """An LSTMCell of torch for each image, whose bias has W_u u added."""
    model = styled(layers=1, kind=kind)
    images, styles = pixels(2), STYLE_OF[:2]
    (maps,) = model.encode(images)
    pool = lambda x: model.config.pool_norm * F.normalize(x.mean((2, 3)), dim=1)  # noqa: E731
    state = model.start((maps,), styles)
    for image in range(2):
        one = maps[image : image + 1]
        u = torch.zeros(1, 12)
        if model.style is not None:
            u = u + model.style.weight[styles[image]]
        if model.word_predictor is not None:
            chances = model.word_predictor(one.mean((2, 3))).sigmoid()
            q = (chances - 0.1).clamp_min(0) * model.word_predictor.idf
            u = u + q / q.norm() @ model.embedding.weight
        cell_of_torch = torch.nn.LSTMCell(12 + 12, 16)
        cell_of_torch.load_state_dict(model.lstm.state_dict())
        cell_of_torch.bias_ih += model.context.weight @ u[0]
        hidden = torch.tanh(model.initial_hidden(pool(one)))
        cell = torch.tanh(model.initial_cell(pool(one)))
        for word, logits in zip([BOS, 5], walk(model, state, [[BOS, BOS], [5, 5]]), strict=True):
            attended, _, _ = model.attention["block"](one, hidden)
            embedded = model.embedding(torch.tensor([word]))
            hidden, cell = cell_of_torch(torch.cat((embedded, pool(attended)), 1), (hidden, cell))
            wanted = model.word(torch.tanh(model.hidden_to_word(hidden) + embedded))
            torch.testing.assert_close(logits[image : image + 1], wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_styles_and_predicted_words_change_the_logits():
    model, encoded = styled(), styled().encode(pixels(1))
    found = [walk(model, model.start(encoded, torch.tensor([style])), [[BOS]])[0, 0] for style in range(3)]
    model.word_predictor.up.bias.neg_()
    found.append(walk(model, model.start(encoded, torch.tensor([0])), [[BOS]])[0, 0])
    distances = [(a - b).abs().max() for i, a in enumerate(found) for b in found[:i]]
    assert min(distances) > 0.02


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("mode", "layers"), FORMS)
def test_a_batch_equals_its_images_one_at_a_time(mode, layers, grad):
    model, images = styled(mode, layers), pixels(4)
    words = [[BOS] * 4, [4, 5, 6, 7], [8, 8, 9, 9]]
    with torch.set_grad_enabled(grad):
        found = walk(model, model.start(model.encode(images), STYLE_OF), words)
        for row in range(4):
            alone = model.start(model.encode(images[row : row + 1]), STYLE_OF[row : row + 1])
            wanted = walk(model, alone, [[column[row]] for column in words])
            torch.testing.assert_close(found[:, row : row + 1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_rows_that_share_an_image_equal_rows_with_copies(mode, layers):
    model, images = styled(mode, layers), pixels(3)
    shared = torch.tensor([1, 0, 1, 2, 1])
    words = [[BOS] * 5, [4, 5, 6, 7, 8], [8, 8, 9, 9, 4]]
    found = walk(model, model.start(model.encode(images), STYLE_OF[:3]).select(shared), words)
    copies = model.start(model.encode(images[shared]), STYLE_OF[:3][shared])
    torch.testing.assert_close(found, walk(model, copies, words), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_captions_without_a_photograph_step_and_select_rows(grad):
    """Each row equals a caption that is stepped through alone, before and after rows are dropped and reordered."""
    model = styled()
    chances = torch.rand(3, WORDS, generator=torch.Generator().manual_seed(2))
    rows, words = torch.tensor([2, 0, 2, 2, 1]), [[BOS] * 5, [4, 5, 6, 7, 8], [8, 8, 9, 9, 4]]
    with torch.set_grad_enabled(grad):
        state = model.start_without_image(chances, STYLE_OF[:3])
        assert len(state) == 3 and state.maps == ()
        torch.testing.assert_close(
            state.hidden, torch.tanh(model.initial_hidden(model.null_image)).expand(3, -1)
        )
        found = walk(model, state.select(rows), words)
        alone = []
        for row, group in enumerate(rows.tolist()):
            start = model.start_without_image(chances[group : group + 1], STYLE_OF[group : group + 1])
            alone.append(walk(model, start, [[column[row]] for column in words]))
        torch.testing.assert_close(found, torch.cat(alone, 1), rtol=1e-4, atol=1e-4)
        assert (found[0, 0] - found[0, 1]).abs().max() > 0.05  # groups differ
        _, after = model.step(torch.tensor(words[0]), state.select(rows))
        last = walk(model, after.select(slice(4)).select(torch.tensor([3, 0, 1])), [[7, 4, 5], [9, 8, 8]])
        torch.testing.assert_close(last, found[1:, [3, 0, 1]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_captions_without_a_photograph_do_not_read_the_cnn():
    model = styled()
    chances = torch.rand(2, WORDS, generator=torch.Generator().manual_seed(2))
    before = walk(model, model.start_without_image(chances), [[BOS, BOS]])
    for module in (model.backbone, model.attention):
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(walk(model, model.start_without_image(chances), [[BOS, BOS]]), before)


# ---- the default style -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_default_style_is_the_first_until_it_is_set():
    model, encoded = styled(), styled().encode(pixels(3))
    for style, name in enumerate(STYLES):
        if style:
            model.set_style(name)
        assert model.default_style == style
        explicit = model.start(encoded, torch.full((3,), style))
        assert torch.equal(model.start(encoded).context, explicit.context)
        texts = torch.full((2, WORDS), 0.5)
        explicit = model.start_without_image(texts, torch.full((2,), style))
        assert torch.equal(model.start_without_image(texts).context, explicit.context)


def test_unknown_styles_are_refused():
    model = styled()
    text = message(lambda: model.set_style("rude"))
    assert text == "unknown style 'rude'; one of: formal, plain, terse" and model.default_style == 0
    for kind in ("words", None):
        other = styled(kind=kind) if kind else captioner()
        text = message(lambda other=other: other.set_style("plain"))
        assert text == "--style plain: this model has only one style; leave the flag out"


# ---- searches and learning -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_beam_1_equals_greedy_and_a_batch_its_images(kind):
    model, images = styled(kind=kind), pixels(4)
    start = lambda rows: model.start(model.encode(images[rows]), STYLE_OF[rows])  # noqa: E731
    with torch.inference_mode():
        words = greedy(model, start(slice(4)), max_length=8)
        beam = beam_search(model, start(slice(4)), beam_size=1, max_length=8, length_penalty=0.0)
        assert [one.tokens for (one,) in beam] == [one.tokens for one in words]
        assert [one.log_prob for (one,) in beam] == pytest.approx([one.log_prob for one in words], abs=1e-4)
        wide = beam_search(model, start(slice(4)), beam_size=4, num_captions=3, max_length=8)
        for row, found in enumerate(wide):
            (alone,) = beam_search(
                model, start(slice(row, row + 1)), beam_size=4, num_captions=3, max_length=8
            )
            assert [each.tokens for each in found] == [each.tokens for each in alone]
    assert len({tuple(one.tokens) for one in words}) > 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_initial_loss_is_log_vocabulary_size(kind):
    words = 2000
    sizes = {"attention_width": 128, "embedding_size": 256, "lstm_size": 512}
    model = captioner(words=words, spread=False, **sizes, **KINDS[kind])
    if model.word_predictor is not None:
        model.word_predictor.set_idf(torch.linspace(0, 100, words), 100)
        model.word_predictor.up.bias.fill_(0.0)  # so that the decoder reads words
    batch = batch_of((5, 5, 5))
    batch.captions = torch.where(batch.captions > EOS, batch.captions * 113 % (words - 3) + 3, batch.captions)
    batch.styles = torch.tensor([2, 1, 0])
    assert caption_loss(model, batch).item() == pytest.approx(math.log(words), rel=0.03)
    if model.word_predictor is not None:
        texts = TextBatch(torch.full((3, words), 0.5), batch.captions, batch.image_index, batch.styles)
        assert text_loss(model, texts).item() == pytest.approx(math.log(words), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    """With the loss of words and of captions without photographs; the special words' embeddings too."""
    model, batch = styled(kind=kind).train(), batch_of()
    batch.styles = torch.tensor([2, 0, 1])
    batch.fractions = torch.rand(3, WORDS, generator=torch.Generator().manual_seed(2))
    loss = caption_loss(model, batch, word_loss_weight=1.0)
    if model.word_predictor is not None:
        loss = loss + text_loss(
            model, TextBatch(batch.fractions, batch.captions, batch.image_index, batch.styles)
        )
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without
    if model.style is not None:
        assert model.style.weight.grad.abs().amax(1).min() > 0


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_names_of_a_model_without_both_are_those_of_earlier_versions():
    plain, whole = set(captioner().state_dict()), set(styled().state_dict())
    assert plain < whole
    assert whole - plain == {"null_image", "style.weight", "context.weight"} | {
        f"word_predictor.{name}" for name in ("down.weight", "down.bias", "up.weight", "up.bias", "idf")
    }
    both = set(styled(kind="styles").state_dict()) | set(styled(kind="words").state_dict())
    assert both == whole


def save(path, model: SCACNN) -> Vocabulary:
    words = Vocabulary([f"w{i}" for i in range(WORDS - 4)])
    checkpoint.save(path, Checkpoint(model, words, Transform(32)))
    return words


@torch.no_grad()
def test_a_checkpoint_of_an_earlier_version_loads(tmp_path):
    """Its config has none of the fields of styles and predicted words."""
    path, model = tmp_path / "best.pt", captioner()
    save(path, model)
    with safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["sca_caption"])
    for name in ("word_rank", "word_dropout_rate", "styles"):
        del text["config"][name]
    save_file(load_file(path), path, {"sca_caption": json.dumps(text)})
    found = checkpoint.load(path).captioner
    assert found.config == model.config
    state = found.start(found.encode(pixels(2)))
    assert state.context is None and state.words is None
    wanted = walk(model.eval(), model.start(model.encode(pixels(2))), [[BOS, BOS], [4, 5]])
    assert torch.equal(walk(found, state, [[BOS, BOS], [4, 5]]), wanted)


def test_the_model_that_ships_loads():
    model = checkpoint.load().captioner
    own = model.config.word_rank, model.config.styles
    assert (model.word_predictor is None, model.style is None) == (own[0] == 0, own[1] == ())
    assert (model.context is None) == (own == (0, ()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("tie", [False, True])
@torch.no_grad()
def test_a_checkpoint_keeps_styles_and_idf(tie, dtype, tmp_path):
    model = styled(tie_embeddings=tie)
    words = save(tmp_path / "whole.pt", model)
    checkpoint.save(tmp_path / "best.pt", Checkpoint(model, words, Transform(32)), dtype)
    found = checkpoint.load(tmp_path / "best.pt").captioner
    assert found.config == model.config and found.config.styles == STYLES
    exact = dtype == "float32"
    for name, value in found.state_dict().items():
        wanted = model.state_dict()[name]
        assert torch.equal(value, wanted if exact else wanted.half().float()), name
    assert found.word_predictor.idf.min() > 0.4
    found.set_style("terse")
    logits = [
        walk(each, each.start(each.encode(pixels(3)), style), [[BOS] * 3, [4, 5, 6]])
        for each, style in ((found, None), (model, torch.tensor([2, 2, 2])))
    ]
    torch.testing.assert_close(*logits, rtol=0 if exact else 0.05, atol=0 if exact else 0.05)


@torch.no_grad()
def test_runs_with_other_dropout_of_predicted_words_are_averaged(tmp_path):
    """Dropout is no part of the trained model."""
    one, two = styled(), styled()
    two.config = dataclasses.replace(two.config, word_dropout_rate=0.4)
    for parameter in two.parameters():
        parameter += 1
    for name, model in (("one.pt", one), ("two.pt", two)):
        save(tmp_path / name, model)
    found = weight_soup.average([tmp_path / "one.pt", tmp_path / "two.pt"], [3, 1]).model
    torch.testing.assert_close(found.style.weight, one.style.weight + 0.25)
    torch.testing.assert_close(found.word_predictor.up.weight, one.word_predictor.up.weight + 0.25)
    torch.testing.assert_close(found.word_predictor.idf, one.word_predictor.idf)
