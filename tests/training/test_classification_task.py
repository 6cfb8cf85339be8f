"""Training classifiers: augmentation, the training loop, the moving average of weights."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sca_caption import checkpoint
from sca_caption.config import ClassifierConfig, ClassifierTrainConfig
from sca_caption.datasets.classification import LabelledImages, open_dataset
from sca_caption.images import Transform
from sca_caption.models.classifier import Classifier
from sca_caption.models.networks import build_network
from sca_caption.training.classification_task import ClassificationTask, Views, trainable_weights, view
from sca_caption.training.ema import EMA
from sca_caption.training.loop import train
from tests.helpers.classified_pictures import class_folders
from tests.helpers.made_photos import message
from tests.helpers.training_runs import Interruption, assert_equal_histories, assert_equal_tensors, reporter

QUICK = ClassifierTrainConfig(epochs=2, batch_size=8, workers=0, lr=0.01, views="none")
SMALL = Transform(32, "crop")

pytestmark = pytest.mark.usefixtures("no_tensorboard")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures") / "fruit")


@pytest.fixture
def data(root) -> LabelledImages:
    return open_dataset("folder", root)


def classifier(data: LabelledImages, **changes) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(backbone="lenet", attention="se", image_size=32, classes=data.classes)
    return Classifier(dataclasses.replace(config, **changes))


def run(data, output, config, stop_after=None, resume=False, **changes):
    """Train. Returns the history and the reported lines. stop_after: the run is interrupted after so many epochs."""
    report, lines = reporter(stop_after)
    resumed = checkpoint.load(output / "last.pt", "classify") if resume else None
    model = resumed.model if resume else classifier(data, **changes)
    source = {"dataset": "folder", "root": "fruit"}
    return train(ClassificationTask(model, data, config, source), config, output, resumed, report), lines


# ---- pretrained weights ----------------------------------------------------------------------------------------------


def test_folded_batch_norms_get_the_statistics_of_training_images(data):
    """So that the network is the same in training as in evaluation, within the noise of a batch."""
    torch.manual_seed(0)
    network = build_network("resnet20")
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # mean 0 and variance 1, as folding leaves them
            torch.nn.init.normal_(norm.bias, -1)
    folded = network.state_dict()
    config = ClassifierConfig(backbone="resnet20", image_size=32, classes=data.classes)
    model = Classifier(config, trainable_weights(folded, config, data))
    images, _ = zip(*(Views(data, SMALL)[0, row] for row in data.indices("train")), strict=True)
    batch = torch.stack(images)
    as_folded = Classifier(config, folded)
    as_folded.network.fc = model.network.fc  # is new in both
    evaluated = model.eval()(batch)
    torch.testing.assert_close(evaluated, as_folded.eval()(batch), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(evaluated, model.train()(batch), rtol=1e-2, atol=1e-2)
    unfolded = model.network.state_dict()
    assert trainable_weights(unfolded, config, data) is unfolded


# ---- augmentation ----------------------------------------------------------------------------------------------------


def numbered(height: int, width: int) -> np.ndarray:
    """Pixels with their place as their value: (row, column, 7)."""
    rows, columns = np.mgrid[1 : height + 1, 1 : width + 1]
    return np.stack([rows, columns, np.full_like(rows, 7)], 2).astype(np.uint8)


def test_views_pad_shifts_by_up_to_four_pixels_and_mirrors_half():
    config = dataclasses.replace(QUICK, views="pad")
    seen, mirrored = set(), 0
    for i in range(600):
        found = view(numbered(32, 32), SMALL, random.Random(i), config)
        assert found.shape == (32, 32, 3)
        inside = found[found[:, :, 2] == 7]  # the rest is the border, black
        assert found[found[:, :, 2] != 7].sum() == 0
        flipped = bool(found[16, 15, 1] > found[16, 16, 1])
        mirrored += flipped
        upright = found[:, ::-1] if flipped else found
        rows, columns = int(upright[16, 16, 0]) - 17, int(upright[16, 16, 1]) - 17
        seen.add((rows, columns))
        assert len(inside) == (32 - abs(rows)) * (32 - abs(columns))
    assert seen == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}
    assert 250 < mirrored < 350


def test_views_resized_keeps_at_least_crop_scale():
    config = dataclasses.replace(QUICK, views="resized", crop_scale=0.25)
    shares, mirrored = [], 0
    for i in range(300):
        found = view(numbered(120, 120), SMALL, random.Random(i), config).astype(int)
        height, width = found[-1, 0, 0] - found[0, 0, 0], found[0, -1, 1] - found[0, 0, 1]
        shares.append(height * abs(width) / 120**2 * (32 / 31) ** 2)
        mirrored += width < 0
        assert 0.6 < height / abs(width) < 1.7  # aspects 3/4 to 4/3, and roundings
    assert 0.2 < min(shares) < 0.3 and max(shares) > 0.85
    assert 110 < mirrored < 190


def test_augmentation_depends_only_on_seed_epoch_and_image(data):
    config = dataclasses.replace(QUICK, views="resized", seed=3)
    one, same = Views(data, SMALL, config), Views(data, SMALL, config)
    other = Views(data, SMALL, dataclasses.replace(config, seed=4))
    wanted, label = one[5, 2]
    assert wanted.shape == (3, 32, 32) and wanted.dtype == torch.uint8 and label == data.labels[2]
    assert [same[key] is None for key in ((0, 0), (7, 1))] == [False, False]  # others are read in between
    assert torch.equal(same[5, 2][0], wanted)
    assert not torch.equal(other[5, 2][0], wanted) and not torch.equal(one[6, 2][0], wanted)


def test_validation_uses_the_centre_square(data):
    pixels, _ = Views(data, SMALL)[0, 3]  # of 40 x 32 pixels: without four columns on each side
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), data.pixels(3)[:, 4:36])


# ---- the loop --------------------------------------------------------------------------------------------------------

RESUMED = {
    "recipe": {"schedule": "step", "warmup": 0.1, "views": "pad"},
    "all at once": {"ema": 0.9, "mixup": 0.4, "label_smoothing": 0.1, "views": "resized", "clip": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "workers": 1, "limit": 17},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", RESUMED.values(), ids=list(RESUMED))
def test_a_resumed_run_equals_an_uninterrupted_one(changes, data, tmp_path):
    config = dataclasses.replace(QUICK, epochs=4, **changes)
    history, _ = run(data, tmp_path / "whole", config)
    with pytest.raises(Interruption):
        run(data, tmp_path / "parts", config, stop_after=2)
    resumed, lines = run(data, tmp_path / "parts", config, resume=True)
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch  3/", "epoch  4/"]
    assert_equal_histories(resumed, history)
    for name in ("last.pt", "best.pt"):
        whole, parts = (checkpoint.load(tmp_path / f / name, "classify") for f in ("whole", "parts"))
        assert_equal_tensors(parts.model.state_dict(), whole.model.state_dict())
        assert_equal_tensors(parts.extra, whole.extra)


def test_it_learns_and_its_accuracy_equals_that_of_single_images(data, tmp_path):
    history, lines = run(data, tmp_path, dataclasses.replace(QUICK, epochs=6, optimizer="adamw", lr=5e-3))
    best = checkpoint.load(tmp_path / "best.pt", "classify")
    views, rows = Views(data, SMALL), data.indices("val")
    with torch.no_grad():
        right = [int(best.model(views[0, i][0][None]).argmax()) == data.labels[i] for i in rows]
    assert max(r["top-1"] for r in history) == best.metrics["val"]["top-1"] == 100 * np.mean(right)
    assert best.metrics["val"]["top-1"] > 85 and best.metrics["val"]["top-5"] == 100
    assert best.metrics["data"] == {"dataset": "folder", "root": "fruit"}
    assert lines[0].startswith("lenet + se on folder: 32 training and 8 validation images (")
    assert lines[-1].startswith("epoch  6/6  loss ") and "val top-1 " in lines[-1]


def test_an_epoch_has_every_image_once_except_a_partial_batch(data):
    task = ClassificationTask(classifier(data), data, dataclasses.replace(QUICK, batch_size=5), {})
    seen = torch.cat([labels for _, labels in task.batches(0)])
    assert (task.steps_per_epoch, task.images_per_epoch, len(seen)) == (6, 30, 30)
    orders = [next(iter(task.batches(epoch)))[1].tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]

    limited = ClassificationTask(classifier(data), data, dataclasses.replace(QUICK, limit=9), {})
    assert limited.images_per_epoch == 8 and set(limited.rows) < set(data.indices("train"))


def test_fewer_images_than_a_batch_is_an_error(data):
    config = dataclasses.replace(QUICK, batch_size=64)
    text = message(lambda: ClassificationTask(classifier(data), data, config, {}))
    assert text.startswith("--batch-size 64: ") and "32" in text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_an_error_also_in_a_worker_process(workers, tmp_path):
    root = class_folders(tmp_path / "fruit")
    (root / "leaf" / "3.png").write_bytes(b"no picture")
    text = message(
        lambda: run(
            open_dataset("folder", root), tmp_path / "run", dataclasses.replace(QUICK, workers=workers)
        )
    )
    assert text.startswith(f"{root / 'leaf' / '3.png'}: ")


# ---- moving average of weights ---------------------------------------------------------------------------------------


def test_ema_follows_its_recurrence():
    model = torch.nn.BatchNorm1d(1)
    average = EMA(model, 0.75)
    wanted = 1.0
    for step, value in enumerate([2.0, -1.0, 4.0, 0.5, 3.0, 3.0, 1.0, 8.0, 2.0, 5.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked += 1
        average.update(model)
        decay = min(0.75, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * value
    with average.applied(model):
        assert model.weight.item() == pytest.approx(wanted) and model.num_batches_tracked == 10
    assert model.weight.item() == 5.0


def test_validation_and_best_pt_use_the_averaged_weights(data, tmp_path, monkeypatch):
    scored = []
    validate = ClassificationTask.validate

    def watched(self):
        scored.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return validate(self)

    monkeypatch.setattr(ClassificationTask, "validate", watched)
    run(data, tmp_path, dataclasses.replace(QUICK, epochs=1, ema=0.9))
    best, last = (checkpoint.load(tmp_path / f"{name}.pt", "classify") for name in ("best", "last"))
    for name, value in best.model.state_dict().items():
        assert torch.equal(value, scored[0][name]) and torch.equal(value, last.extra[f"average.{name}"])
    assert any(not torch.equal(v, scored[0][k]) for k, v in last.model.state_dict().items())
