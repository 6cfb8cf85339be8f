"""The captioner against computations by hand: one caption at a time, copies instead of sharing, torchvision's modules."""

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
from sca_caption.training.batches import Batch, collate
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import BOS, EOS, PAD
from tests.helpers.toy_backbone import toy  # noqa: F401

MODES = ("S", "C", "S-C", "C-S")
LAYERS = {1: ("block",), 2: ("block.relu", "block"), 3: ("low", "block.relu", "block")}
FORMS = [(mode, layers) for mode in MODES for layers in LAYERS]
WORDS = 17


pytestmark = pytest.mark.usefixtures("toy")


def captioner(
    mode: str = "C-S", layers: int = 2, words: int = WORDS, spread: bool = True, **changes
) -> SCACNN:
    """A small captioner; `spread`: with attention far from uniform and words far from equally likely."""
    settings = {"attention_width": 8, "embedding_size": 12, "lstm_size": 16, "dropout": 0.0, **changes}
    config = ModelConfig(backbone="toy", layers=LAYERS[layers], attention=mode, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SCACNN(config, words)
        if spread:
            with torch.no_grad():
                for parameter in model.attention.parameters():
                    parameter.normal_(0, 0.7)
                model.word.weight *= 5
                model.embedding.weight *= 5
    return model


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Images with structure, uint8 (count, 3, 32, 32)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, 32).to(torch.uint8)


def batch_of(counts=(2, 1, 3), seed: int = 0) -> Batch:
    """counts[i] captions of image i, of 1 to 6 words each."""
    rng = torch.Generator().manual_seed(seed)

    def caption() -> list[int]:
        length = int(torch.randint(1, 7, (1,), generator=rng))
        return torch.randint(3, WORDS, (length,), generator=rng).tolist()

    images = pixels(len(counts), seed)
    return collate([(image, [caption() for _ in range(n)]) for image, n in zip(images, counts, strict=True)])


def test_hidden_features_are_whole_channels_and_hidden_in_training_only():
    model = captioner(feature_dropout=0.5)
    whole, *carried = model.eval().encode(pixels(4))
    seen, *others = model.train().encode(pixels(4))
    hidden = (seen == 0).flatten(2).all(2)
    assert 0.25 < hidden.float().mean() < 0.75 and not hidden[0].equal(hidden[1])
    torch.testing.assert_close(seen, 2 * whole * ~hidden[:, :, None, None])
    assert all(map(torch.equal, carried, others))
    stored = model.encode((whole.half(), *carried))[0]
    assert not stored.equal(model.encode((whole.half(), *carried))[0])


