"""Starts the programs in the root, which work from a clone whose packages may be missing."""

import contextlib
import gc
import importlib
from collections.abc import Iterator

from sca_caption.runtime.errors import fail, missing


def start(module: str) -> int:
    """Run `main` of a module and return its exit status; 2, with one line, if the module cannot be imported."""
    try:
        main = importlib.import_module(module).main
    except ImportError as error:
        return fail(missing(error))
    return main()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import packages and load a model in the block without collecting garbage.

    They make hundreds of thousands of objects, most of which stay, and every collection visits all. What exists at the
    end of the block is not visited later either, until `gc.unfreeze` is called.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
