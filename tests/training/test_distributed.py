"""Several processes compute the images, gradients, weights and scores of one, also after one was killed."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sca_caption import checkpoint
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.decoding import sampling
from sca_caption.runtime.distributed import SINGLE_PROCESS, Processes
from sca_caption.training import loop
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.loop import hash_seed
from tests.helpers.classified_pictures import class_folders
from tests.helpers.distributed_worker import CAPTIONS, gradients
from tests.helpers.made_photos import message, write
from tests.helpers.torchrun import needs_distributed, torchrun
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import QUICK, captioner, run, source

pytestmark = pytest.mark.usefixtures("toy", "no_tensorboard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/squares.h5 and pictures of four classes."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "data").mkdir()
    write(source(), folder / "data" / "squares.h5", encoding="raw")
    class_folders(folder / "pictures")
    return folder


@pytest.fixture
def data(folder) -> CaptionDataset:
    return CaptionDataset(folder / "data" / "squares.h5")


# ---- sharing work-----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [*itertools.product(range(8), range(1, 5))])
def test_shares_are_disjoint_and_even_and_gathered_in_order(count, size, monkeypatch):
    items, everyone = list("abcdefgh"[:count]), [Processes(rank, size) for rank in range(size)]
    shares = [p.shard(items) for p in everyone]
    assert sorted(itertools.chain.from_iterable(shares)) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [p.shard_batch(items) for p in everyone] == [share or items[:1] for share in shares]

    def all_gather_object(found, share):
        found[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert [p.gather(p.shard(items)) for p in everyone] == [items] * size


def test_one_process_exchanges_nothing():
    assert SINGLE_PROCESS.is_main and SINGLE_PROCESS.shard([1, 2]) == [1, 2]
    assert SINGLE_PROCESS.shard_batch([1, 2]) == SINGLE_PROCESS.gather([1, 2]) == [1, 2]
    assert SINGLE_PROCESS.mean(1, 2.5) == (1, 2.5) and SINGLE_PROCESS.broadcast("x") == "x"
    module = torch.nn.BatchNorm2d(3)
    assert SINGLE_PROCESS.data_parallel(module) is SINGLE_PROCESS.sync_batch_norm(module) is module
    script = "import sys, sca_caption.runtime.distributed as d\nwith d.process_group() as p:\n"
    script += "    assert p is d.SINGLE_PROCESS\n"
    script += "assert not [name for name in sys.modules if name.startswith(('torch', 'numpy'))]"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_first_process_has_the_seed_of_a_single_one():
    alone = int(np.random.SeedSequence([3, 4]).generate_state(1)[0])
    assert hash_seed(3, 4) == hash_seed(3, 4, 0) == alone
    assert len({hash_seed(3, 4, rank) for rank in range(4)}) == 4


def test_a_batch_smaller_than_the_processes_is_an_error(data, tmp_path):
    task = CaptionTask(captioner(data), data, QUICK, Processes(0, 4))
    text = message(lambda: loop.train(task, QUICK, tmp_path))
    assert text.startswith("--batch-size 3: fewer than the 4 processes ")


# ---- two processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(folder, tmp_path_factory) -> Path:
    """The folder that two processes of the worker's `parity` have written."""
    output = tmp_path_factory.mktemp("parity")
    done = torchrun("parity", folder / "data" / "squares.h5", folder / "pictures", output, cwd=output)
    assert done.returncode == 0, done.stderr
    return output


@needs_distributed
def test_gradients_equal_those_of_one_process(parity, data, folder, monkeypatch):
    monkeypatch.setattr(sampling, "sample", sampling.sample)  # `gradients` replaces it
    wanted, found = (
        gradients(data, folder / "pictures", SINGLE_PROCESS),
        load_file(parity / "gradients.safetensors"),
    )
    assert found.keys() == wanted.keys()
    steps = {tuple(name.split(".")[:3]) for name in found}
    assert len(steps) == 2 * (3 * 2) + 2 * 2 + 6 * 2  # rewards need several captions, which four images have
    learns = {step[1] for step in (name.split(".") for name in found) if "stem" in step}
    assert learns == {"1"}  # frozen in the first epoch
    for step in steps:
        names = [name for name in wanted if name.startswith(".".join(step) + ".")]
        one, two = (torch.cat([grads[name].flatten() for name in names]) for grads in (wanted, found))
        assert (one - two).norm() <= 1e-5 * one.norm() > 0, step


@needs_distributed
def test_a_run_equals_that_of_one_process(parity, data, tmp_path):
    history, _ = run(data, tmp_path, CAPTIONS, dropout=0.0)
    last, wanted = (checkpoint.load(folder / "last.pt") for folder in (parity, tmp_path))
    for name, value in wanted.model.state_dict().items():
        torch.testing.assert_close(last.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert last.extra.keys() == wanted.extra.keys()
    for found, one in zip(last.training["history"], history, strict=True):
        assert found["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert found["CIDEr"] == pytest.approx(one["CIDEr"], rel=1e-6)
    assert sorted(p.name for p in parity.iterdir()) == [
        "best.pt",
        "gradients.safetensors",
        "last.pt",
        "progress.svg",
    ]


TRAIN = ["train", "--dataset", "squares", "--backbone", "toy", "--layers", "block.relu", "block"]
TRAIN += ["--attention-width", 6, "--embedding-size", 16, "--lstm-size", 24, "--backbone-weights", "none"]
TRAIN += ["--epochs", 3, "--batch-size", 3, "--workers", 0, "--finetune-backbone-at", 1, "--ema", 0.5]


@pytest.mark.slow
@needs_distributed
def test_a_run_continues_after_a_process_was_killed(folder):
    whole = torchrun(*TRAIN, "--output", "whole", cwd=folder)
    parts = torchrun(*TRAIN, "--output", "parts", cwd=folder, restarts=1, BLOW="kill")
    assert (whole.returncode, parts.returncode) == (0, 0), parts.stderr
    last, wanted = (checkpoint.load(folder / name / "last.pt") for name in ("parts", "whole"))
    for name, value in wanted.model.state_dict().items():
        assert torch.equal(last.model.state_dict()[name], value), name
    assert all(torch.equal(value, wanted.extra[name]) for name, value in last.extra.items())
    epochs = [re.findall(r"^epoch +(\d)/3", done.stdout, re.MULTILINE) for done in (whole, parts)]
    assert epochs == [["1", "2", "3"]] * 2  # each printed once, by one process
    assert parts.stdout.count("best model: parts/best.pt") == 1
    assert sorted(p.name for p in (folder / "parts").iterdir()) == ["best.pt", "last.pt", "progress.svg"]


@pytest.mark.slow
@needs_distributed
def test_a_users_mistake_is_reported_once_and_not_retried(folder):
    done = torchrun(*TRAIN, "--output", "mistaken", cwd=folder, restarts=1, BLOW="mistake")
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == ["error: one process stumbled; mend it"]
    assert done.returncode != 0 and re.search(r"exitcode +: 2 ", done.stderr)
    assert "RuntimeError" not in done.stderr
    assert len(checkpoint.load(folder / "mistaken" / "last.pt").training["history"]) == 1
