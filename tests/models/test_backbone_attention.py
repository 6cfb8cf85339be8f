"""Attention blocks in the captioner's CNN: results, training, and checkpoints."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sca_caption import checkpoint
from sca_caption.attention import BLOCKS
from sca_caption.decoding.beam_search import greedy
from sca_caption.images import Transform
from sca_caption.models.backbone import Backbone
from sca_caption.models.networks import attention_blocks, build_network
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.batches import Batch, Example, collate
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import message
from tests.helpers.networks import assert_near, attend, factors, pictures, randomised
from tests.helpers.tiny_captioner import TINY, TINY_WORDS

CUT = {
    "resnet18": ("layer3.1", "layer4.0", "layer4.1.relu", "layer4"),
    "mobilenet_v2": ("features.16", "features.17", "features.18"),
    "mobilenext": ("features.12", "features.19", "features"),
    "lenet": ("features.relu1", "features.conv2", "features"),
}


def network(name: str, block: str, at: tuple[str, ...] = ()) -> nn.Module:
    """A network in evaluation mode with random batch-norm statistics and perturbed blocks."""
    torch.manual_seed(0)
    model = randomised(build_network(name, 5, attention=block, at=at))
    with torch.no_grad():
        for module in attention_blocks(model).values():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "block"),
    [("resnet18", block) for block in BLOCKS]
    + [(name, block) for name in CUT if name != "resnet18" for block in ("coord", "sk", "bam", "nonlocal", "danet")],
)  # fmt: skip
@torch.inference_mode()
def test_segments_agree_with_the_network_with_attention_at_its_layers(name, block):
    layers, model = CUT[name], network(name, block)
    backbone = Backbone(name, layers, model.state_dict(), block)
    assert list(backbone.blocks()) == list(attention_blocks(model))
    wanted = attend(model, layers)
    model(pictures())
    maps = backbone.trunk(pictures())
    for i, layer in enumerate(layers):
        assert_near(maps[0], wanted[layer], layer)
        if i + 1 < len(layers):
            maps = backbone.segment(i, maps[0] * factors(maps[0], i), maps[1:])


@torch.inference_mode()
def test_batch_norms_are_folded_outside_the_blocks_only():
    model = network("resnet18", "cbam")
    backbone = Backbone("resnet18", ("layer4",), model.state_dict(), "cbam")
    theirs = attention_blocks(model)
    for path, block in backbone.blocks().items():
        assert list(block.state_dict()) == list(theirs[path].state_dict())
        assert all(torch.equal(v, theirs[path].state_dict()[k]) for k, v in block.state_dict().items())
    inside = {id(m) for block in backbone.blocks().values() for m in block.modules()}
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(id(norm) in inside for norm in norms)
    backbone.train()
    assert not any(norm.training for norm in norms)


def test_named_stages():
    backbone = Backbone("resnet18", ("layer2",), attention="se", at=("layer1", "layer4"))
    assert list(backbone.blocks()) == ["layer1.0.attention", "layer1.1.attention"]


def test_torchvision_weights_are_loaded_and_blocks_are_initialised():
    weights = build_network("resnet18").state_dict()
    backbone = Backbone("resnet18", ("layer4",), weights, "danet_position")
    assert backbone.blocks()["layer4.attention"].gamma.item() == 0
    plain = Backbone("resnet18", ("layer4",), weights)
    assert_near(backbone.trunk(pictures())[0], plain.trunk(pictures())[0], "layer4")


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["", "layer2", "layer2.1"])
def test_blocks_are_trained_in_frozen_networks(first):
    backbone = Backbone("resnet18", ("layer2.0", "layer2.1"), attention="se")
    inside = tuple(f"network.{path}." for path in backbone.blocks())
    backbone.set_trainable(False, first)
    assert all(p.requires_grad == key.startswith(inside) for key, p in backbone.named_parameters())
    maps = backbone.trunk(pictures())
    backbone.segment(0, maps[0], maps[1:])[0].sum().backward()
    assert all((p.grad is not None) == key.startswith(inside) for key, p in backbone.named_parameters())
    backbone.set_trainable(True, first)
    below = [key for key, p in backbone.named_parameters() if not p.requires_grad]
    assert not any(key.startswith(inside) for key in below)
    assert bool(below) == bool(first)
    assert not any(key.startswith(f"network.{first}.") for key in below)


def captions() -> Batch:
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    images = F.interpolate(coarse, 32).to(torch.uint8)
    words = [[4, 5, 6], [7, 8], [9, 10, 11, 5], [6, 4]]
    return collate([Example(image, [caption], None, 0) for image, caption in zip(images, words, strict=True)])


def tiny(block: str, layers: tuple[str, ...] = TINY.layers) -> SCACNN:
    sizes = {"lstm_size": 128, "embedding_size": 64, "dropout": 0.0}
    config = dataclasses.replace(TINY, backbone_attention=block, layers=layers, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SCACNN(config, len(TINY_WORDS) + 4)


@pytest.mark.parametrize("block", ["se", "cbam"])
def test_a_captioner_overfits_with_its_blocks_while_the_cnn_is_frozen(block):
    model = tiny(block).train()
    model.backbone.set_trainable(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch, losses = captions(), []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    for _ in range(48):
        optimizer.zero_grad()
        loss = caption_loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    inside = {f"backbone.network.{path}" for path in model.backbone.blocks()}
    parameters = {key for key, _ in model.named_parameters()}
    for key in parameters:
        if key.startswith("backbone."):
            assert (key in changed) == key.startswith(tuple(inside)), key
    assert changed <= parameters  # running statistics did not change
    model.eval()
    found = greedy(model, model.start(model.encode(batch.images)), max_length=8)
    assert [f.tokens for f in found] == [[w for w in row.tolist() if w > 3] for row in batch.captions]


@pytest.mark.parametrize("block", ["se", "cbam", "bam"])
@torch.inference_mode()
def test_images_of_a_batch_are_independent(block):
    model = tiny(block, ("layer1.0", "layer2.0")).eval()
    images = captions().images
    together = model.encode(images)
    for i in range(len(images)):
        for whole, alone in zip(together, model.encode(images[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["se", "cbam:spatial=false"])
def test_checkpoints_and_copies_keep_the_blocks(block, tmp_path):
    model = tiny(block).eval()
    with torch.no_grad():
        for module in model.backbone.blocks().values():
            for parameter in module.parameters():
                parameter.normal_()
    path = tmp_path / "best.pt"
    checkpoint.save(path, checkpoint.Checkpoint(model, Vocabulary(TINY_WORDS), Transform(size=32), {}))
    loaded = checkpoint.load(path).model
    assert loaded.config.backbone_attention == block
    batch = captions()
    for other in (loaded, copy.deepcopy(model)):
        assert torch.equal(caption_loss(other.eval(), batch), caption_loss(model, batch))
        assert list(other.backbone.blocks()) == list(model.backbone.blocks())


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("alexnet", ("features",), None, "se"), "unknown backbone with attention 'alexnet'; one of: densenet121, "),
        (("resnet18", ("layer4",), None, "cbma"), "unknown attention 'cbma'; one of: "),
        (("resnet18", ("layer4",), None, "se", ("stage1",)), "unknown stage of resnet18 'stage1'; one of: layer1, "),
        (("resnet18", ("layer4",), None, "", ("layer1",)), "stages layer1 "),
        (
            ("resnet18", ("layer4.0", "layer4.1"), None, "danet"),
            "danet is at layer4.attention of resnet18, ",
        ),
        (("resnet18", ("layer4",), {}, "se"), "these weights do not fit resnet18: 100 of 100 tensors "),
    ],
)  # fmt: skip
def test_errors_are_one_line(arguments, text):
    assert message(lambda: Backbone(*arguments)).startswith(text)


def test_the_remedy_for_a_block_above_works():
    text = message(lambda: Backbone("resnet18", ("layer4.0", "layer4.1"), None, "danet"))
    assert (
        "layer4.1" in text and "attend layer4.attention last (--layers)" in text and "--backbone-at" in text
    )
    backbone = Backbone("resnet18", ("layer4.0", "layer4.attention"), None, "danet")
    assert list(backbone.blocks()) == ["layer4.attention"]


@pytest.mark.parametrize("name", ["lenet", "mobilenext"])
def test_networks_outside_torchvision_are_backbones(name):
    backbone = Backbone(name, CUT[name][:2])
    assert backbone.blocks() == {}
    assert len(backbone.trunk(pictures())) >= 1
