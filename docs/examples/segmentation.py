"""Train torchvision's LR-ASPP on MobileNetV2 with coordinate attention, and print its mean intersection over union.

    python docs/examples/segmentation.py
    python docs/examples/segmentation.py --backbone mobilenext --attention ccwh
    python docs/examples/segmentation.py --voc data/voc --low stage3 --high stage7 --size 320 --steps 20000 \
        --workers 4 --weights mobilenet_v2.pth

The first two train on generated circles, squares and triangles. The third reads Pascal VOC 2012 (its folder VOCdevkit is
in data/voc) and weights of an ImageNet classifier; it has not been run.
"""

import argparse
from functools import partial
from itertools import chain, islice, repeat

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sca_caption.cli.parser import Parser, program
from sca_caption.datasets import shapes
from sca_caption.images import MEAN, STD
from sca_caption.models.networks import feature_maps
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.torchvision_compat import torchvision

IGNORED = 255  # class of pixels that do not count: the borders of Pascal VOC's objects


class Shapes:
    """Generated pictures as torchvision's VOCSegmentation reads photographs. The classes are the kinds of shapes."""

    def __init__(self, size: int, count: int, seed: int):
        self.size, self.count, self.seed = size, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = shapes.scene(self.seed, index)
        classes = np.zeros((self.size, self.size), np.uint8)
        for found in shapes.instances(scene, self.size):
            classes[found.mask] = shapes.KINDS.index(shapes.CLASSES[found.label].split()[1]) + 1
        return to_tensors(shapes.draw(scene, self.size), Image.fromarray(classes), self.size)


def voc(root: str, size: int) -> list:
    """Training and validation pictures of Pascal VOC 2012. Raises UserError if they are not in this folder."""
    read, transforms = torchvision.datasets.VOCSegmentation, partial(to_tensors, size=size)
    try:
        return [read(root, "2012", split, transforms=transforms) for split in ("train", "val")]
    except (OSError, RuntimeError) as error:
        raise UserError(f"--voc {root}: {error}; give the folder with VOCdevkit/VOC2012") from error


def to_tensors(image: Image.Image, classes: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    """A picture and the classes of its pixels -> normalised (3, size, size); classes (size, size)."""
    pixels = torch.from_numpy(np.array(image.resize((size, size)))).permute(2, 0, 1) / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return pixels, torch.from_numpy(np.array(classes.resize((size, size), Image.Resampling.NEAREST))).long()


def segmenter(args: argparse.Namespace, classes: int) -> nn.Module:
    """LR-ASPP on a fine and a coarse map, which it calls low and high."""
    stages = {args.low: "low", args.high: "high"}
    backbone = feature_maps(args.backbone, args.attention, stages=stages, weights=args.weights)
    channels = backbone.channels
    return torchvision.models.segmentation.LRASPP(backbone, channels["low"], channels["high"], classes)


def train(model: nn.Module, data, args: argparse.Namespace) -> None:
    options = {"shuffle": True, "drop_last": True, "num_workers": args.workers}
    epochs = repeat(DataLoader(data, args.batch_size, **options))
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.2)
    model.train()
    for images, classes in islice(chain.from_iterable(epochs), args.steps):
        loss = F.cross_entropy(model(images)["out"], classes, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def mean_iou(model: nn.Module, data, classes: int) -> float:
    """Mean over the classes of the intersection over union of predicted and annotated pixels of all pictures."""
    model.eval()
    confusion = torch.zeros(classes, classes)  # annotated, predicted
    for images, annotated in DataLoader(data, 25):
        predicted = model(images)["out"].argmax(1)
        counted = annotated != IGNORED
        pairs = annotated[counted] * classes + predicted[counted]
        confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    both = confusion.diag()
    return (both / (confusion.sum(0) + confusion.sum(1) - both)).nanmean().item()


def parser() -> Parser:
    found = Parser(prog="segmentation.py", description=__doc__)
    found.add_argument("--voc", metavar="DIR", help="Pascal VOC 2012 (default: generated pictures)")
    found.add_argument(
        "--backbone", default="mobilenet_v2", help="network below the segmenter (mobilenet_v2)"
    )
    found.add_argument("--attention", default="coord", help="its block (coord)")
    found.add_argument("--low", default="stage1", help="stage of the fine map (stage1)")
    found.add_argument("--high", default="stage5", help="stage of the coarse map (stage5)")
    found.add_argument("--weights", metavar="FILE", help="its weights (default: random)")
    found.add_argument("--size", type=int, default=64, help="pixels per side (64)")
    found.add_argument("--steps", type=int, default=200, help="batches to train on (200)")
    found.add_argument("--batch-size", type=int, default=16, help="pictures per batch (16)")
    found.add_argument("--lr", type=float, default=1e-2, help="peak learning rate (0.01)")
    found.add_argument("--workers", type=int, default=0, help="processes that read pictures (0: this one)")
    return found


@program
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.manual_seed(0)
    classes = 21 if args.voc else 4  # class 0: background
    data = voc(args.voc, args.size) if args.voc else (Shapes(args.size, 2000, 0), Shapes(args.size, 100, 1))
    train_data, val_data = data
    model = segmenter(args, classes).to(memory_format=torch.channels_last)  # faster on CPUs
    print(f"mean intersection over union before training: {mean_iou(model, val_data, classes):.3f}")
    train(model, train_data, args)
    print(f"mean intersection over union after {args.steps} steps: {mean_iou(model, val_data, classes):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
