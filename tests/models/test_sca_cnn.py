"""SCACNN against reference computations: captions one at a time, copied maps, torchvision's own modules."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sca_caption.config import ModelConfig
from sca_caption.decoding.beam_search import greedy
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.torchvision_compat import torchvision
from sca_caption.training.batches import Batch, Example, collate
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import BOS, EOS
from tests.helpers.small_captioner import FORMS, MODES, WORDS, batch_of, captioner, decode_alone, pixels
from tests.helpers.toy_backbone import toy  # noqa: F401

pytestmark = pytest.mark.usefixtures("toy")


def test_feature_dropout_zeroes_whole_channels_in_training_only():
    model = captioner(feature_dropout=0.5)
    whole, *carried = model.eval().encode(pixels(4))
    seen, *others = model.train().encode(pixels(4))
    hidden = (seen == 0).flatten(2).all(2)
    assert 0.25 < hidden.float().mean() < 0.75 and not hidden[0].equal(hidden[1])
    torch.testing.assert_close(seen, 2 * whole * ~hidden[:, :, None, None])
    assert all(map(torch.equal, carried, others))
    stored = model.encode((whole.half(), *carried))[0]
    assert not stored.equal(model.encode((whole.half(), *carried))[0])


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "layers", "sizes"), [*((*form, "default") for form in FORMS), ("C-S", 2, "paper")]
)
def test_initial_loss_is_log_vocabulary_size(mode, layers, sizes):
    words = 2000
    named = {"attention_width": 128, "embedding_size": 256, "lstm_size": 512}
    if sizes == "paper":
        named = {"attention_width": 512, "embedding_size": 100, "lstm_size": 1000, "pool_norm": 1.0}
    model = captioner(mode, layers, words, spread=False, **named)
    batch = batch_of((5, 5, 5))
    batch.captions = torch.where(batch.captions > EOS, batch.captions * 113 % (words - 3) + 3, batch.captions)
    with torch.no_grad():
        assert caption_loss(model, batch).item() == pytest.approx(math.log(words), rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_it_overfits_four_captions(mode):
    captions = [[4, 5, 6, 7, 8], [4, 9, 6, 10], [11, 5], [4, 5, 12, 7, 13, 14]]
    model = captioner(mode, 2, spread=False, embedding_size=32, lstm_size=64)
    examples = [
        Example(image, [caption], None, 0) for image, caption in zip(pixels(4), captions, strict=True)
    ]
    batch = collate(examples)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = caption_loss(model, batch)
        if loss.item() < 0.05:
            break
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    found = greedy(model.eval(), model.start(model.encode(batch.images)))
    assert [hypothesis.tokens for hypothesis in found] == captions
    assert all(hypothesis.finished for hypothesis in found)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(("mode", "layers"), FORMS)
def test_gradients_reach_every_parameter(mode, layers, tie):
    model = captioner(mode, layers, spread=False, tie_embeddings=tie).train()
    caption_loss(model, batch_of()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without


@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision_is_close_to_float32(mode):
    """On a CPU; training on a GPU uses the same autocast."""
    model, batch = captioner(mode), batch_of()
    wanted = caption_loss(model, batch)
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        found = caption_loss(model, batch)
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)
    for (name, _), a, b in zip(
        model.named_parameters(), torch.autograd.grad(found, list(model.parameters())), gradients, strict=True
    ):
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() > 0.95, name


# ---- independence of images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "layers"), FORMS)
def test_captions_have_no_gradient_for_other_images(mode, layers):
    """Logits of image 0's captions have no gradient with respect to other images, at any step."""
    model = captioner(mode, layers)
    images = pixels(3).float().requires_grad_()
    state = model.start(model.encode(images)).select(torch.tensor([0, 1, 1, 2, 0]))
    words = torch.tensor([BOS] * 5)
    total = 0.0
    for t in range(3):
        logits, state = model.step(words, state)
        total = total + logits[[0, 4]].square().sum()
        words = torch.tensor([4, 5, 6, 7, 8]) + t
    gradient = torch.autograd.grad(total, images)[0].abs().amax((1, 2, 3))
    assert gradient[0] > 0
    assert gradient[1:].tolist() == [0, 0]


