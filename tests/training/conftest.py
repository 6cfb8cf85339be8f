"""Fixtures of the training tests: a data file of coloured squares, and training without its slow outputs."""

from pathlib import Path

import pytest

from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.training import loop
from tests.helpers.made_photos import write
from tests.helpers.training_runs import source


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "squares.h5"
    write(source(), path, encoding="raw")
    return path


@pytest.fixture
def data(path) -> CaptionDataset:
    return CaptionDataset(path)


@pytest.fixture
def no_tensorboard(request, monkeypatch):
    """No TensorBoard (except in tests of it) and no progress.svg, which take longer than the training."""
    monkeypatch.setattr(loop, "draw_progress", lambda *_: None)
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr(loop, "summary_writer", lambda output: None)
