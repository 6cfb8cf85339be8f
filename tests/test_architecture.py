"""Who may import whom: packages import those below them, and no modules import each other in a circle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "sca_caption"
ROOT = Path(__file__).parents[1]
# Packages and single modules, lowest first. Each may import those that stand before it, also for annotations only and
# inside functions. CONTRIBUTING.md says what each is for.
ORDER = (
    "runtime",
    "config",
    "recipes",
    "vocab",
    "image_memory",
    "image_files",
    "images",
    "attention",
    "decoding",
    "datasets",
    "models",
    "evaluation",
    "guidance",
    "checkpoint",
    "inference",
    "explain",
    "export",
    "serve",
    "training",
    "api",
    "cli",
    "benchmarks",
    "__main__",
)
PROGRAMS = ("preprocess", "train", "caption", "evaluate")


def modules(root: Path) -> dict[str, Path]:
    """The package's modules by their dotted names; a folder's __init__.py has the folder's name."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """(module of the package, whether for annotations only) for every import of it anywhere in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_annotations = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = folder.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found = [f"{source}.{alias.name}" for alias in node.names]
        for target in found:
            target = target if target in known else target.rpartition(".")[0]
            if target.split(".")[0] == PACKAGE:
                yield target, node in for_annotations


def part_of(module: str) -> str:
    """The package or single module in ORDER that a module belongs to; of sca_caption/__init__.py, ""."""
    return ".".join(module.split(".")[1:2])


def problems(root: Path) -> list[str]:
    known = modules(root)
    edges = {name: list(imports(name, path, known)) for name, path in known.items()}
    del edges[PACKAGE]  # names, without importing it, what Python programs import from the package
    unlisted = {part_of(name) for name in edges} - set(ORDER)
    if unlisted:
        return [f"list {name} in ORDER of tests/test_architecture.py" for name in sorted(unlisted)]
    place = {name: index for index, name in enumerate(["", *ORDER])}
    upward = [
        f"{name} imports {target}: {part_of(target)} stands above {part_of(name)}"
        for name, targets in edges.items()
        for target in sorted({target for target, _ in targets})
        if place.get(part_of(target), 0) > place[part_of(name)]
    ]
    at_run_time = {
        name: sorted({t for t, for_annotations in ts if not for_annotations}) for name, ts in edges.items()
    }
    return upward + list(circles(at_run_time))


def circles(graph: dict[str, list[str]]) -> Iterator[str]:
    """One line for every module that imports itself by way of others, and none for the others of the same circle."""
    told = set()
    for start in graph:
        reached, ways = set(), [(start,)]
        while ways and start not in told:
            way = ways.pop()
            for target in graph.get(way[-1], ()):
                if target == start:
                    told.update(way)
                    yield "imports in a circle: " + " -> ".join((*way, start))
                    break
                if target not in reached:
                    reached.add(target)
                    ways.append((*way, target))


def test_packages_import_those_below_and_no_modules_import_in_a_circle():
    assert problems(ROOT) == []


def test_contributing_lists_the_same_order():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^    (\w+)(?:/|\.py) ", text[text.index("## Architecture") :], re.MULTILINE)
    assert listed == [name for name in ORDER if name != "__main__"]


def test_tests_import_helpers_and_no_other_tests():
    for path in (ROOT / "tests").rglob("*.py"):
        found = re.findall(r"^ *(?:from|import) tests\b\S*", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(" tests.helpers" in line for line in found), path


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_only_call_their_module_and_nothing_imports_them(name):
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert f'start("{PACKAGE}.cli.{name}")' in text and len(text.splitlines()) < 10
    for path in modules(ROOT).values():
        assert not re.search(rf"^ *(import|from) {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE), (
            path
        )


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        (
            "images.py",
            "def f():\n    from .decoding import rules",
            "sca_caption.images imports sca_caption.decoding.rules",
        ),
        (
            "images.py",
            "if TYPE_CHECKING:\n    import sca_caption.checkpoint",
            "checkpoint stands above images",
        ),
        ("decoding/rules.py", "from .stepper import State", "imports in a circle: "),
        (
            "decoding/rules.py",
            "if TYPE_CHECKING:\n    from .stepper import State\nimport sca_caption, numpy",
            None,
        ),
        ("helpers.py", "", "list helpers in ORDER"),
    ],
)
def test_the_checker_on_a_made_package(file, text, problem, tmp_path):
    made = {
        "__init__.py": "from .api import Captioner",
        "images.py": "",
        "checkpoint.py": "from . import images, vocab",
    }
    made |= {
        "vocab.py": "from sca_caption import __version__",
        "decoding/__init__.py": "",
        "decoding/rules.py": "",
    }
    made |= {"decoding/stepper.py": "from sca_caption.decoding import rules", file: text}
    for name, content in made.items():
        (tmp_path / PACKAGE / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / name).write_text(content)
    found = problems(tmp_path)
    assert len(found) == 1 and problem in found[0] if problem else not found