def alone(model: SCACNN, batch: Batch, row: int):
    """Log-probabilities (T, W), attention weights and target ids of one caption by `step`, without batch or padding."""
    targets = batch.captions[row][batch.captions[row] != PAD]
    image = batch.image_index[row]
    state = model.start(model.encode(batch.images[image : image + 1]))
    logits, attention, word = [], [], torch.tensor([BOS])
    for target in targets:
        step_logits, state = model.step(word, state)
        logits.append(step_logits[0])
        attention.append(state.attention)
        word = target[None]
    return torch.stack(logits).log_softmax(1), attention, targets


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "layers", "sizes"), [*((*form, "default") for form in FORMS), ("C-S", 2, "paper")]
)
def test_the_first_loss_is_that_of_guessing(mode, layers, sizes):
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
def test_four_captions_are_learnt_by_heart(mode):
    captions = [[4, 5, 6, 7, 8], [4, 9, 6, 10], [11, 5], [4, 5, 12, 7, 13, 14]]
    model = captioner(mode, 2, spread=False, embedding_size=32, lstm_size=64)
    batch = collate([(image, [caption]) for image, caption in zip(pixels(4), captions, strict=True)])
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
def test_mixed_precision_computes_nearly_the_same(mode):
    """On a CPU here; on a GPU training runs under the same autocast."""
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


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_the_loss_is_the_mean_over_words_of_captions_taken_one_by_one(mode, layers, smoothing):
    model, batch = captioner(mode, layers), batch_of()
    losses = []
    for row in range(len(batch.captions)):
        log_prob, _, targets = alone(model, batch, row)
        for t, target in enumerate(targets):
            losses.append(-(1 - smoothing) * log_prob[t, target] - smoothing * log_prob[t].mean())
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(caption_loss(model, batch, smoothing), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_neither_the_order_of_captions_nor_padding_matters(mode, layers):
    model, batch = captioner(mode, layers), batch_of()
    wanted = caption_loss(model, batch, 0.1, 0.5)
    order = torch.randperm(len(batch.captions), generator=torch.Generator().manual_seed(1))
    mixed = Batch(batch.images, F.pad(batch.captions[order], (0, 3), value=PAD), batch.image_index[order])
    torch.testing.assert_close(caption_loss(model, mixed, 0.1, 0.5), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_the_doubly_stochastic_penalty(mode, layers):
    """Xu et al. 2015, equation 14: over its words, a caption should look at every position about once."""
    model, batch = captioner(mode, layers), batch_of()
    penalties = []
    for row in range(len(batch.captions)):
        _, attention, _ = alone(model, batch, row)
        for layer in range(layers):
            for position in range(16 if "S" in mode else 0):
                looked = sum(step[layer][1][0, position] for step in attention)
                penalties.append((1 - looked) ** 2)
    wanted = caption_loss(model, batch)
    if penalties:
        wanted = wanted + 0.7 * torch.stack(penalties).mean()
    torch.testing.assert_close(caption_loss(model, batch, 0.0, 0.7), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_a_batch_is_its_images_taken_singly(mode, layers):
    model, batch = captioner(mode, layers), batch_of()
    total = words = 0
    for i in range(len(batch.images)):
        rows = batch.image_index == i
        single = Batch(
            batch.images[i : i + 1], batch.captions[rows], torch.zeros(int(rows.sum()), dtype=torch.long)
        )
        count = int((single.captions != PAD).sum())
        total, words = total + caption_loss(model, single) * count, words + count
    torch.testing.assert_close(caption_loss(model, batch), total / words, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "layers"), FORMS)
def test_no_image_leaks_into_the_captions_of_another(mode, layers):
    """The words of image 0's captions have no gradient with respect to the others, at any step."""
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
def test_an_image_of_noise_changes_nothing_for_the_others():
    model, batch = captioner(), batch_of((1, 1, 1))
    rows = [alone(model, batch, row)[0] for row in range(3)]
    batch.images[1] = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    for row in (0, 2):
        assert torch.equal(alone(model, batch, row)[0], rows[row])
    state = model.start(model.encode(batch.images))
    logits, _ = model.step(torch.tensor([BOS] * 3), state)
    for row in (0, 2):
        torch.testing.assert_close(logits[row].log_softmax(0), rows[row][0], rtol=1e-5, atol=1e-5)


# ---- states ----------------------------------------------------------------------------------------------------------


def walk(model: SCACNN, state, words: list[list[int]]):
    """Step through columns of words; (logits of every step, the states after them)."""
    logits, states = [], []
    for column in words:
        step_logits, state = model.step(torch.tensor(column), state)
        logits.append(step_logits)
        states.append(state)
    return torch.stack(logits), states


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_rows_that_share_an_image_are_as_rows_with_copies(mode, layers):
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
def test_attention_does_not_compound_over_time(mode, layers):
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
def test_rows_can_be_reordered_repeated_and_dropped(mode, layers):
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
def test_weights_of_the_last_step_are_weights():
    model = captioner("C-S", 3)
    _, state = model.step(torch.tensor([BOS, BOS]), model.start(model.encode(pixels(2))))
    assert len(state.attention) == 3
    for beta, alpha in state.attention:
        assert (beta.shape, alpha.shape) == ((2, 12), (2, 16))
        torch.testing.assert_close(beta.sum(1), torch.ones(2))
        torch.testing.assert_close(alpha.sum(1), torch.ones(2))


# ---- what goes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_stored_features_are_as_images(layers):
    model, batch = captioner("C-S", layers), batch_of()
    encoded = model.encode(batch.images)
    assert len(encoded) == (2 if layers == 2 else 1)  # the shortcut past block.relu
    features = Batch(encoded, batch.captions, batch.image_index)
    assert torch.equal(caption_loss(model, features), caption_loss(model, batch))
    halves = tuple(x.half() for x in encoded)
    assert all(x.dtype == torch.float32 for x in model.encode(halves))
    found = caption_loss(model, Batch(halves, batch.captions, batch.image_index))
    torch.testing.assert_close(found, caption_loss(model, batch), rtol=1e-3, atol=1e-3)


def test_collate_ends_pads_and_counts_captions():
    images = pixels(3)
    batch = collate([(images[0], [[4, 5], []]), (images[1], [[6]]), (images[2], [[7, 8, 9]])])
    assert torch.equal(batch.images, images)
    assert batch.captions.tolist() == [
        [4, 5, EOS, PAD],
        [EOS, PAD, PAD, PAD],
        [6, EOS, PAD, PAD],
        [7, 8, 9, EOS],
    ]
    assert batch.image_index.tolist() == [0, 0, 1, 2]
    features = collate([((torch.ones(2), torch.zeros(3)), [[4]]), ((torch.zeros(2), torch.ones(3)), [[5]])])
    assert [x.tolist() for x in features.images] == [[[1, 1], [0, 0]], [[0, 0, 0], [1, 1, 1]]]


def test_tied_embeddings_are_one_matrix():
    tied, untied = captioner(tie_embeddings=True), captioner()
    assert tied.word.weight is tied.embedding.weight
    sizes = [sum(p.numel() for p in model.parameters()) for model in (untied, tied)]
    assert sizes[0] - sizes[1] == WORDS * 12


@torch.no_grad()
def test_dropout_is_for_training_alone():
    model, batch = captioner(dropout=0.5), batch_of()
    assert caption_loss(model.train(), batch) != caption_loss(model, batch)
    assert torch.equal(caption_loss(model.eval(), batch), caption_loss(model, batch))


@torch.no_grad()
def test_the_attended_map_is_what_torchvisions_next_layer_sees():
    """The whole of two steps by hand for MobileNetV2's features.17 and features.18, at every word anew."""
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
