"""Training recipes: TOML files of settings, which flags override.

A recipe holds `task`, "caption" or "classify", and fields of that task's configs (see `config`) by name.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from sca_caption.config import (
    ClassifierConfig,
    ClassifierTrainConfig,
    ModelConfig,
    TrainConfig,
    current_names,
)
from sca_caption.runtime.errors import UserError

FOLDER = Path(__file__).parent
CONFIGS = {"caption": (ModelConfig, TrainConfig), "classify": (ClassifierConfig, ClassifierTrainConfig)}


def recipe_names(task: str) -> list[str]:
    """The packaged recipes of a task, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if _read(path).get("task") == task)


def load_recipe(name: str, task: str) -> dict[str, Any]:
    """The settings of a packaged recipe, or of a .toml file.

    Raises UserError for an unknown name, a file that is no recipe, one of the other task, and settings that do not exist
    or have values of another type.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if task == "classify" and not name.endswith(".toml") and (FOLDER / f"{name}-classify.toml").is_file():
        path = FOLDER / f"{name}-classify.toml"
    if not path.is_file():
        names = ", ".join(recipe_names(task))
        raise UserError(f"--recipe {name}: no such recipe; give a .toml file, or one of: {names}")
    values = _read(path)
    if "task" not in values:
        raise UserError(f'--recipe {name}: no task; add the line task = "{task}"')
    found = values.pop("task")
    if found != task:
        raise UserError(
            f"--recipe {name}: its task is {found!r}, this run's is {task!r}; choose another recipe or --task"
        )
    fields = {f.name: f for config in CONFIGS[task] for f in dataclasses.fields(config) if f.metadata}
    settings: dict[str, Any] = {}
    for key, value in current_names(values, *CONFIGS[task]).items():
        if key not in fields:
            raise UserError(
                f"--recipe {name}: no setting {key!r}; its names are those of the flags, with underscores"
            )
        default, choices = fields[key].default, fields[key].metadata["choices"]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise UserError(f"--recipe {name}: {key} = {value!r} must be a list of strings")
            value = tuple(value)
        elif type(value) is not type(default):
            raise UserError(f"--recipe {name}: {key} = {value!r} must be {type(default).__name__}")
        if choices and value not in choices:
            raise UserError(f"--recipe {name}: {key} = {value!r} must be one of: {', '.join(choices)}")
        settings[key] = value
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(
            f"{path} is not a readable recipe ({error}); write lines such as lr = 0.001"
        ) from error
