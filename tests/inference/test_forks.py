"""Captioning in processes that were forked after the model was loaded, as gunicorn --preload does."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sca_caption import Captioner
from sca_caption.runtime.devices import require_usable
from sca_caption.runtime.errors import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
PICTURE = "np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)"
CODE = """
    import multiprocessing, sys
    import numpy as np, torch
    from sca_caption import Captioner

    torch.set_num_threads(2)  # whose second thread is not there after a fork
    captioner = Captioner.load(sys.argv[1], device="cpu")
    picture = PICTURE
    torch.rand(4_000_000).exp().sum()
    expected = captioner.caption([picture] * 4)

    def caption(_):
        torch.rand(4_000_000).exp().sum()
        return captioner.caption([picture] * 4)

    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(caption, range(4)).get(timeout=100)
    assert found == [expected] * 4, found
    assert torch.get_num_threads() == 2
"""


@pytest.mark.slow
def test_captions_after_a_fork_are_the_same(tiny_checkpoint):
    code = textwrap.dedent(CODE).replace("PICTURE", PICTURE)
    subprocess.run([sys.executable, "-c", code, str(tiny_checkpoint)], check=True, timeout=300)


def test_what_does_not_survive_a_fork_is_refused(tiny_checkpoint, monkeypatch):
    captioner = Captioner.load(tiny_checkpoint, device="cpu")
    picture = np.zeros((40, 40, 3), np.uint8)
    expected = captioner.caption(picture)
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    assert captioner.caption(picture) == expected
    captioner.pipeline.model.survives_fork = False
    with pytest.raises(UserError, match=r"before this process was forked.*load it in each process"):
        captioner.caption(picture)
    require_usable(process + 1, survives_fork=False)
