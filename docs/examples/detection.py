"""Train torchvision's SSDLite on MobileNetV2 with coordinate attention, and print its average precision.

    python docs/examples/detection.py
    python docs/examples/detection.py --backbone mobilenext --attention ccwh
    python docs/examples/detection.py --coco data/coco --stages stage3 stage5 stage7 --size 320 --steps 120000 \
        --batch-size 32 --workers 4 --weights mobilenet_v2.pth

The first two train on generated circles, squares and triangles. The third reads COCO 2017 (folders train2017, val2017 and
annotations) and weights of an ImageNet classifier; it has not been run.
"""

import argparse
import contextlib
import io
from itertools import chain, islice, repeat

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sca_caption.cli.parser import Parser, program
from sca_caption.datasets import shapes
from sca_caption.models.networks import feature_maps
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.torchvision_compat import torchvision

tv = torchvision.models.detection


class Shapes:
    """Generated pictures as torchvision's CocoDetection reads photographs. The categories are the kinds of shapes."""

    def __init__(self, size: int, count: int, seed: int):
        from pycocotools.coco import COCO

        self.size, self.seed, self.ids, self.coco = size, seed, range(count), COCO()
        annotations = []
        for image in self.ids:
            for found in shapes.instances(shapes.scene(seed, image), size):
                (x1, y1, x2, y2), kind = found.box, shapes.CLASSES[found.label].split()[1]
                where = {"image_id": image, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(found.mask.sum())}
                what = {"id": len(annotations) + 1, "category_id": shapes.KINDS.index(kind) + 1, "iscrowd": 0}
                annotations.append(where | what)
        images, categories = [{"id": image} for image in self.ids], [{"id": 1}, {"id": 2}, {"id": 3}]
        self.coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return to_tensors(shapes.draw(shapes.scene(self.seed, index), self.size), self.coco.imgToAnns[index])


def coco(root: str) -> list:
    """Training and validation pictures of COCO 2017. Raises UserError if they are not in this folder."""
    splits = {split: f"{root}/annotations/instances_{split}.json" for split in ("train2017", "val2017")}
    read = torchvision.datasets.CocoDetection
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
            return [read(f"{root}/{split}", file, transforms=to_tensors) for split, file in splits.items()]
    except OSError as error:
        raise UserError(
            f"--coco {root}: {error}; give the folder with train2017, val2017 and annotations"
        ) from error


def to_tensors(image, annotations: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture and COCO's annotations -> (3, H, W) from 0 to 1; boxes (N, 4) as x1, y1, x2, y2 and labels (N,)."""
    kept = [each for each in annotations if not each["iscrowd"] and min(each["bbox"][2:]) > 0]
    boxes = torch.tensor([each["bbox"] for each in kept], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([each["category_id"] for each in kept], dtype=torch.int64)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, {"boxes": boxes, "labels": labels}


def detector(args: argparse.Namespace, categories: int) -> nn.Module:
    """The maps of `args.stages`, two sizes and three forms of boxes at each position, and SSDLite's heads."""
    backbone = feature_maps(args.backbone, args.attention, stages=args.stages, weights=args.weights)
    least, most = (0.1, 0.8) if args.coco else (0.2, 0.45)  # sides of boxes, as fractions of the picture's
    boxes = tv.anchor_utils.DefaultBoxGenerator([[2]] * len(args.stages), least, most)
    channels, anchors = [*backbone.channels.values()], boxes.num_anchors_per_location()
    head = tv.ssdlite.SSDLiteHead(channels, anchors, categories + 1, nn.BatchNorm2d)  # label 0: background
    return tv.ssd.SSD(backbone, boxes, (args.size, args.size), categories + 1, head=head, topk_candidates=100)


def train(model: nn.Module, data, args: argparse.Namespace) -> None:
    options = {"shuffle": True, "drop_last": True, "num_workers": args.workers, "collate_fn": list}
    epochs = repeat(DataLoader(data, args.batch_size, **options))
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.2)
    model.train()
    for batch in islice(chain.from_iterable(epochs), args.steps):
        losses = model([image for image, _ in batch], [target for _, target in batch])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def average_precision(model: nn.Module, data) -> float:
    """COCO's AP: mean over categories and over thresholds of the intersection over union from 0.5 to 0.95."""
    from pycocotools.cocoeval import COCOeval

    model.eval()
    results = []
    for index, image in enumerate(data.ids):
        (found,) = model([data[index][0]])
        boxes, labels, scores = (found[key].tolist() for key in ("boxes", "labels", "scores"))
        for (x1, y1, x2, y2), label, score in zip(boxes, labels, scores, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(data.coco, data.coco.loadRes(results), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return float(evaluation.stats[0])


def parser() -> Parser:
    found = Parser(prog="detection.py", description=__doc__)
    found.add_argument("--coco", metavar="DIR", help="COCO 2017 (default: generated pictures)")
    found.add_argument("--backbone", default="mobilenet_v2", help="network below the detector (mobilenet_v2)")
    found.add_argument("--attention", default="coord", help="its block (coord)")
    found.add_argument("--stages", nargs="+", default=["stage3", "stage5"], help="its maps (stage3 stage5)")
    found.add_argument("--weights", metavar="FILE", help="its weights (default: random)")
    found.add_argument("--size", type=int, default=64, help="pixels per side (64)")
    found.add_argument("--steps", type=int, default=250, help="batches to train on (250)")
    found.add_argument("--batch-size", type=int, default=16, help="pictures per batch (16)")
    found.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (0.003)")
    found.add_argument("--workers", type=int, default=0, help="processes that read pictures (0: this one)")
    return found


@program
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.manual_seed(0)
    train_data, val_data = (
        coco(args.coco) if args.coco else (Shapes(args.size, 2000, 0), Shapes(args.size, 100, 1))
    )
    model = detector(args, max(val_data.coco.cats)).to(memory_format=torch.channels_last)  # faster on CPUs
    print(f"average precision before training: {average_precision(model, val_data):.3f}")
    train(model, train_data, args)
    print(f"average precision after {args.steps} steps: {average_precision(model, val_data):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
