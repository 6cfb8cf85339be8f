"""Starts the programs in the root, which work from a clone whose packages may be missing."""

import importlib

from sca_caption.runtime.errors import fail, missing


def start(module: str) -> int:
    """Run `main` of a module and return its exit status; 2, with one line, if the module cannot be imported."""
    try:
        main = importlib.import_module(module).main
    except ImportError as error:
        return fail(missing(error))
    return main()