@torch.no_grad()
def test_replacing_an_image_changes_no_other_captions():
    model, batch = captioner(), batch_of((1, 1, 1))
    rows = [decode_alone(model, batch, row)[0] for row in range(3)]
    batch.images[1] = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    for row in (0, 2):
        assert torch.equal(decode_alone(model, batch, row)[0], rows[row])
    state = model.start(model.encode(batch.images))
    logits, _ = model.step(torch.tensor([BOS] * 3), state)
    for row in (0, 2):
        torch.testing.assert_close(logits[row].log_softmax(0), rows[row][0], rtol=1e-5, atol=1e-5)


# ---- states ----------------------------------------------------------------------------------------------------------


def walk(model: SCACNN, state, words: list[list[int]]):
    """Step through columns of words. Returns the logits of all steps and the state after each."""
    logits, states = [], []
    for column in words:
        step_logits, state = model.step(torch.tensor(column), state)
        logits.append(step_logits)
        states.append(state)
    return torch.stack(logits), states


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_rows_that_share_an_image_equal_rows_with_copies(mode, layers):
    model, images = captioner(mode, layers), pixels(2)
    shared = torch.tensor([1, 0, 1, 1])
    words = [[BOS] * 4, [4, 5, 6, 7], [8, 8, 9, 9]]
    found, states = walk(model, model.start(model.encode(images)).select(shared), words)
    wanted, copies = walk(model, model.start(model.encode(images[shared])), words)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for (beta, alpha), (beta_, alpha_) in zip(states[-1].attention, copies[-1].attention, strict=True):
        for a, b in ((beta, beta_), (alpha, alpha_)):
            assert a is b is None or torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(states[-1].maps[0]) == 2  # the maps are kept once


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_attention_always_reads_the_unattended_map(mode, layers):
    model = captioner(mode, layers)
    start = model.start(model.encode(pixels(2)))
    before = copy.deepcopy(start)
    first_logits, first = model.step(torch.tensor([BOS, BOS]), start)
    _, states = walk(model, first, [[4, 5], [6, 7], [8, 9], [10, 11]])
    late = states[-1]
    for a, b in zip(late.maps, before.maps, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(start.hidden, before.hidden) and torch.equal(start.cell, before.cell)
    assert (
        late.attention[0][0 if mode == "C" else 1]
        .sub(first.attention[0][0 if mode == "C" else 1])
        .abs()
        .max()
        > 1e-3
    )
    late.hidden, late.cell = start.hidden, start.cell  # the same hidden state sees the same image
    again_logits, again = model.step(torch.tensor([BOS, BOS]), late)
    assert torch.equal(again_logits, first_logits)
    for a, b in zip(again.attention, first.attention, strict=True):
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("mode", "layers"), [("S", 1), ("C-S", 2), ("S-C", 3)])
@torch.no_grad()
def test_select_reorders_repeats_and_drops_rows(mode, layers):
    model = captioner(mode, layers)
    state = model.start(model.encode(pixels(3)))
    _, (state,) = walk(model, state, [[4, 5, 6]])
    wanted, _ = model.step(torch.tensor([7, 8, 9]), state)
    rows = torch.tensor([2, 0, 2, 2])
    selected = state.select(rows)
    assert len(selected) == 4 and len(state) == 3 and state.device == torch.device("cpu")
    found, selected = model.step(torch.tensor([9, 7, 9, 9]), selected)
    torch.testing.assert_close(found, wanted[rows], rtol=1e-5, atol=1e-5)
    found, _ = model.step(torch.tensor([4, 5]), selected.select(slice(2)))
    twice, _ = model.step(torch.tensor([5, 4]), selected.select(torch.tensor([1, 0])))
    torch.testing.assert_close(twice, found.flip(0), rtol=1e-5, atol=1e-5)
    assert len(state.select(torch.tensor([], dtype=torch.long))) == 0


