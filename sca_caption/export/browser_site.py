"""A folder of files that any web server can hand out: a page that captions photographs in the browser, with no server of
ours behind it. The model runs there under onnxruntime-web, the WebAssembly build of ONNX Runtime, which npm installs.

The folder holds

    index.html, *.css, *.js   the page: those of pages/ that it needs
    model/                    an exported model, see `export`
    runtime/                  the files of onnxruntime-web that run it, without WebGPU and with it
    site.json                 which of these files the page is to load, with their sizes in bytes
"""

import json
import shutil
from pathlib import Path

from sca_caption.inference import confidence_scale
from sca_caption.runtime.errors import UserError

RUNTIME_VERSION = "1.30.0"  # of onnxruntime-web, which the tests run
INSTALL = f"npm install --no-save onnxruntime-web@{RUNTIME_VERSION}"
RUNTIMES = {  # files in its folder dist; the page loads one of the two
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
}
RUNTIME_FILES = tuple(name for names in RUNTIMES.values() for name in names)
PAGES = Path(__file__).with_name("site")
SHARED = Path(__file__).parents[1] / "serve" / "page"
PAGE = (
    *(SHARED / name for name in ("attention.js", "camera.js", "icon.svg")),
    *sorted(path for path in PAGES.iterdir() if path.name != "browser.html"),
)
EARLIER = (
    "naming.js",
    "novel_objects.js",
    "hallucination_mask.js",
)  # files of sites that earlier versions wrote
MODEL = "model"


def write_page(folder: Path, runtime: Path) -> None:
    """Write the page and its runtime into `folder`, which holds an exported model as folder / "model".

    runtime: the folder of the package onnxruntime-web. Raises UserError where that is something else.
    """
    check_runtime(runtime)
    model = folder / MODEL
    described = json.loads((model / "model.json").read_text(encoding="utf-8"))
    (folder / "runtime").mkdir()
    for name in RUNTIME_FILES:
        shutil.copyfile(runtime / "dist" / name, folder / "runtime" / name)
    for path in PAGE:
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(PAGES / "browser.html", folder / "index.html")
    for name, text in confidence_scale.files().items():
        (folder / name).write_text(text, encoding="utf-8")

    def listed(*paths: str) -> list[dict]:
        return [{"path": path, "bytes": (folder / path).stat().st_size} for path in paths]

    dtypes = [
        {"name": dtype, "files": listed(*(f"{graphs}/{name}.onnx" for name in described["inputs"]))}
        for dtype in described["dtypes"]
        for graphs in [MODEL if dtype == "float32" else f"{MODEL}/{dtype}"]
    ]
    site = {
        "version": described["source"]["sca_caption"],
        "checkpoint": described["source"]["checkpoint"],
        "runtimes": {name: listed(f"runtime/{binary}") for name, (_, binary) in RUNTIMES.items()},
        "files": listed(f"{MODEL}/model.json"),
        "dtypes": dtypes,  # the last is what the page takes unless told otherwise
    }
    (folder / "site.json").write_text(json.dumps(site, indent=1) + "\n", encoding="utf-8")


def check_runtime(runtime: Path) -> None:
    """Raise UserError where a folder is not that of onnxruntime-web."""
    lacking = [name for name in RUNTIME_FILES if not (runtime / "dist" / name).is_file()]
    if lacking:
        raise UserError(
            f"--browser {runtime}: not the folder of onnxruntime-web (no dist/{lacking[0]}); {INSTALL} makes "
            f"node_modules/onnxruntime-web"
        )


def is_site(folder: Path) -> bool:
    """Whether a folder holds nothing but what `write_page` writes, or wrote in earlier versions."""
    known = {
        "index.html",
        "site.json",
        "runtime",
        MODEL,
        *(path.name for path in PAGE),
        *confidence_scale.files(),
    }
    return (folder / "site.json").is_file() and {path.name for path in folder.iterdir()} <= known.union(
        EARLIER
    )
