"""Settings: flags are the fields, contradictions are refused, and what was saved comes back."""

import dataclasses
import json

import pytest

from sca_caption.cli.flags import add_flags, make
from sca_caption.cli.parser import Parser
from sca_caption.config import PRESETS, ModelConfig, TrainConfig, from_dict
from tests.helpers.made_photos import message

CONFIGS = (ModelConfig, TrainConfig)


def parse(*flags: str):
    parser = Parser(prog="made.py")
    add_flags(parser, *CONFIGS)
    return parser.parse_args(flags)


@pytest.mark.parametrize("config", CONFIGS)
def test_without_flags_the_defaults(config):
    assert vars(parse()) == {}
    assert make(config, parse()) == config()


def test_every_field_has_a_flag_that_sets_it():
    given = {
        "backbone": "resnet18", "backbone_attention": "se", "backbone_at": ("layer2",),
        "layers": ("layer3", "layer4"), "attention": "S", "attention_width": 3,
        "embedding_size": 4, "lstm_size": 5, "dropout": 0.0, "tie_embeddings": True, "pool_norm": 1.0,
        "epochs": 1, "batch_size": 2, "objective": "cider", "samples": 3, "sample_temperature": 0.3,
        "optimizer": "adadelta", "lr": 1.0,
        "backbone_lr": 0.0, "finetune_backbone_at": -1, "finetune_from": "layer4", "warmup": 0.5,
        "weight_decay": 0.0, "clip": 0.0, "label_smoothing": 0.0, "attention_penalty": 2.5, "augment": False,
        "patience": 0, "validation_beam": 4, "workers": 0, "seed": -9,
        "bleu_weight": 0.5, "cross_entropy_weight": 0.1, "validation_length_penalty": 1.0,
        "word_dropout": 0.1, "scheduled_sampling": 0.2, "teacher": ("a.pt", "b.pt"), "teacher_weight": 0.5,
        "schedule": "step", "ema": 0.9, "amp": False, "cpu_amp": True,
        "feature_dropout": 0.1, "crop_scale": 0.4, "lighting": 0.3,
    }  # fmt: skip
    assert set(given) == {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    flags = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags += [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
    arguments = parse(*flags)
    for config in CONFIGS:
        made = make(config, arguments)
        for field in dataclasses.fields(config):
            assert getattr(made, field.name) == given[field.name] != getattr(config(), field.name), field.name


def test_the_paper_preset_is_the_papers():
    """Section 4.1 and the authors' released code."""
    model, train = (make(config, parse(), PRESETS["paper"]) for config in CONFIGS)
    assert (model.attention, model.attention_width) == ("C-S", 512)
    assert (model.embedding_size, model.lstm_size, model.dropout, model.pool_norm) == (100, 1000, 0.5, 1.0)
    assert (train.optimizer, train.batch_size, train.weight_decay) == ("adadelta", 64, 1e-4)
    assert (train.validation_beam, train.finetune_backbone_at, train.label_smoothing) == (5, -1, 0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_flags_go_before_presets_and_presets_before_defaults(preset):
    names = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    assert set(PRESETS[preset]) <= names  # none is misspelt
    assert make(ModelConfig, parse("--lstm-size", "7"), PRESETS[preset]).lstm_size == 7
    assert make(TrainConfig, parse("--epochs", "3"), PRESETS[preset]).epochs == 3
    wanted = dataclasses.asdict(ModelConfig()) | PRESETS[preset]
    found = make(ModelConfig, parse(), PRESETS[preset])
    assert all(value == wanted[name] for name, value in dataclasses.asdict(found).items())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("config", CONFIGS)
def test_saved_settings_come_back(config, preset):
    made = make(config, parse("--layers", "a.b", "c"), PRESETS[preset])
    assert from_dict(config, json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_settings_this_version_does_not_know():
    text = message(lambda: from_dict(TrainConfig, {"epochs": 3, "zebra": 1, "ant": 2}))
    assert text == "unknown settings ant, zebra; written by a newer version? upgrade sca_caption"


@pytest.mark.parametrize(
    ("config", "name", "value", "allowed"),
    [
        (ModelConfig, "attention_width", 0, "at least 1"),
        (ModelConfig, "embedding_size", 0, "at least 1"),
        (ModelConfig, "lstm_size", -4, "at least 1"),
        (ModelConfig, "dropout", 1.0, "from 0 to below 1"),
        (ModelConfig, "dropout", -0.1, "from 0 to below 1"),
        (ModelConfig, "pool_norm", 0.0, "above 0"),
        (ModelConfig, "attention", "SC", "S, C, S-C or C-S"),
        (TrainConfig, "epochs", 0, "at least 1"),
        (TrainConfig, "batch_size", 0, "at least 1"),
        (TrainConfig, "samples", 1, "at least 2"),
        (TrainConfig, "sample_temperature", 0.0, "above 0"),
        (TrainConfig, "validation_beam", 0, "at least 1"),
        (TrainConfig, "lr", 0.0, "above 0"),
        (TrainConfig, "lr", float("nan"), "above 0"),
        (TrainConfig, "backbone_lr", -1e-3, "0 or more"),
        (TrainConfig, "weight_decay", -1.0, "0 or more"),
        (TrainConfig, "clip", -1.0, "0 or more"),
        (TrainConfig, "attention_penalty", float("nan"), "0 or more"),
        (TrainConfig, "patience", -1, "0 or more"),
        (TrainConfig, "workers", -1, "0 or more"),
        (TrainConfig, "warmup", 1.0, "from 0 to below 1"),
        (TrainConfig, "label_smoothing", 1.0, "from 0 to below 1"),
    ],
)
def test_values_out_of_range_name_the_flag(config, name, value, allowed):
    text = message(lambda: config(**{name: value}))
    assert text == f"--{name.replace('_', '-')} {value}: must be {allowed}"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--attention", "cbam"), "argument --attention: invalid choice: 'cbam' (choose from "),
        (("--epochs", "many"), "argument --epochs: invalid int value: 'many'"),
        (("--layers",), "argument --layers: expected at least one argument"),
        (("--learning-rate", "1"), "unrecognized arguments: --learning-rate 1"),
    ],
)
def test_flags_that_do_not_parse_are_one_line(flags, text):
    found = message(lambda: parse(*flags))
    assert found.startswith(text) and found.endswith("; see made.py --help")


def test_help_shows_every_flag_with_its_default():
    parser = Parser(prog="made.py")
    add_flags(parser, *CONFIGS)
    shown = " ".join(parser.format_help().split())
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            assert f"--{field.name.replace('_', '-')}" in shown
    assert "(default: mobilenet_v2)" in shown and "(default: 0.0008)" in shown and "(default: on)" in shown
