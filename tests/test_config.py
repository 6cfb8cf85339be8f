"""Settings: flags are the fields, contradictions are refused, and what was saved comes back."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca_caption.cli import caption, train
from sca_caption.cli.flags import add_flags, make
from sca_caption.cli.parser import Parser
from sca_caption.config import (
    ClassifierConfig,
    ClassifierTrainConfig,
    ModelConfig,
    SamplingConfig,
    SearchConfig,
    TrainConfig,
    from_dict,
)
from sca_caption.recipes import load_recipe, recipe_names
from sca_caption.runtime.errors import UserError
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


def flagged(config: type) -> list[dataclasses.Field]:
    """The fields with a flag. Others are set from the data, as the styles of a captioner."""
    return [field for field in dataclasses.fields(config) if field.metadata]


def test_every_field_has_a_flag_that_sets_it():
    given = {
        "backbone": "resnet18", "backbone_attention": "se", "backbone_at": ("layer2",),
        "layers": ("layer3", "layer4"), "attention": "S", "attention_width": 3,
        "embedding_size": 4, "lstm_size": 5, "dropout": 0.0, "tie_embeddings": True, "pool_norm": 1.0,
        "epochs": 1, "batch_size": 2, "objective": "cider", "train_sample_n": 3, "sample_temperature": 0.3,
        "optimizer": "adadelta", "lr": 1.0,
        "backbone_lr": 0.0, "finetune_backbone_at": -1, "finetune_from": "layer4", "warmup": 0.5,
        "weight_decay": 0.0, "clip": 0.0, "label_smoothing": 0.0, "attention_penalty": 2.5, "augment": False,
        "patience": 0, "validation_beam": 4, "workers": 0, "seed": -9,
        "bleu_weight": 0.5, "cross_entropy_weight": 0.1, "validation_length_penalty": 1.0,
        "word_dropout": 0.1, "scheduled_sampling": 0.2, "teacher": ("a.pt", "b.pt"), "teacher_weight": 0.5,
        "schedule": "step", "ema": 0.9, "amp": False, "cpu_amp": True,
        "feature_dropout": 0.1, "crop_scale": 0.4, "color_jitter": 0.3,
        "word_rank": 8, "word_dropout_rate": 0.2, "word_loss_weight": 0.7, "captions_per_image": 2,
        "texts_per_step": 4, "text_weight": 0.2, "cache_features": True, "neck": 64, "unattended": 1,
    }  # fmt: skip
    assert set(given) == {field.name for config in CONFIGS for field in flagged(config)}
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
        for field in flagged(config):
            assert getattr(made, field.name) == given[field.name] != getattr(config(), field.name), field.name


# The values of these recipes before they were files, so that none is lost or misspelt.
RECIPES = {
    "default": {},
    "paper": {"backbone": "resnet152", "attention_width": 512, "embedding_size": 100, "lstm_size": 1000, "dropout": 0.5,
              "pool_norm": 1.0, "optimizer": "adadelta", "lr": 1.0, "batch_size": 64, "weight_decay": 1e-4,
              "label_smoothing": 0.0, "finetune_backbone_at": -1, "schedule": "constant", "warmup": 0.0, "epochs": 50,
              "validation_beam": 5, "augment": False},
    "shapes": {"attention_width": 64, "embedding_size": 64, "lstm_size": 128, "epochs": 8, "finetune_backbone_at": -1,
               "augment": False, "cache_features": True, "batch_size": 16, "lr": 3e-3, "label_smoothing": 0.0,
               "dropout": 0.1},
    "self-critical": {"objective": "cider", "lr": 4e-5, "epochs": 5, "finetune_backbone_at": -1, "patience": 2,
                      "validation_beam": 5, "label_smoothing": 0.0},
}  # fmt: skip
CLASSIFIER_RECIPES = {
    "cifar": {"backbone": "resnet18", "stem": "cifar", "image_size": 32, "epochs": 160, "batch_size": 128, "lr": 0.1,
              "schedule": "step", "warmup": 1 / 160, "views": "pad", "workers": 0},
    "caltech": {"image_size": 224, "epochs": 20, "batch_size": 16, "lr": 5e-3, "weight_decay": 5e-4},
    "caltech30": {"backbone": "mobilenet_v2", "image_size": 112, "train_per_class": 30, "epochs": 6, "batch_size": 32,
                  "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1, "crop_scale": 0.5, "workers": 0},
    "imagenet": {"image_size": 224, "epochs": 200, "batch_size": 256, "lr": 0.05, "weight_decay": 4e-5,
                 "crop_scale": 0.08, "workers": 8},
    "shapes-classify": {"backbone": "resnet18", "image_size": 64, "epochs": 6, "batch_size": 32, "optimizer": "adamw",
                        "lr": 1e-3, "weight_decay": 0.01, "views": "none", "workers": 0},
}  # fmt: skip


def test_recipes_are_the_files():
    assert recipe_names("caption") == sorted(train.RECIPES)
    assert recipe_names("classify") == sorted(CLASSIFIER_RECIPES)
    for name in set(train.RECIPES) - set(RECIPES):
        values = load_recipe(name, "caption")
        assert make(ModelConfig, parse(), values) and make(TrainConfig, parse(), values)
    for task, recipes in (("caption", RECIPES), ("classify", CLASSIFIER_RECIPES)):
        for name, values in recipes.items():
            assert load_recipe(name, task) == values
    for values in CLASSIFIER_RECIPES.values():
        assert make(ClassifierConfig, parse(), values) and make(ClassifierTrainConfig, parse(), values)


def test_flags_go_before_recipes_and_recipes_before_defaults():
    for values in RECIPES.values():
        assert make(ModelConfig, parse("--lstm-size", "7"), values).lstm_size == 7
        assert make(TrainConfig, parse("--epochs", "3"), values).epochs == 3
        found = dataclasses.asdict(make(ModelConfig, parse(), values))
        wanted = dataclasses.asdict(ModelConfig()) | values
        assert all(value == wanted[name] for name, value in found.items())


def test_a_recipe_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'task = "caption"\nlr = 1\nlayers = ["layer3", "layer4"]\nsamples = 3  # an earlier name\n'
    )
    found = load_recipe(str(path), "caption")
    assert found == {"lr": 1.0, "layers": ("layer3", "layer4"), "train_sample_n": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('task = "classify"', ("classify", "caption", "--task")),
        ('task = "caption"\nzebra = 1', ("zebra",)),
        ('task = "caption"\nepochs = "many"', ("epochs", "int")),
        ('task = "caption"\naugment = 1', ("augment", "bool")),
        ('task = "caption"\nlayers = [3]', ("layers", "list of strings")),
        ('task = "caption"\noptimizer = "adam"', ("optimizer", "adam", "adamw")),
        ("epochs = 3", ("no task", "caption")),
        ("epochs", ("mine.toml", "recipe")),
    ],
)
def test_mistakes_in_recipes_are_one_line(text, words, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    found = message(lambda: load_recipe(str(tmp_path / "mine.toml"), "caption"))
    assert all(word in found for word in words)
    unknown = message(lambda: load_recipe("papre", "caption"))
    assert "papre" in unknown and all(name in unknown for name in RECIPES)


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_settings_come_back(config):
    made = make(config, parse("--layers", "a.b", "c"), RECIPES["paper"])
    assert from_dict(config, json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_settings_this_version_does_not_know():
    text = message(lambda: from_dict(TrainConfig, {"epochs": 3, "zebra": 1, "ant": 2}))
    assert "ant, zebra" in text and "upgrade" in text


@pytest.mark.parametrize(
    ("config", "name", "value", "allowed"),
    [
        (ModelConfig, "attention_width", 0, "at least 1"),
        (ModelConfig, "embedding_size", 0, "at least 1"),
        (ModelConfig, "lstm_size", -4, "at least 1"),
        (ModelConfig, "dropout", 1.0, "from 0 to below 1"),
        (ModelConfig, "dropout", -0.1, "from 0 to below 1"),
        (ModelConfig, "word_rank", -1, "0 or more"),
        (ModelConfig, "word_dropout_rate", 1.0, "from 0 to below 1"),
        (ModelConfig, "pool_norm", 0.0, "above 0"),
        (ModelConfig, "attention", "SC", "S, C, S-C or C-S"),
        (TrainConfig, "epochs", 0, "at least 1"),
        (TrainConfig, "batch_size", 0, "at least 1"),
        (TrainConfig, "train_sample_n", 1, "at least 2"),
        (TrainConfig, "sample_temperature", 0.0, "above 0"),
        (TrainConfig, "validation_beam", 0, "at least 1"),
        (TrainConfig, "lr", 0.0, "above 0"),
        (TrainConfig, "lr", float("nan"), "above 0"),
        (TrainConfig, "backbone_lr", -1e-3, "0 or more"),
        (TrainConfig, "weight_decay", -1.0, "0 or more"),
        (TrainConfig, "clip", -1.0, "0 or more"),
        (TrainConfig, "attention_penalty", float("nan"), "0 or more"),
        (TrainConfig, "captions_per_image", -1, "0 or more"),
        (TrainConfig, "word_loss_weight", -0.5, "0 or more"),
        (TrainConfig, "texts_per_step", -1, "0 or more"),
        (TrainConfig, "text_weight", float("nan"), "0 or more"),
        (SearchConfig, "diversity", float("inf"), "0 or more"),
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
    shown = " ".join(parser.format_all_help().split())
    for config in CONFIGS:
        for field in flagged(config):
            assert f"--{field.name.replace('_', '-')}" in shown
    assert "(default: mobilenet_v2)" in shown and "(default: 0.0008)" in shown and "(default: on)" in shown


ALL_CONFIGS = (
    ModelConfig,
    TrainConfig,
    ClassifierConfig,
    ClassifierTrainConfig,
    SearchConfig,
    SamplingConfig,
)
NAMES = sorted({f.name for config in ALL_CONFIGS for f in dataclasses.fields(config)})
NUMBERS = st.integers(-2, 30) | st.integers() | st.floats()
VALUES = (
    NUMBERS
    | st.booleans()
    | st.none()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=5) | NUMBERS, max_size=3)
)


@given(st.sampled_from(ALL_CONFIGS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_settings_are_accepted_or_refused_in_one_line(config, values):
    values = {
        name: value for name, value in values.items() if name in {f.name for f in dataclasses.fields(config)}
    }
    try:
        made = from_dict(config, values)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert from_dict(config, json.loads(json.dumps(dataclasses.asdict(made)))) == made or has_nan(made)


def has_nan(config) -> bool:
    return any(value != value for value in vars(config).values())


SEARCH_FLAGS = [f"--{name.replace('_', '-')}" for name in (*vars(SearchConfig()), *vars(SamplingConfig()))]
SEARCH_FLAGS += [
    "--sample",
    "--txt",
    "--resume",
    "--output",
    "--sort",
    "--no-remove-bad-endings",
    "--batch-size",
]


@given(st.lists(st.sampled_from(SEARCH_FLAGS) | NUMBERS.map(str) | st.text(max_size=5), max_size=8))
def test_any_flags_are_accepted_or_refused_in_one_line(flags):
    try:
        search, sampling = caption.settings_of(caption.parser().parse_args(["a.jpg", *flags]))
    except UserError as error:
        assert str(error)
        return
    except SystemExit as ended:  # --version and --help, by their beginnings
        assert ended.code == 0
        return
    assert search.num_captions <= search.beam_size and sampling.temperature > 0
