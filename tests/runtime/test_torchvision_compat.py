"""Non-maximum suppression of torchvision, compiled or the project's, against a brute-force search over pairs."""

import pytest
import torch
from torch import Tensor

from sca_caption.runtime import torchvision_compat
from sca_caption.runtime.torchvision_compat import torchvision

THRESHOLD = 0.3125  # exact in float32, as an overlap of the same value is


def iou(a: list[float], b: list[float]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)


def brute_force(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def random_boxes(count: int, seed: int) -> Tensor:
    """Whole numbers up to 40, so that overlaps are exact in float32."""
    corner, size = torch.randint(1, 20, (2, count, 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([corner, corner + size], 1).float()


@pytest.mark.parametrize("nms", [torchvision.ops.nms, torchvision_compat.nms])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_kept_boxes_are_those_of_brute_force(nms, threshold, count):
    for seed in range(3):
        boxes = random_boxes(count, seed)
        # Many have equal scores.
        scores = torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(seed)) / 10
        found = nms(boxes, scores, threshold)
        assert found.dtype == torch.int64
        assert found.tolist() == brute_force(boxes.tolist(), scores.tolist(), threshold)


@pytest.mark.parametrize("nms", [torchvision.ops.nms, torchvision_compat.nms])
def test_overlaps_at_the_threshold_are_kept_and_of_equal_scores_the_first(nms):
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1]])  # IoU of the first two: exactly 1/2
    assert nms(boxes, torch.tensor([0.5, 0.5, 0.5]), 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.5, 0.5, 0.5]), 0.49).tolist() == [0]
    assert nms(boxes, torch.tensor([0.1, 0.2, 0.3]), 0.5).tolist() == [2, 1]
    # Two boxes without area have no intersection over union, and both are kept.
    assert nms(torch.ones(2, 4), torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]


def test_many_boxes_are_compared_in_parts(monkeypatch):
    boxes, scores = random_boxes(100, 0), torch.rand(100, generator=torch.Generator().manual_seed(1))
    wanted = brute_force(boxes.tolist(), scores.tolist(), THRESHOLD)
    for rows in (1, 7, 100):
        monkeypatch.setattr(torchvision_compat, "NMS_ROWS", rows)
        assert torchvision_compat.nms(boxes, scores, THRESHOLD).tolist() == wanted


def test_no_boxes():
    none = torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert none.shape == (0,) and none.dtype == torch.int64
    assert torchvision.ops.batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)
    assert torchvision_compat.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)


@pytest.mark.parametrize("count", [50, 1200])  # torchvision shifts classes apart, or calls nms for each class
def test_batched_nms_suppresses_within_classes(count):
    boxes, classes = random_boxes(count, 2), torch.arange(count) % 3
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(3)) / count
    found = torchvision.ops.batched_nms(boxes, scores, classes, THRESHOLD).tolist()
    kept = set()
    for label in range(3):
        members = (classes == label).nonzero().flatten()
        of_class = brute_force(boxes[members].tolist(), scores[members].tolist(), THRESHOLD)
        kept |= {int(members[index]) for index in of_class}
    assert found == sorted(kept, key=lambda index: -scores[index])
