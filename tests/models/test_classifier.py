"""Classifiers: the initial loss, mixup by its formula, ImageNet weights, and checkpoints."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ClassifierConfig
from sca_caption.images import MEAN, STD, Transform
from sca_caption.models.classifier import Classifier
from sca_caption.models.networks import build_network
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import message
from tests.helpers.tiny_captioner import tiny_captioner

LENET = ClassifierConfig(backbone="lenet", image_size=32, classes=("cat", "cup", "dog", "hat"))


def classifier(**changes) -> Classifier:
    torch.manual_seed(0)
    return Classifier(dataclasses.replace(LENET, **changes))


def examples(count: int = 6, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 4


def test_logits_are_the_networks_logits_for_normalised_pixels():
    model, (images, _) = classifier(attention="se").eval(), examples()
    pixels = torch.stack(
        [
            (images[:, c].float() / 255 - mean) / std
            for c, (mean, std) in enumerate(zip(MEAN, STD, strict=True))
        ],
        1,
    )
    logits = model(images)
    assert logits.shape == (6, 4)
    torch.testing.assert_close(logits, model.network(pixels), atol=1e-5, rtol=1e-5)
    for i in range(6):
        torch.testing.assert_close(model(images[i : i + 1])[0], logits[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["", "cbam", "sca", "danet"])
def test_the_initial_loss_is_about_log_k(attention):
    model, (images, labels) = classifier(attention=attention).train(), examples(64)
    assert model.loss(images, labels).item() == pytest.approx(math.log(4), abs=0.25)


def test_the_loss_is_cross_entropy():
    model, (images, labels) = classifier(), examples()
    log_p = model(images).log_softmax(1)
    wanted = -log_p[range(6), labels].mean()
    torch.testing.assert_close(model.loss(images, labels), wanted)
    smoothed = 0.9 * wanted - 0.1 * log_p.mean()
    torch.testing.assert_close(model.loss(images, labels, label_smoothing=0.1), smoothed)


def test_mixup_agrees_with_its_formula():
    model, (images, labels) = classifier(), examples()
    torch.manual_seed(5)
    found = model.loss(images, labels, mixup=0.4)
    torch.manual_seed(5)
    share = torch.distributions.Beta(0.4, 0.4).sample().item()
    other = torch.randperm(6).tolist()
    wanted = 0.0
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    for i, j in enumerate(other):
        blend = share * (images[i] / 255) + (1 - share) * (images[j] / 255)
        log_p = model.network(((blend - mean) / std)[None]).log_softmax(1)[0]
        target = share * F.one_hot(labels[i], 4) + (1 - share) * F.one_hot(labels[j], 4)
        wanted -= (target * log_p).sum() / 6
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert 0 < share < 1 and other != list(range(6))


def test_thirty_steps_overfit_eight_images():
    images, labels = examples(8)
    for attention in ("", "csham", "self_attention"):
        model = classifier(attention=attention).train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(30):
            optimizer.zero_grad()
            model.loss(images, labels).backward()
            optimizer.step()
        assert (model.eval()(images).argmax(1) == labels).all(), attention


def test_imagenet_weights_are_loaded_and_missing_keys_named():
    weights = build_network("lenet", 1000).state_dict()
    torch.manual_seed(0)
    model = Classifier(dataclasses.replace(LENET, attention="cbam"), weights)
    own = model.network.state_dict()
    head = [name for name in own if own[name].shape != weights.get(name, own[name]).shape]
    assert head and set(model.unloaded) >= set(head)
    assert {n for n in model.unloaded if n not in head and "num_batches" not in n} == {
        n for n in own if n not in weights and "num_batches" not in n
    }
    for name in set(weights) - set(head):
        assert torch.equal(own[name], weights[name]), name


def test_one_class_is_refused():
    message(lambda: classifier(classes=("cat",)), "at least two classes", "found 1")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_restores_the_classifier(tmp_path):
    model, (images, _) = classifier(attention="bam:combine=add", at=("conv2",)).eval(), examples()
    saved = Checkpoint(model, None, Transform(32, "crop"), {"val": {"top-1": 50.0}})
    checkpoint.save(tmp_path / "best.pt", saved)
    found = checkpoint.load(tmp_path / "best.pt", "classify")
    assert (found.config, found.transform, found.metrics) == (model.config, saved.transform, saved.metrics)
    assert (found.task, found.vocabulary) == ("classify", None)
    assert torch.equal(found.model(images), model(images))


def test_a_checkpoint_of_the_other_task_is_refused(tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, Checkpoint(classifier(), None, Transform(32, "crop")))
    message(
        lambda: checkpoint.load(path), f"{path} is a classifier", "sca_caption classify", "--task classify"
    )
    words = [f"word{i}" for i in range(16)]
    checkpoint.save(path, Checkpoint(tiny_captioner(), Vocabulary(words), Transform(32)))
    message(
        lambda: checkpoint.load(path, "classify"), f"{path} is a captioner", "caption.py", "--task classify"
    )
