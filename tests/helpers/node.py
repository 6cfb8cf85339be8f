"""Run the browser pages' JavaScript modules in node. Tests with `needs_node` are skipped if node is not installed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sca_caption"
PAGES = [PACKAGE / "serve" / "page", PACKAGE / "export" / "site"]  # one folder in a site
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs node, which is not installed")


def node(program: str, given, folder: Path):
    """The value of `answer(given)`. `program`: a module that imports from "pages/" and defines answer.

    Both values pass through JSON, so their numbers must be finite.
    """
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    for path in (path for part in PAGES for path in part.glob("*.js")):
        shutil.copyfile(path, pages / path.name)
    source = program.replace('from "pages/', f'from "{pages.as_uri()}/')
    (folder / "given.json").write_text(json.dumps(given, allow_nan=False))
    script = folder / "program.mjs"
    script.write_text(
        f"""import {{ readFileSync }} from "node:fs";
{source}
process.stdout.write(JSON.stringify(await answer(JSON.parse(readFileSync({json.dumps(str(folder / "given.json"))})))));
"""
    )
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
