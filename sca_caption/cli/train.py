"""Train a captioner from a prepared data file."""

import argparse
import dataclasses
from pathlib import Path

from sca_caption import config
from sca_caption.errors import UserError, program

EPILOG = """\
examples:
  python preprocess.py --dataset flickr8k --root ~/flickr8k   # once: makes data/flickr8k.h5
  python train.py --dataset flickr8k                          # writes runs/flickr8k/best.pt and last.pt
  python train.py --dataset flickr8k --resume                 # goes on after an interruption
  python train.py --dataset flickr30k --preset paper --backbone vgg19 --layers 2 --attention C-S
"""


def parser() -> config.Parser:
    p = config.Parser(
        prog="train.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--dataset", required=True, metavar="NAME", help="trains from data/NAME.h5 (see preprocess.py)"
    )
    p.add_argument("--data", type=Path, metavar="FILE.h5", help="another data file")
    p.add_argument("--output", type=Path, metavar="DIR", help="where checkpoints go (default: runs/NAME)")
    p.add_argument("--preset", choices=sorted(config.PRESETS), help="defaults for the flags below (default: 'shapes' "
                   "for the data set shapes, else 'default'; 'paper': the authors' sizes and training)")  # fmt: skip
    p.add_argument("--backbone-weights", metavar="FILE", help="ImageNet weights as a torchvision state dict, or 'none' "
                   "to start at random (default: torchvision's download)")  # fmt: skip
    p.add_argument("--init", metavar="FILE", help="start from a checkpoint's tensors wherever they fit; 'shipped': "
                   "from the model that comes with the package")  # fmt: skip
    p.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, with its own settings"
    )
    p.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    config.add_flags(p, config.ModelConfig, config.TrainConfig)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    output = arguments.output or Path("runs") / arguments.dataset
    path = arguments.data or Path("data") / f"{arguments.dataset}.h5"
    settings = settings_of(arguments)

    from sca_caption import checkpoint
    from sca_caption.backbones import attended_layers
    from sca_caption.devices import find_device
    from sca_caption.store import CaptionData
    from sca_caption.training import train

    data = CaptionData(path)
    device = find_device(arguments.device)
    if arguments.resume:
        resumed = checkpoint.load(output / "last.pt")
        if not resumed.training:
            raise UserError(
                f"{output / 'last.pt'} has no state of a training run, as best.pt; start one with --init"
            )
        if resumed.vocabulary != data.vocabulary:
            raise UserError(
                f"{path} has another vocabulary ({len(data.vocabulary)} words) than {output / 'last.pt'} "
                f"({len(resumed.vocabulary)}); resume with the data file it was trained on ({resumed.training['data']})"
            )
        train_config = config.from_dict(config.TrainConfig, resumed.training["config"])
        for name, value in given(arguments).items():
            kept = {**resumed.training["config"], **vars(resumed.config)}[name]
            if name == "layers":
                value = attended_layers(resumed.config.backbone, value)
            if value != kept:
                raise UserError(
                    f"--resume goes on with the run's own settings; it has {name}={kept}, found {value}"
                )
        model = resumed.model
    else:
        if (output / "last.pt").exists():
            raise UserError(f"{output} already holds a run; go on with --resume, or choose another --output")
        resumed = None
        model_config, train_config = settings
        layers = attended_layers(model_config.backbone, model_config.layers)
        model_config = dataclasses.replace(model_config, layers=layers)
        check_features(data, model_config, train_config)
        model = new_model(model_config, data, arguments)
    train(model.to(device), data, train_config, output, device, resumed)
    print(f"best model: {output / 'best.pt'}")
    return 0


def given(arguments: argparse.Namespace) -> dict:
    """The settings that were given as flags."""
    names = {f.name for c in (config.ModelConfig, config.TrainConfig) for f in dataclasses.fields(c)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def settings_of(arguments: argparse.Namespace) -> tuple[config.ModelConfig, config.TrainConfig]:
    preset = arguments.preset or ("shapes" if arguments.dataset == "shapes" else "default")
    values = config.PRESETS[preset]
    return config.make(config.ModelConfig, arguments, values), config.make(config.TrainConfig, arguments, values)


def check_features(data, model_config: config.ModelConfig, train_config: config.TrainConfig) -> None:
    """Raise UserError where stored features are another CNN's, or the CNN is to learn without its images."""
    data.require_features_of(model_config.backbone, model_config.layers)
    fine_tunes = 0 <= train_config.finetune_backbone_at < train_config.epochs
    if data.encoding == "features" and fine_tunes:
        raise UserError(
            f"{data.path} holds features, not images, so the CNN cannot be fine-tuned; add --finetune-backbone-at -1 "
            f"or preprocess with --encoding jpeg"
        )


def new_model(model_config: config.ModelConfig, data, arguments: argparse.Namespace):
    """The model to train: at random but for the backbone, and for what --init brings."""
    import torch

    from sca_caption import checkpoint
    from sca_caption.backbones import pretrained_weights
    from sca_caption.captioner import Captioner
    from sca_caption.training import initialise_from

    torch.manual_seed(getattr(arguments, "seed", config.TrainConfig.seed))
    init, weights_file = arguments.init, arguments.backbone_weights
    shippable = model_config.backbone == config.ModelConfig.backbone
    if init is None and weights_file is None and arguments.dataset == "shapes" and shippable:
        init = "shipped"  # spares a download
    weights = None
    if weights_file != "none" and not (init and weights_file is None):
        weights = pretrained_weights(model_config.backbone, weights_file)
    model = Captioner(model_config, len(data.vocabulary), weights)
    if init:
        other = checkpoint.load(None if init == "shipped" else init)
        if other.config.backbone != model_config.backbone:
            raise UserError(
                f"--init {init} has backbone {other.config.backbone}, this run {model_config.backbone}; "
                f"choose the same --backbone"
            )
        fresh = initialise_from(model, other, data.vocabulary.words)
        parts = sorted({name.split(".")[0] for name in fresh})
        print(f"starting from {init}; new, wholly or in part: {', '.join(parts) or 'nothing'}")
    return model
