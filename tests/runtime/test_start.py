"""Garbage collection while a program loads, and afterwards."""

import gc
import weakref
from contextlib import nullcontext

import pytest

from sca_caption.runtime.start import loading


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_garbage_is_collected_again_after_loading(error, run, photos):
    gc.collect()
    with pytest.raises(error) if error else nullcontext(), loading():
        assert not gc.isenabled()
        if error:
            raise error
    assert gc.isenabled() and gc.get_freeze_count() > 0
    later = weakref.ref(Cycle())
    gc.collect()
    assert later() is None
    assert run(photos[0])[0] == 0
    assert gc.isenabled() and gc.get_freeze_count() == 0
