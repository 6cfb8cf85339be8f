"""How messages call the programs and install extras: `python train.py` in a clone, `sca-caption-train` if installed."""

import re
import sys
from pathlib import Path

CLONE = Path(__file__).parents[2]
INSTALLED = {  # file in the root of a clone -> command, as in pyproject.toml
    "caption.py": "sca-caption",
    "preprocess.py": "sca-caption-preprocess",
    "train.py": "sca-caption-train",
    "evaluate.py": "sca-caption-evaluate",
}
FILE = rf"(?<![\w/\\])({'|'.join(map(re.escape, INSTALLED))})(?!\w)"


def installed() -> bool:
    """Whether an installed command started this process, or the package does not lie in a clone."""
    return Path(sys.argv[0]).name.startswith("sca-caption") or not (CLONE / "pyproject.toml").is_file()


def program_name(file: str) -> str:
    """The program of a file in the root of a clone: "train.py" or "sca-caption-train"."""
    return INSTALLED[file] if installed() else file


def command(file: str) -> str:
    """What the user types to start the program: "python train.py" or "sca-caption-train"."""
    return INSTALLED[file] if installed() else f"python {file}"


def install_command(extra: str = "") -> str:
    """What the user types to install an extra of the package, or the packages that it needs itself."""
    if installed():
        return f"pip install 'sca-caption[{extra}]'" if extra else "pip install sca-caption"
    return f"pip install -e '.[{extra}]'" if extra else "pip install -e ."


def document(file: str) -> str:
    """How messages name a document of a clone, such as "data/README.md", which an installed package lacks."""
    return f"{file} in the project's source" if installed() else file


LAYOUTS = document("data/README.md")  # where the files of data sets lie


def localized(text: str) -> str:
    """A text of help, written as in a clone, with the names of this installation. For texts without names of files."""
    if not installed():
        return text
    text = re.sub(rf"(torchrun .*){FILE}", lambda found: f"{found[1]}--no-python {INSTALLED[found[2]]}", text)
    text = re.sub(rf"(?:python )?{FILE}", lambda found: INSTALLED[found[1]], text)
    text = text.replace("data/README.md", document("data/README.md"))
    return re.sub(r"pip install -e '\.\[(\w+)\]'", r"pip install 'sca-caption[\1]'", text)