@torch.no_grad()
def test_attention_weights_sum_to_one():
    model = captioner("C-S", 3)
    _, state = model.step(torch.tensor([BOS, BOS]), model.start(model.encode(pixels(2))))
    assert len(state.attention) == 3
    for beta, alpha in state.attention:
        assert (beta.shape, alpha.shape) == ((2, 12), (2, 16))
        torch.testing.assert_close(beta.sum(1), torch.ones(2))
        torch.testing.assert_close(alpha.sum(1), torch.ones(2))


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_stored_features_give_the_loss_of_images(layers):
    model, batch = captioner("C-S", layers), batch_of()
    encoded = model.encode(batch.images)
    assert len(encoded) == (2 if layers == 2 else 1)  # the shortcut past block.relu
    features = Batch(encoded, batch.captions, batch.image_index)
    assert torch.equal(caption_loss(model, features), caption_loss(model, batch))
    halves = tuple(x.half() for x in encoded)
    assert all(x.dtype == torch.float32 for x in model.encode(halves))
    found = caption_loss(model, Batch(halves, batch.captions, batch.image_index))
    torch.testing.assert_close(found, caption_loss(model, batch), rtol=1e-3, atol=1e-3)


def test_tied_embeddings_share_one_matrix():
    tied, untied = captioner(tie_embeddings=True), captioner()
    assert tied.word.weight is tied.embedding.weight
    sizes = [sum(p.numel() for p in model.parameters()) for model in (untied, tied)]
    assert sizes[0] - sizes[1] == WORDS * 12


@torch.no_grad()
def test_dropout_is_off_in_evaluation():
    model, batch = captioner(dropout=0.5), batch_of()
    assert caption_loss(model.train(), batch) != caption_loss(model, batch)
    assert torch.equal(caption_loss(model.eval(), batch), caption_loss(model, batch))


@torch.no_grad()
def test_two_steps_against_torchvisions_modules():
    """Two complete steps computed with MobileNetV2's own features.17 and features.18."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    layers = ("features.17", "features.18")
    config = ModelConfig(layers=layers, attention_width=8, embedding_size=12, lstm_size=16, pool_norm=3.0)
    model = SCACNN(config, WORDS, network.state_dict()).eval()
    for attention in model.attention.values():
        attention.channel.score.normal_()
        attention.spatial.score.normal_()
    model.word.weight *= 5
    images = F.interpolate(pixels(2), 64)

    normal = torchvision.transforms.functional.normalize
    normalised = normal(images / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    below, above = network.features[:18], network.features[18]
    first = below(normalised)  # (2, 320, 2, 2)
    pool = lambda maps: 3.0 * F.normalize(maps.mean((2, 3)), dim=1)  # noqa: E731
    hidden = torch.tanh(model.initial_hidden(pool(above(first))))
    cell = torch.tanh(model.initial_cell(pool(above(first))))
    state = model.start(model.encode(images))
    for words in ([BOS, BOS], [5, 9]):
        found, state = model.step(torch.tensor(words), state)
        attended, beta, alpha = model.attention["features_17"](first, hidden)
        scale = (beta * 320)[:, :, None, None] * (alpha * 4).view(2, 1, 2, 2)
        torch.testing.assert_close(attended, first * scale)
        top, beta_top, alpha_top = model.attention["features_18"](above(first * scale), hidden)
        embedded = model.embedding(torch.tensor(words))
        hidden, cell = model.lstm(torch.cat((embedded, pool(top)), 1), (hidden, cell))
        wanted = model.word(torch.tanh(model.hidden_to_word(hidden) + embedded))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        for a, b in zip(state.attention, ((beta, alpha), (beta_top, alpha_top)), strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        assert (scale - 1).abs().max() > 0.1  # attention that does something
