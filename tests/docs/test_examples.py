"""The programs of docs/examples learn their task on generated pictures, and read COCO's and Pascal VOC's files."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sca_caption.datasets import shapes
from tests.helpers.documents import example
from tests.helpers.made_photos import error_line

SMALL = ["--steps", "1", "--size", "64", "--batch-size", "2"]


def scores(name: str, arguments: list[str], capsys) -> list[float]:
    """What an example prints before and after training."""
    assert example(name).main(arguments) == 0
    return [float(value) for value in re.findall(r": (\d\.\d+)$", capsys.readouterr().out, re.MULTILINE)]


def test_the_detector_learns(capsys):
    pytest.importorskip("pycocotools")
    before, after = scores("detection", [], capsys)
    assert before < 0.05 and after > 0.6


def test_the_segmenter_learns(capsys):
    before, after = scores("segmentation", [], capsys)
    assert before < 0.3 and after > 0.6


def test_boxes_are_those_of_the_pictures():
    pytest.importorskip("pycocotools")
    data = example("detection").Shapes(48, 5, seed=7)
    assert len(data) == 5
    for index in range(5):
        image, target = data[index]
        wanted = shapes.instances(shapes.scene(7, index), 48)
        picture = np.array(shapes.draw(shapes.scene(7, index), 48))
        assert ((image * 255).round().permute(1, 2, 0).numpy() == picture).all()
        assert target["boxes"].tolist() == [[float(x) for x in each.box] for each in wanted]
        kinds = [shapes.CLASSES[each.label].split()[1] for each in wanted]
        assert target["labels"].tolist() == [shapes.KINDS.index(kind) + 1 for kind in kinds]


def test_average_precision_is_one_for_the_boxes_themselves_and_less_for_shifted_ones():
    pytest.importorskip("pycocotools")
    module = example("detection")
    data = module.Shapes(64, 6, seed=0)

    class Oracle(torch.nn.Module):
        """Answers with the boxes of the picture, moved to the right."""

        def __init__(self, pixels: float):
            super().__init__()
            self.shift, self.asked = torch.tensor([pixels, 0, pixels, 0]), iter(range(len(data)))

        def forward(self, images):
            target = data[next(self.asked)][1]
            return [{"boxes": target["boxes"] + self.shift, "labels": target["labels"],
                     "scores": torch.ones(len(target["labels"]))}]  # fmt: skip

    assert module.average_precision(Oracle(0), data) == pytest.approx(1)
    assert 0 < module.average_precision(Oracle(2), data) < 0.9
    assert module.average_precision(Oracle(64), data) == 0


def test_mean_iou_by_its_definition():
    module = example("segmentation")
    annotated = torch.tensor([[[0, 0, 1], [1, 2, 255]]])
    predicted = torch.tensor([[[0, 1, 1], [1, 0, 2]]])
    data = [(torch.zeros(3, 2, 3), annotated[0])]

    class Fixed(torch.nn.Module):
        def forward(self, images):
            return {"out": torch.nn.functional.one_hot(predicted, 3).permute(0, 3, 1, 2).float()}

    # Class 0: 1 of 3 pixels, class 1: 2 of 3, class 2: none of 1; the ignored pixel does not count.
    assert module.mean_iou(Fixed(), data, 3) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


@pytest.fixture
def coco(tmp_path):
    """Four generated pictures for each split, in COCO's layout; one of them has a crowd and an empty box as well."""
    source = example("detection").Shapes(64, 4, seed=3)
    (tmp_path / "annotations").mkdir()
    annotations = source.coco.dataset["annotations"]
    extra = {"image_id": 0, "area": 1, "category_id": 1}
    annotations = [
        *annotations,
        extra | {"id": 98, "bbox": [0, 0, 30, 30], "iscrowd": 1},
        extra | {"id": 99, "bbox": [5, 5, 0, 4], "iscrowd": 0},
    ]
    images = [{"id": index, "file_name": f"{index}.png", "width": 64, "height": 64} for index in range(4)]
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for index in range(4):
            shapes.draw(shapes.scene(3, index), 64).save(tmp_path / split / f"{index}.png")
        text = source.coco.dataset | {"images": images, "annotations": annotations}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(text))
    return tmp_path


@pytest.mark.slow
def test_the_detector_reads_cocos_files(coco, capsys):
    pytest.importorskip("pycocotools")
    module = example("detection")
    found, _ = module.coco(str(coco))
    same = module.Shapes(64, 4, seed=3)
    for index in range(4):  # without the crowd and the empty box
        assert torch.equal(found[index][0], same[index][0])
        assert all(torch.equal(found[index][1][key], same[index][1][key]) for key in ("boxes", "labels"))
    capsys.readouterr()
    assert len(scores("detection", ["--coco", str(coco), *SMALL], capsys)) == 2


@pytest.fixture
def voc(tmp_path):
    """Four generated pictures for each split, in Pascal VOC's layout."""
    root = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    data = example("segmentation").Shapes(64, 4, seed=3)
    for index in range(4):
        shapes.draw(shapes.scene(3, index), 64).save(root / f"JPEGImages/{index}.jpg", quality=95)
        classes = Image.fromarray(data[index][1].numpy().astype(np.uint8))
        classes.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        classes.save(root / f"SegmentationClass/{index}.png")
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("0\n1\n2\n3\n")
    return tmp_path


@pytest.mark.slow
def test_the_segmenter_reads_pascal_vocs_files(voc, capsys):
    module = example("segmentation")
    found, _ = module.voc(str(voc), 64)
    same = module.Shapes(64, 4, seed=3)
    for index in range(4):
        assert torch.equal(found[index][1], same[index][1])
        assert (found[index][0] - same[index][0]).abs().mean() < 0.1  # JPEG
    assert len(scores("segmentation", ["--voc", str(voc), *SMALL], capsys)) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "wrong"),
    [
        ("detection", ["--coco", "nowhere"], "nowhere"),
        ("segmentation", ["--voc", "nowhere"], "nowhere"),
        ("segmentation", ["--attention", "cbma"], "cbma"),
        ("segmentation", ["--low", "stage9"], "stage9"),
    ],
)
def test_mistakes_are_one_line(name, arguments, wrong, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pycocotools")
    monkeypatch.chdir(tmp_path)
    assert wrong in error_line(example(name).main(arguments), *capsys.readouterr())
