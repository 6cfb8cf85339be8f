"""python -m sca_caption ray: on a cluster of two machines, one of which is killed, and mistakes, which take one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sca_caption.cli.ray import main
from sca_caption.inference.captioning import CaptionPipeline

ROOT = Path(__file__).parents[2]
# Ray would lower the priority of its workers, report its use, ask for a token and wait half a minute for a dead machine.
SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture
def cluster(monkeypatch):
    """(address, kill): two machines with one processor each beside the head; `kill()` ends one of them."""
    pytest.importorskip("ray", reason="ray comes with the extra ray")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 << 20}
    made = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        machines = [made.add_node(num_cpus=1, **memory) for _ in range(2)]
        yield made.address, lambda: made.remove_node(machines[1], allow_graceful=False)
    finally:
        made.shutdown()


@pytest.mark.slow
def test_every_photograph_is_once_in_the_result_though_a_machine_dies(
    cluster, tiny_checkpoint, tmp_path, capfd
):
    import pyarrow.dataset

    address, kill = cluster
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(60):
        Image.new("RGB", (900, 700), (4 * index, 90, 250 - 4 * index)).save(photos / f"{index:02}.png")
    (photos / "bad.png").write_text("no picture")
    command = [sys.executable, "-m", "sca_caption", "ray", str(photos), "--output", str(output)]
    command += ["--checkpoint", str(tiny_checkpoint), "--shard-size", "1", "--address", address]

    def parts() -> int:
        return len([*output.glob("part-*")])

    running = subprocess.Popen(command, cwd=tmp_path)
    try:
        while running.poll() is None and parts() < 4:
            time.sleep(0.02)
        kill()
        assert 4 <= parts() < 61, "killed in the middle"
        assert running.wait(900) == 1
    finally:
        running.kill()

    def rows() -> dict[str, dict]:
        found = pyarrow.dataset.dataset([*map(str, output.glob("part-*"))]).to_table().to_pylist()
        assert len({row["file_name"] for row in found}) == len(found)
        return {row["file_name"]: row for row in found}

    pipeline = CaptionPipeline.load(tiny_checkpoint, device="cpu")
    found = rows()
    assert sorted(found) == [str(path) for path in sorted(photos.iterdir())]
    for result in pipeline.stream(sorted(photos.iterdir())):
        row, best = found[str(result.item)], result.captions[0] if result.captions else None
        assert (row["caption"], row["error"] is None) == (best and best.text, best is not None)
        assert best is None or row["score"] == pytest.approx(best.score, abs=1e-3)

    Image.new("RGB", (30, 20), "red").save(photos / "new.png")
    before = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert subprocess.run(command, cwd=tmp_path, timeout=900).returncode == 0
    assert "1 captioned, 0 unreadable, 61 kept" in capfd.readouterr().err
    assert len(rows()) == 62 and all(path.stat().st_mtime_ns == then for path, then in before.items())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("{photos} --output {out} --address 127.0.0.1:9", "127.0.0.1:9"),
        ("{photos} --output {out} --address nowhere", "nowhere"),
        ("{empty} --output {out}", "no images"),
        ("{photos} --output {mine}", "other files"),
        ("{photos} --output {out} --threads 0", "--threads 0"),
        ("{photos} --output {out} --gpus -1", "--gpus -1"),
        ("{photos} --output {out} --format csv", "csv"),
        ("{photos} --output {out} --style none", "none"),
        ("{photos} --output {out} --checkpoint {empty}", "checkpoint"),
    ],
)
def test_mistakes_take_one_line(arguments, found, photos, tiny_checkpoint, tmp_path, capsys):
    pytest.importorskip("ray", reason="ray comes with the extra ray")
    names = {name: tmp_path / name for name in ("photos", "out", "empty", "mine")}
    names["empty"].mkdir()
    names["mine"].mkdir()
    (names["mine"] / "notes.txt").write_text("mine")
    line = arguments.format(**names).split()
    model = [] if "--checkpoint" in line else ["--checkpoint", str(tiny_checkpoint)]
    assert main([*line, *model]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and found in err
    assert not names["out"].exists() and len([*names["mine"].iterdir()]) == 1


def test_another_model_does_not_continue_a_run(photos, tiny_checkpoint, tmp_path, capsys):
    ray_data = pytest.importorskip("sca_caption.inference.ray_data", reason="ray comes with the extra ray")
    ray_data.ResultFolder(str(tmp_path / "out")).begin({"checkpoint": ["another"]})
    flags = ["--output", str(tmp_path / "out"), "--checkpoint", str(tiny_checkpoint)]
    assert main([str(photos[0].parent), *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "another model" in err and str(tmp_path / "out") in err


def test_without_ray_the_extra_is_named(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert main([str(photos[0]), "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "[ray]" in err and not os.path.exists(tmp_path / "out")
