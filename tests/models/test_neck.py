"""The neck in place of the CNN's last layer, and lower layers that are not attended."""

import dataclasses

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ModelConfig
from sca_caption.decoding.beam_search import greedy
from sca_caption.images import Transform
from sca_caption.models.attention_trace import trace, unattended_maps
from sca_caption.models.backbone import Backbone
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.caption_task import initialise_from
from sca_caption.vocab import BOS, Vocabulary
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import message

LITE0, LAYERS = "efficientnet_lite0", ("features.16", "features.17")
WORDS = Vocabulary(["a", "dog", "cat", "runs", "sits", "red"])
CONFIG = ModelConfig(
    backbone=LITE0, layers=LAYERS, attention_width=6, embedding_size=7, lstm_size=8, neck=10, word_rank=5
)


def images(count: int = 2, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def captioner(**changes) -> SCACNN:
    torch.manual_seed(0)
    return SCACNN(dataclasses.replace(CONFIG, **changes), len(WORDS), lite_weights(LITE0)).eval()


@torch.inference_mode()
def test_the_neck_starts_as_the_outputs_with_the_largest_weights():
    weights = lite_weights(LITE0)
    whole, necked = (Backbone(LITE0, LAYERS, weights, neck=neck) for neck in (0, 10))
    assert whole.channels == (320, 1280) and necked.channels == (320, 10)
    x = torch.randn(2, 3, 64, 64)
    below, wanted = necked.trunk(x)[0], whole.segment(0, whole.trunk(x)[0], ())[0]
    old = whole.network.features[17].weight.flatten(1).norm(dim=1)
    largest = sorted(range(1280), key=lambda i: -old[i])[:10]
    assert torch.allclose(necked.segment(0, below, ())[0], wanted[:, sorted(largest)], atol=1e-5)
    assert torch.allclose(necked.head(below), wanted, atol=1e-5)


def test_a_neck_learns_with_the_decoder_while_the_cnn_is_frozen():
    backbone = captioner().backbone
    backbone.set_trainable(False)
    learning = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {"network.features.17.0.weight", "network.features.17.0.bias"}
    assert list(backbone.blocks()) == ["features.17"]


def test_words_are_predicted_from_the_head():
    model = captioner()
    state = model.start(model.encode(images()))
    below = model.encode(images())[0]
    wanted = model.word_predictor(model.backbone.head(below).mean((2, 3)))
    assert torch.allclose(state.words, wanted, atol=1e-5)


def test_a_neck_needs_two_layers_and_a_network_that_can_have_one():
    message(
        lambda: Backbone(LITE0, ["features.17"], neck=8), "--neck 8", "two attended layers", "features.17"
    )
    message(lambda: Backbone(LITE0, ["features.3", "features.16"], neck=8), "--neck 8", "features.17")
    message(lambda: Backbone("resnet18", ["layer4.0", "layer4.1"], neck=8), "--neck 8", "resnet18", LITE0)


@pytest.mark.parametrize("mode", ["S", "C-S"])
@torch.inference_mode()
def test_unattended_layers_run_once_and_equal_a_model_of_the_upper_layer(mode):
    """Its map is the neck's map of the unchanged lower map; attention of the upper layer reads nothing else."""
    model = captioner(attention=mode, unattended=1)
    assert model.attended == ("features.17",) and list(model.attention) == ["features_17"]
    encoded = model.encode(images())
    state = model.start(encoded)
    (top,) = model.backbone.segment(0, encoded[0], ())
    assert torch.equal(state.maps[0], top)
    assert [each.shape[1] for each in unattended_maps(model, images())] == [10]
    attend = model.attention["features_17"]
    keys = attend.prepare(top)
    beta, alpha = attend.weights(top, state.hidden, keys)
    _, after = model.step(torch.full((2,), BOS), state)
    assert torch.allclose(after.attention[0][1], alpha, atol=1e-6)
    assert beta is None or torch.allclose(after.attention[0][0], beta, atol=1e-6)
    (found, _) = trace(model, state, [[4], [5]])
    assert [layer.name for layer in found.layers] == ["features.17"]


@torch.inference_mode()
def test_attention_of_a_further_layer_starts_near_where_the_model_was():
    """A model that attended its upper layer continues with both layers: new weights are near uniform."""
    upper = captioner(attention="S", unattended=1)
    both = captioner(attention="C-S", unattended=0)
    fresh = initialise_from(both, Checkpoint(upper, WORDS, Transform(64)), WORDS.words)
    assert {name.split(".")[1] for name in fresh} == {"features_16", "features_17"}
    assert all("channel" in name or "features_16" in name for name in fresh)
    logits = [
        model.step(torch.full((2,), BOS), model.start(model.encode(images())))[0] for model in (upper, both)
    ]
    assert (logits[0] - logits[1]).abs().max() < 0.1 * (logits[0].amax() - logits[0].amin())


def test_checkpoints_keep_neck_head_and_unattended_layers(tmp_path):
    model = captioner(unattended=1)
    checkpoint.save(tmp_path / "best.pt", Checkpoint(model, WORDS, Transform(64)))
    loaded = checkpoint.load(tmp_path / "best.pt").captioner
    assert loaded.config == model.config
    found, wanted = (greedy(each, each.start(each.encode(images()))) for each in (loaded, model))
    assert found == wanted


def test_no_attended_layer_is_refused():
    message(lambda: captioner(unattended=2), "--unattended 2", "no layer")
