"""Who may import whom: lower layers know nothing of higher ones, and nothing imports a program."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "sca_caption"
ROOT = Path(__file__).parents[1]

# A module may import lower layers, and its own where that makes no circle. A folder is one module.
LAYERS = {
    0: "__init__ atomic attention attention_overlay beams calibration caption_quality channel_patches "
    "classification_metrics command_line config consensus constraints contrast decode devices distributed diverse "
    "endings ensemble errors figures images java_metrics journal messages metrics nouns onnx_int8 paraphrases ptb "
    "sampling search static_page storage subjects teacher_forcing torchvision_compat vocab weight_average",
    1: "class_folders classification_data confusion sources shapes store store_captions store_images store_writer "
    "backbones networks places small_networks mobilenet efficientnet_lite progress",
    2: "captioner classifier objects",
    3: "attention_trace checkpoint naming rewards self_critical attention_strip",
    4: "attention_animation attention_figure caption_task channel_examples channel_figure classify_task distillation "
    "explain gallery grad_cam inference onnx_captioner onnx_graphs result_kinds results sidecars training",
    5: "api benchmarks calibrate classify cli curves export learn_consensus learn_subjects web",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
PROGRAMS = ("preprocess", "train", "caption", "evaluate")


def imported(path: Path, root: Path) -> Iterator[str]:
    """Full dotted names of what a file imports, anywhere in it: "sca_caption.images.load", "numpy"."""
    parents = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else ()
            yield from (".".join((*above, *filter(None, [node.module]), alias.name)) for alias in node.names)


def module_of(path: Path, root: Path) -> str:
    """The module, directly in the package, that a file is or is in."""
    return path.relative_to(root / PACKAGE).parts[0].removesuffix(".py")


def edges(root: Path) -> dict[str, set[str]]:
    """What each module directly in the package imports of the others.

    But for the package's own, which names, without importing it, the top layer that Python programs import from it.
    """
    files = sorted((root / PACKAGE).rglob("*.py"))
    known = {module_of(path, root) for path in files}
    found = {name: set() for name in known}
    for path in files:
        for name in imported(path, root):
            first, _, rest = name.partition(".")
            if first == PACKAGE:
                target = rest.split(".")[0]
                found[module_of(path, root)].add(target if target in known else "__init__")
    found["__init__"] = set()
    return {name: targets - {name} for name, targets in found.items()}


def problems(root: Path) -> list[str]:
    graph = edges(root)
    unlisted = sorted(set(graph) - set(LAYER))
    if unlisted:
        return [f"list {name} in LAYERS of tests/test_layers.py: what may it import?" for name in unlisted]
    found = [
        f"{name} (layer {LAYER[name]}) imports {target} (layer {LAYER[target]})"
        for name, targets in sorted(graph.items())
        for target in sorted(targets)
        if LAYER[target] > LAYER[name]
    ]
    for name in sorted(graph):
        reached, ways = set(), [(name,)]
        while ways:
            way = ways.pop()
            for target in sorted(graph[way[-1]] - reached):
                reached.add(target)
                ways.append((*way, target))
                if target == name:
                    found.append("imports in a circle: " + " -> ".join((*way, target)))
    return found


def test_imports_go_to_lower_layers():
    assert problems(ROOT) == []


def test_nothing_imports_a_program():
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / f"{name}.py" for name in PROGRAMS)]
    found = {
        (path.name, name) for path in files for name in imported(path, ROOT) if name.split(".")[0] in PROGRAMS
    }
    assert not found


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_only_calls_its_code_in_the_package(name):
    path = ROOT / f"{name}.py"
    assert list(imported(path, ROOT)) == [f"{PACKAGE}.cli.{name}.main"]
    assert len(path.read_text(encoding="utf-8").splitlines()) < 10


def test_no_module_for_everything():
    assert not [path for path in (ROOT / PACKAGE).rglob("util*")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"images.py": "from sca_caption.datasets.hdf5_reader import CaptionDataset"},
            "images (layer 0) imports store (layer 1)",
        ),
        ({"images.py": "def f():\n    from .store import x"}, "images (layer 0) imports store (layer 1)"),
        (
            {"vocab.py": "import sca_caption.datasets.hdf5_reader as s"},
            "vocab (layer 0) imports store (layer 1)",
        ),
        ({"vocab.py": "from sca_caption import store"}, "vocab (layer 0) imports store (layer 1)"),
        ({"attention/sca.py": "from ..store import x"}, "attention (layer 0) imports store (layer 1)"),
        (
            {"images.py": "from .vocab import x", "vocab.py": "from .images import y"},
            "imports in a circle: images -> vocab -> images",
        ),
        ({"helpers.py": ""}, "list helpers in LAYERS of tests/test_layers.py: what may it import?"),
        (
            {"store.py": "from sca_caption import images, __version__\nfrom . import vocab\nimport numpy"},
            None,
        ),
        ({"attention/sca.py": "from .cbam import x", "attention/cbam.py": "import torch"}, None),
    ],
)
def test_the_test(files, message, tmp_path):
    for name, text in {"__init__.py": "", "store.py": "", "images.py": "", "vocab.py": "", **files}.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = problems(tmp_path)
    assert message in found if message else not found
