"""EfficientNet-Lite as the captioner's CNN, against EfficientNetLite's own maps and the published network."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from sca_caption import checkpoint
from sca_caption.config import ModelConfig
from sca_caption.images import MEAN, STD, Transform
from sca_caption.models.backbone import ATTENDED, Backbone, attended_layers
from sca_caption.models.efficientnet_lite import (
    VARIANTS,
    EfficientNetLite,
    InputScaling,
    fold_batch_norms,
    folded_weights,
)
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.vocab import Vocabulary
from tests.helpers.lite_weights import DEPTHS, WIDTHS, lite_weights, written_out
from tests.helpers.made_photos import message

LITE0 = "efficientnet_lite0"


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def block_maps(name: str, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The map after each block of EfficientNetLite."""
    network = EfficientNetLite(name).eval()
    network.load_state_dict(fold_batch_norms(weights))
    network.to(memory_format=torch.channels_last)
    maps = [InputScaling()(x).contiguous(memory_format=torch.channels_last)]
    for block in network:
        maps.append(block(maps[-1]))
    return maps[1:]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", [64, 75])
@torch.inference_mode()
def test_segments_give_the_maps_of_the_network(name, side):
    weights = lite_weights(name)
    wanted = block_maps(name, weights, images(side=side))
    last = len(wanted) - 1
    blocks = [0, 3, last - 1, last]
    backbone = Backbone(name, [f"features.{block}" for block in blocks], weights)
    assert backbone.channels == tuple(wanted[block].shape[1] for block in blocks)
    maps = backbone.trunk(images(side=side))
    for i, block in enumerate(blocks):
        assert len(maps) == 1 and torch.equal(maps[0], wanted[block]), block
        if block != last:
            maps = backbone.segment(i, maps[0], ())


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_normalised_images_give_the_map_of_the_published_network(name):
    """Its authors normalise pixels from 0 to 255 as (pixel - 127) / 128."""
    weights = lite_weights(name)
    pixels = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    backbone = Backbone(name, attended_layers(name, ["1"]), weights)
    wanted = written_out(weights, (pixels - 127) / 128, name)
    torch.testing.assert_close(backbone.trunk((pixels / 255 - mean) / std)[0], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_default_layers_are_the_last_blocks(name):
    total = sum(DEPTHS[name]) + 2
    assert ATTENDED[name] == tuple(f"features.{i}" for i in range(total))[-3:]
    channels = Backbone(name, attended_layers(name, ["2"])).channels
    assert channels == (WIDTHS[name][-1], 1280)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_published_and_folded_weights_load_equally(name):
    published = lite_weights(name)
    folded = fold_batch_norms(published)
    captioner = {f"features.{key}": value for key, value in folded.items()}
    layer = f"features.{sum(DEPTHS[name]) + 1}"
    for weights in (published, folded, captioner, captioner | {"classifier.weight": torch.ones(2, 2)}):
        found = Backbone(name, [layer], weights).network.state_dict()
        assert found.keys() == captioner.keys()
        assert all(torch.equal(found[key], value) for key, value in captioner.items())


def test_weights_above_the_last_attended_layer_are_not_kept():
    folded = fold_batch_norms(lite_weights())
    found = Backbone(LITE0, ["features.2"], folded).network.features.state_dict()
    assert {key.split(".")[0] for key in found} == {"0", "1", "2"}
    assert all(torch.equal(value, folded[key]) for key, value in found.items())


@pytest.mark.parametrize("form", [dict, fold_batch_norms])
@pytest.mark.parametrize("other", ["efficientnet_lite1", "efficientnet_lite2"])
def test_weights_of_another_variant(form, other):
    weights = form(lite_weights(other))
    for load in (lambda: folded_weights(LITE0, weights), lambda: Backbone(LITE0, ["features.2"], weights)):
        message(load, f"those of {other}, not of {LITE0}", f"--backbone {other}")


def test_weights_of_another_network():
    for weights in ({}, {"features.0.0.weight": torch.ones(32, 3, 3, 3)}, {"conv1.weight": torch.ones(2)}):
        first = next(iter(weights), "none")
        message(
            lambda weights=weights: Backbone(LITE0, ["features.2"], weights), "EfficientNet-Lite", repr(first)
        )


def test_weights_that_are_not_whole():
    published, folded = lite_weights(), fold_batch_norms(lite_weights())
    del published["_blocks.3._bn1.bias"], folded["2.1.bias"]
    folded["2.0.weight"] = folded["2.0.weight"][:-1]
    message(lambda: Backbone(LITE0, ["features.4"], published), LITE0, "'_blocks.3._bn1.bias'")
    message(lambda: Backbone(LITE0, ["features.4"], folded), f"do not fit {LITE0}: 2 of ", "'2.0.weight'")


@torch.inference_mode()
def test_a_checkpoint_holds_a_captioner_on_it(tmp_path):
    layers = attended_layers(LITE0, ["2"])
    config = ModelConfig(backbone=LITE0, layers=layers, attention_width=8, embedding_size=8, lstm_size=16)
    model = SCACNN(config, 6, lite_weights()).eval()
    path = tmp_path / "best.pt"
    checkpoint.save(path, checkpoint.Checkpoint(model, Vocabulary(["a", "dog"]), Transform()))
    loaded = checkpoint.load(path).model
    pixels = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(loaded.encode(pixels)[0], model.encode(pixels)[0])


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", ["features.0", "features.14", "features.14.1", "features.16", "features.17"]
)
def test_gradients_reach_only_layers_from_the_first_trained_one(first):
    backbone = Backbone(LITE0, ["features.15", "features.17"], lite_weights())
    backbone.set_trainable(True, first)
    names = [name for name, _ in backbone.network.named_parameters()]
    start = next(i for i, name in enumerate(names) if name.startswith(f"{first}."))
    attended = backbone.trunk(images())[0]
    attended = attended.detach().requires_grad_() if start > names.index("features.15.2.bias") else attended
    backbone.segment(0, attended, ())[0].square().sum().backward()
    touched = [name for name, p in backbone.network.named_parameters() if p.grad is not None]
    assert touched == names[start:]


