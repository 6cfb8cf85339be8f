"""The folder of the page that captions in the browser: its files, and which folders it may replace."""

import json
import re
from pathlib import Path

import pytest

from sca_caption.export.browser_site import (
    INSTALL,
    MODEL,
    PAGES,
    RUNTIME_FILES,
    check_runtime,
    is_site,
    write_page,
)
from sca_caption.export.model_json import FORMAT_VERSION
from sca_caption.runtime.atomic_files import atomic_folder
from tests.helpers.made_photos import message

DESCRIPTION = {
    "inputs": {"trunk": ["images"], "step": ["tokens"]},
    "dtypes": ["float32", "int8"],
    "source": {"sca_caption": "1.2", "checkpoint": "best.pt"},
}


@pytest.fixture
def runtime(tmp_path) -> Path:
    """A folder like that of the package onnxruntime-web, with more files than the page needs."""
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name in (*RUNTIME_FILES, "ort.all.js"):
        (folder / "dist" / name).write_text(f"this is {name}")
    return folder


def make(folder: Path, runtime: Path) -> None:
    with atomic_folder(folder, is_site) as site:
        (site / MODEL / "int8").mkdir(parents=True)
        (site / MODEL / "model.json").write_text(json.dumps(DESCRIPTION))
        for number, name in enumerate(("trunk.onnx", "step.onnx", "int8/trunk.onnx", "int8/step.onnx")):
            (site / MODEL / name).write_bytes(bytes(100 + number))
        write_page(site, runtime)


@pytest.fixture
def site(tmp_path, runtime) -> Path:
    make(tmp_path / "site", runtime)
    return tmp_path / "site"


def test_files_to_load_are_listed_with_their_sizes(site):
    listed = json.loads((site / "site.json").read_text())
    assert listed["version"] == "1.2" and listed["checkpoint"] == "best.pt"
    parts = [part["path"] for part in listed["files"]]
    assert parts == ["model/model.json"]
    runtimes = {name: [part["path"] for part in files] for name, files in listed["runtimes"].items()}
    assert runtimes == {
        "wasm": ["runtime/ort-wasm-simd-threaded.wasm"],
        "webgpu": ["runtime/ort-wasm-simd-threaded.jspi.wasm"],
    }
    assert {dtype["name"]: dtype["files"] for dtype in listed["dtypes"]} == {
        "float32": [{"path": "model/trunk.onnx", "bytes": 100}, {"path": "model/step.onnx", "bytes": 101}],
        "int8": [
            {"path": "model/int8/trunk.onnx", "bytes": 102},
            {"path": "model/int8/step.onnx", "bytes": 103},
        ],
    }
    assert all((site / part["path"]).stat().st_size == part["bytes"] for part in listed["files"])


def test_every_file_is_used(site):
    assert {path.name for path in (site / "runtime").iterdir()} == set(RUNTIME_FILES)
    assert (site / "index.html").read_text() == (PAGES / "browser.html").read_text()
    code = {path.name: path.read_text() for path in site.iterdir() if path.suffix in {".js", ".html"}}
    named = {
        name
        for text in code.values()
        for name in re.findall(
            r'(?:from |import |import\(|src=|href=|new URL\(|register\()"(?:\./)?([\w./-]+\.\w+)"', text
        )
    }
    assert all((site / name).is_file() for name in named)
    assert {path.name for path in site.iterdir() if path.is_file()} - named == {"index.html", "site.json"}


def test_no_file_names_another_server(site):
    for path in site.iterdir():
        if path.suffix in {".js", ".html", ".css"}:
            assert not re.findall(r"(?:https?:)?//(?!localhost:8000)\w[\w-]*\.\w", path.read_text()), (
                path.name
            )
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (site / "index.html").read_text())[1]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "*" not in policy


def test_a_site_is_replaced_and_other_folders_are_not(site, runtime):
    (site / "naming.js").write_text("a file of earlier versions")
    make(site, runtime)
    assert not (site / "naming.js").exists()
    (site / "my notes.txt").write_text("keep")
    assert "has other files" in message(lambda: make(site, runtime))
    assert (site / "my notes.txt").read_text() == "keep"


def test_a_folder_that_is_not_the_runtime(runtime, tmp_path):
    check_runtime(runtime)
    (runtime / "dist" / RUNTIME_FILES[1]).unlink()
    found = message(lambda: make(tmp_path / "site", runtime))
    assert f"no dist/{RUNTIME_FILES[1]}" in found and INSTALL in found
    assert not (tmp_path / "site").exists()


def test_the_page_reads_the_format_that_is_written():
    (read,) = re.findall(r"FORMAT_VERSION = (\d+);", (PAGES / "worker.js").read_text(encoding="utf-8"))
    assert int(read) == FORMAT_VERSION
