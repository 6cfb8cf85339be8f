"""ImageNet's classifier beside the captioner, against torchvision's whole network."""

import dataclasses

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import average
from sca_caption.guidance.novel_objects import Limits
from sca_caption.guidance.object_classifier import pretrained_classifier
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.backbone import Backbone
from sca_caption.vocab import Vocabulary
from tests.helpers.guided_captioners import TUNED, features_of, imagenet_network, tuned
from tests.helpers.guided_captioners import pixels as photographs
from tests.helpers.lite_weights import lite_weights, written_out
from tests.helpers.made_photos import message
from tests.helpers.tiny_captioner import tiny_captioner


@pytest.fixture(scope="module")
def network():
    return imagenet_network()


@torch.inference_mode()
def probabilities(model, objects, pixels):
    with objects.capture_input(model.backbone) as inputs:
        model.start(model.encode(pixels))
    return objects.class_probabilities(objects.image_features(torch.cat(inputs)))


@pytest.mark.parametrize("first", [1, TUNED, 17])
def test_it_equals_the_whole_network(network, first):
    model = tuned(network, first)
    objects = pretrained_classifier(network.state_dict(), model.backbone)
    assert objects.first == first
    pixels = torch.randint(256, (7, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = network((pixels / 255 - model.mean) / model.std).softmax(1)
    assert wanted.max() > 0.05  # not all alike
    torch.testing.assert_close(probabilities(model, objects, pixels), wanted, rtol=1e-3, atol=1e-6)


def test_without_fine_tuning_all_lower_blocks_are_shared(network):
    assert pretrained_classifier(network.state_dict(), tuned(network, 19).backbone).first == 17


@torch.inference_mode()
def test_images_of_another_size_are_seen_whole_and_at_imagenets(network):
    model = tuned(network, 0)  # no block is common
    objects = pretrained_classifier(network.state_dict(), model.backbone, size=288)
    assert objects.first == 0
    pixels = torch.rand(2, 3, 9, 9).mul(255)
    pixels = torch.nn.functional.interpolate(pixels, (288, 288), mode="bilinear").to(torch.uint8)
    images = (pixels / 255 - model.mean) / model.std
    small = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    wanted = network(small).softmax(1)
    torch.testing.assert_close(probabilities(model, objects, pixels), wanted, rtol=1e-3, atol=1e-6)
    assert (network(images).softmax(1) - wanted).abs().max() > 1e-3  # it would not be the same


@torch.inference_mode()
def test_an_efficientnet_lite_sees_pixels_as_it_was_taught_to(network):
    """Against the written-out network on (pixel - 127) / 128 at its own size."""
    weights, model = lite_weights(), tuned(network, 0)
    objects = pretrained_classifier(weights, model.backbone, size=64)
    assert (objects.first, objects.network, objects.size) == (0, "efficientnet_lite0", 224)
    pixels = torch.rand(2, 3, 9, 9).mul(255)
    pixels = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear").to(torch.uint8)
    with objects.capture_input(model.backbone) as maps:
        model.encode(pixels)
    large = torch.nn.functional.interpolate(pixels.float(), (224, 224), mode="bilinear", antialias=True)
    wanted = written_out(weights, (large - 127) / 128, "efficientnet_lite0").mean((2, 3))
    seen = objects.image_features(torch.cat(maps))
    torch.testing.assert_close(seen, wanted, rtol=1e-3, atol=1e-3)
    logits = wanted @ weights["_fc.weight"].T + weights["_fc.bias"]
    torch.testing.assert_close(
        objects.class_probabilities(seen), (1.2 * logits).softmax(1), rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_checkpoint_holds_an_efficientnet_lite(network, dtype, tmp_path, capsys):
    model, words = tuned(network, 0), Vocabulary(["a", "dog", "cat"])
    checkpoint.save(tmp_path / "best.pt", Checkpoint(model, words, Transform(64)))
    torch.save(lite_weights(), tmp_path / "lite.pth")
    flags = ["--objects", str(tmp_path / "lite.pth"), "--dtype", dtype]
    assert average.main([str(tmp_path / "named"), str(tmp_path / "best.pt"), *flags]) == 0
    assert "efficientnet_lite0" in capsys.readouterr().err
    found = checkpoint.load(tmp_path / "named").guides["objects"]
    wanted = pretrained_classifier(lite_weights(), model.backbone, size=64)
    assert found.network == "efficientnet_lite0" and found.features[0].weight.shape == (32, 3, 3, 3)
    below = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        error = (found.image_features(below) - wanted.image_features(below)).norm()
        error = error / wanted.image_features(below).norm()
    assert error < {"float32": 1e-5, "int8": 0.05}[dtype]
    assert average.main([str(tmp_path / "alone"), str(tmp_path / "best.pt"), "--dtype", dtype]) == 0
    added = (tmp_path / "named").stat().st_size - (tmp_path / "alone").stat().st_size
    count = sum(p.numel() for p in wanted.parameters())
    assert added == pytest.approx({"float32": 4, "int8": 1}[dtype] * count, rel=0.1)


def test_weights_of_an_efficientnet_lite_that_are_not_whole(network):
    weights, model = lite_weights(), tuned(network, 0)
    del weights["_blocks.3._bn1.bias"]
    assert "not all of efficientnet_lite0" in message(lambda: pretrained_classifier(weights, model.backbone))
    weights = {
        name: value[:10] if name.startswith("_fc") else value for name, value in lite_weights().items()
    }
    assert "no classifier of 1000 classes (_fc)" in message(
        lambda: pretrained_classifier(weights, model.backbone)
    )


@torch.inference_mode()
def test_capturing_changes_nothing_and_ends(network):
    model = tuned(network)
    objects = pretrained_classifier(network.state_dict(), model.backbone)
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    before = model.encode(pixels)[0].clone()
    with objects.capture_input(model.backbone) as maps:
        assert torch.equal(model.encode(pixels)[0], before)
    objects.image_features(maps[0])
    assert torch.equal(model.encode(pixels)[0], before) and len(maps) == 1
    stored = (torch.randn(2, 1280, 2, 2),)
    with objects.capture_input(model.backbone) as maps:
        model.encode(stored)
    assert maps == []  # features that were stored hold nothing to see


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_checkpoint_holds_it(network, dtype, tmp_path):
    model = tuned(network)
    objects = pretrained_classifier(network.state_dict(), model.backbone)
    given = Checkpoint(model, Vocabulary(["a", "dog", "cat"]), Transform(64), guides={"objects": objects})
    checkpoint.save(tmp_path / "named", given, dtype)
    found = checkpoint.load(tmp_path / "named")
    assert found.guides["objects"].first == TUNED
    _, wanted = features_of(model, objects, photographs(8))
    _, features = features_of(found.captioner, found.guides["objects"], photographs(8))
    error = (features - wanted).norm() / (wanted - wanted.mean(0)).norm()
    assert error < {"float32": 1e-6, "float16": 0.2, "int8": 0.2}[dtype]
    # Half a copy of the network is all that it adds.
    checkpoint.save(tmp_path / "alone", Checkpoint(model, given.vocabulary, given.transform), dtype)
    assert not checkpoint.load(tmp_path / "alone").guides
    added = (tmp_path / "named").stat().st_size - (tmp_path / "alone").stat().st_size
    count = sum(p.numel() for p in objects.parameters())
    size = {"float32": 4 * count, "float16": 2 * count, "int8": count}[dtype]
    assert count < 3e6 and added == pytest.approx(size, rel=0.1)


def test_it_goes_into_a_checkpoint_that_exists(network, tmp_path, capsys):
    model = tuned(network)
    vocabulary = Vocabulary(["a", "dog", "cat"])
    checkpoint.save(tmp_path / "best.pt", Checkpoint(model, vocabulary, Transform(224)))
    torch.save(network.state_dict(), tmp_path / "imagenet.pth")
    output = tmp_path / "model.safetensors"
    flags = ["--objects", str(tmp_path / "imagenet.pth"), "--dtype", "float32"]
    assert average.main([str(output), str(tmp_path / "best.pt"), *flags]) == 0
    assert "features.14" in capsys.readouterr().err
    found = checkpoint.load(output)
    assert found.guides["objects"].first == TUNED
    assert torch.equal(found.guides["objects"].classifier.weight, network.classifier[1].weight)
    assert average.main([str(tmp_path / "again"), str(output)]) == 0  # keeps what it has
    assert checkpoint.load(tmp_path / "again").guides["objects"].first == TUNED

    checkpoint.save(tmp_path / "best.pt", Checkpoint(model, vocabulary, Transform(288)))
    assert average.main([str(output), str(tmp_path / "best.pt"), *flags]) == 0
    assert (
        checkpoint.load(output).guides["objects"].first == 0
    )  # the classifier sees the image at ImageNet's size


def test_what_it_cannot_share_with(network):
    weights = network.state_dict()
    model = tuned(network, 0)
    assert "block features.0 of the captioner's CNN differs from these weights" in message(
        lambda: pretrained_classifier(weights, model.backbone)
    )
    assert "only captioners with a plain mobilenet_v2" in message(
        lambda: pretrained_classifier(weights, tiny_captioner().backbone)
    )
    inside = Backbone("mobilenet_v2", ("features.17.conv.1", "features.18"))
    assert "attended after whole blocks" in message(lambda: pretrained_classifier(weights, inside))
    headless = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    assert "have no classifier of 1000 classes" in message(
        lambda: pretrained_classifier(headless, tuned(network).backbone)
    )


@torch.inference_mode()
def test_a_pipeline_inserts_what_it_classifies(network):
    model, words = tuned(network), Vocabulary(["a", "dog", "cat", "on"])
    model.embedding, model.word = torch.nn.Embedding(len(words), 8), torch.nn.Linear(8, len(words))
    objects = pretrained_classifier(network.state_dict(), model.backbone)
    plain = Checkpoint(model, words, Transform(64))
    given = dataclasses.replace(plain, guides={"objects": objects})
    pixels = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8)
    pipeline = CaptionPipeline.load(given)
    (lexicon,) = pipeline.guides
    lexicon.limits = Limits(margin=1e9)
    without, switched_off, found = (
        [captions[0].text for captions in each.caption_batch(pixels)]
        for each in (CaptionPipeline.load(plain), CaptionPipeline.load(given, objects=False), pipeline)
    )
    assert without == switched_off
    _, predictions = pipeline.model.start(pixels, pipeline.guides)
    nouns = probabilities(model, objects, pixels) @ objects.membership
    torch.testing.assert_close(predictions["objects"], nouns, rtol=1e-4, atol=1e-6)
    changed = 0
    for row, before, after in zip(nouns, without, found, strict=True):
        noun = lexicon.nouns[lexicon.most_probable(row)]
        if row.max() >= Limits.threshold:
            assert noun.is_in(after)
        changed += before != after
        assert (before == after) == (row.max() < Limits.threshold or noun.is_in(before))
    assert changed
    lexicon.limits = Limits(margin=-1e9)  # no caption is probable enough
    assert [captions[0].text for captions in pipeline.caption_batch(pixels)] == without
    stored = model.encode(pixels)  # stored maps, of which there are no pixels to classify
    assert [captions[0].text for captions in pipeline.caption_batch(stored)] == without