def test_the_trunk_is_split_at_the_first_trained_block():
    backbone = Backbone(LITE0, ["features.15", "features.17"])
    modules: dict[str, tuple[list[nn.Module], list[nn.Module]] | None] = {}
    for first in ("features.0", "features.1", "features.14.1", "features.16"):
        backbone.set_trainable(True, first)
        parts = backbone._trunk_parts
        modules[first] = parts and tuple(list(part or ()) for part in parts)
    whole = [backbone.network.scaling, *backbone.network.features[:16]]
    assert modules == {
        "features.0": None,
        "features.1": (whole[:2], whole[2:]),
        "features.14.1": (whole[:15], whole[15:]),
        "features.16": (whole, []),
    }


# ---- errors and imports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["features.18", "features.16.0", "features", "layer4"])
def test_unknown_layers_list_the_blocks(layer):
    text = message(lambda: Backbone(LITE0, ["features.3", layer]), repr(layer), "features.0, features.1, ")
    assert text.endswith(", features.17")


@pytest.mark.parametrize("layers", [("features.3", "features.2"), ("features.2", "features.2"), ()])
def test_layers_in_the_wrong_order(layers):
    message(lambda: Backbone(LITE0, layers), "lowest first", " ".join(layers))


def test_an_unknown_first_trained_layer():
    backbone = Backbone(LITE0, ["features.3"])
    message(
        lambda: backbone.set_trainable(True, "features.4"),
        "--finetune-from 'features.4'",
        "features.3",
        LITE0,
    )


def test_attention_blocks_inside_are_refused():
    message(lambda: Backbone(LITE0, ["features.17"], attention="se"), f"'{LITE0}'", "resnet18")


@pytest.mark.slow
def test_it_needs_no_torchvision():
    code = (
        "import sys; from sca_caption.models.backbone import Backbone, attended_layers;"
        "Backbone('efficientnet_lite2', attended_layers('efficientnet_lite2', ('2',)));"
        "print(*({'torchvision', 'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("", 0), found.stderr
