"""Writing of the data file: unusable images, full disks, interruptions, bounded memory, worker processes."""

import dataclasses
import errno
import functools
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from sca_caption.datasets import hdf5_images, hdf5_writer
from sca_caption.datasets.hdf5_images import MAX_AHEAD, TASK_SIZE, GrowingDataset, map_in_order, prepare_image
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.images import ORIENTATION, Transform, fit, load
from tests.helpers.made_photos import (
    SMALL,
    change,
    dataset,
    encoded,
    fail,
    give,
    message,
    photo,
    record,
    write,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "made.h5"
    write(dataset(), path)
    return path


def contents(path) -> dict:
    """Name -> (attributes, array) of everything in an HDF5 file."""
    found = {}
    with h5py.File(path) as file:
        found["/"] = dict(file.attrs), None
        file.visititems(
            lambda name, item: found.update(
                {name: (dict(item.attrs), getattr(item, "shape", None) and item[()])}
            )
        )
    return found


def same(a, b) -> bool:
    """True if two results of `contents` are equal, including arrays."""
    return repr(a) == repr(b) and all(
        np.array_equal(a[name][1], b[name][1]) for name in a if name != "/" and a[name][1] is not None
    )


def test_parallel_and_serial_writing_give_the_same_file(tmp_path, made):
    write(dataset(), tmp_path / "parallel.h5", workers=3)
    assert (tmp_path / "parallel.h5").read_bytes() == made.read_bytes()
    assert same(contents(tmp_path / "parallel.h5"), contents(made))


def metadata(orientation: int) -> dict:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return {"exif": exif.tobytes(), "comment": b"by somebody", "icc_profile": b"a profile", "dpi": (300, 300)}


FILES = {
    "png": encoded(photo(1)),
    "grey of model size": encoded(photo(2, (32, 32)).convert("L"), "JPEG"),
    "png of model size": encoded(photo(3, (32, 32))),
    "turned, of model size": encoded(photo(4, (32, 32)), "JPEG", **metadata(6)),
    "jpeg with metadata": encoded(photo(5, (40, 30)), "JPEG", **metadata(1)),
    "big jpeg": encoded(photo(6, (400, 300)), "JPEG", **metadata(3)),
    "transparent": encoded(photo(7).convert("RGBA"), "PNG"),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_stored_image_is_the_loaded_image(data, mode):
    transform = Transform(32, mode)
    pixels = load(data, transform)
    options = {"transform": transform, "quality": 80}
    prepared = prepare_image(functools.partial(give, data), encoding="jpeg", **options)
    assert prepared == encoded(Image.fromarray(pixels), "JPEG", quality=80)  # and no metadata
    assert np.array_equal(prepare_image(functools.partial(give, data), encoding="raw", **options), pixels)


BAD = [
    (FileNotFoundError(errno.ENOENT, "No such file"), "missing", "No such file"),
    (PermissionError(errno.EACCES, "Permission denied"), "unreadable", "Permission denied"),
    (OSError("a.zip: b.jpg fails its checksum"), "unreadable", "a.zip: b.jpg fails its checksum"),
    (ValueError("embedded null byte"), "unreadable", "embedded null byte"),
]


def with_bad_images() -> Source:
    """Twelve usable images, and one of each kind that is skipped."""
    source = dataset(12)
    for number, (error, _, _) in enumerate(BAD, 50):
        source.records.insert(3, dataclasses.replace(record(number), read=functools.partial(fail, error)))
    source.records.insert(0, record(60, data=b""))
    source.records.append(record(61, data=encoded(photo(61))[:200]))
    source.records.append(record(62, captions=("", " . ")))
    source.records.append(record(5))
    return source


@pytest.mark.parametrize("workers", [1, 2])
def test_unusable_images_are_skipped_reported_and_counted(tmp_path, workers):
    reported, path = [], tmp_path / "made.h5"

    def on_skip(name, reason):
        reported.append((name, reason))

    report = write(with_bad_images(), path, workers=workers, max_skipped=6, on_skip=on_skip)
    kinds = {name: (kind, reason) for name, kind, reason in report.skipped}
    for number, (_, kind, reason) in enumerate(BAD, 50):
        assert kinds[f"photo {number}.png"] == (kind, reason)
    assert kinds["photo 60.png"][0] == "damaged" and "0 bytes" in kinds["photo 60.png"][1]
    assert kinds["photo 61.png"][0] == "damaged"
    assert kinds["photo 62.png"][0] == "without a caption"
    assert kinds["photo 5.png"][0] == "duplicate"
    data = CaptionDataset(path)
    assert reported == [(name, reason) for name, _, reason in report.skipped] == data.skipped
    assert (
        "skipped     8 images: 3 unreadable; 2 damaged; 1 without a caption; 1 duplicate; 1 missing"
        in str(report)
    )
    assert sorted(data.image_id(i) for i in range(len(data))) == list(range(1000, 1012))
    for i in range(len(data)):  # rows stay aligned with their images
        wanted = fit(photo(data.image_id(i) - 1000), SMALL).astype(int)
        assert np.abs(data.image(i) - wanted).mean() < 4


def test_more_unusable_images_than_max_skipped_write_nothing(tmp_path):
    parts = ("more than 5 images", "photo 61.png", "--max-skipped")
    message(lambda: write(with_bad_images(), tmp_path / "made.h5", max_skipped=5, workers=2), *parts)
    assert list(tmp_path.iterdir()) == []


def test_train_split_without_images_is_an_error(tmp_path):
    source = dataset(split="val")
    message(
        lambda: write(source, tmp_path / "made.h5"), "10 images are listed", "10 are usable", "train split"
    )
    source.records[0] = record(0, data=b"bad")
    message(lambda: write(source, tmp_path / "made.h5"), "10 images are listed", "9 are usable")
    message(lambda: write(Source("", "", []), tmp_path / "made.h5"), "0 images are listed")
    message(
        lambda: write(dataset(), tmp_path / "made.h5", min_count=99), "99 times", "train", "lower --min-count"
    )
    assert list(tmp_path.iterdir()) == []


def test_old_file_is_kept_after_a_failure(tmp_path, made):
    path = tmp_path / "made.h5"
    path.write_bytes(made.read_bytes())
    for error in (KeyboardInterrupt(), RuntimeError("a bug"), MemoryError()):
        source = dataset()
        change(source, 6, read=functools.partial(fail, error))
        with pytest.raises(type(error)):
            write(source, path)
        assert [file.name for file in tmp_path.iterdir()] == ["made.h5"]
        assert path.read_bytes() == made.read_bytes()


class FullDisk(hdf5_writer._OutputFile):
    """A file on a disk with 20 kB of free space."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 20_000:
            self.error = OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_full_disk_is_a_user_error(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(hdf5_writer, "_OutputFile", FullDisk)
    monkeypatch.setattr(hdf5_images, "BUFFER_BYTES", 2000)
    parts = (f"cannot write {tmp_path / 'made.h5'}: disk full", "MB free", "--output")
    message(lambda: write(dataset(40), tmp_path / "made.h5", encoding=encoding), *parts)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from sca_caption.datasets.hdf5_writer import write
from sca_caption.datasets.sources import find
from sca_caption.images import Transform
from sca_caption.runtime.errors import UserError
source = find("shapes", count=10)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write(source, sys.argv[1], transform=Transform(700), encoding="raw", workers=1)
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 2_000, 50_000, 5_000_000])
def test_file_size_limit_is_a_user_error_and_hdf5_does_not_crash(tmp_path, limit):
    path = tmp_path / "made.h5"
    command = [sys.executable, "-c", LIMITED, str(path), str(limit)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.count("\n"), run.stderr) == (0, 1, "")
    assert all(part in run.stdout for part in (f"cannot write {path}", "File too large", "--output"))
    assert list(tmp_path.iterdir()) == []


def test_unwritable_paths_are_user_errors(tmp_path):
    (tmp_path / "file").touch()
    assert "is a folder; give a file in it" in message(lambda: write(dataset(), tmp_path))
    assert "File exists" in message(lambda: write(dataset(), tmp_path / "file" / "made.h5"))
    write(dataset(), tmp_path / "new" / "folder" / "made.h5")
    assert len(CaptionDataset(tmp_path / "new" / "folder" / "made.h5")) == 10


def test_partial_file_of_a_killed_writer_is_removed_and_a_locked_one_is_kept(tmp_path):
    abandoned, alive = tmp_path / ".made.h5.1.partial", tmp_path / ".made.h5.2.partial"
    abandoned.write_bytes(b"half")
    with hdf5_writer._OutputFile(alive):
        write(dataset(), tmp_path / "made.h5")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".made.h5.2.partial", "made.h5"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_are_at_most_max_ahead_images_ahead(workers):
    taken = 0

    def items():
        nonlocal taken
        for number in range(5 * MAX_AHEAD):
            taken += 1
            yield number

    for done, result in enumerate(map_in_order(abs, items(), workers), 1):
        assert result == done - 1
        assert taken - done < workers * MAX_AHEAD
    assert done == 5 * MAX_AHEAD


def test_workers_return_every_result_in_order():
    for count in (0, 1, TASK_SIZE - 1, TASK_SIZE, TASK_SIZE + 1, 2 * TASK_SIZE, 3 * MAX_AHEAD + 1):
        assert list(map_in_order(abs, iter(range(-count, 0)), 2)) == list(range(count, 0, -1))


@pytest.mark.parametrize("encoding", ["jpeg", "raw", "features"])
def test_writer_buffers_a_bounded_number_of_bytes(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(hdf5_images, "BUFFER_BYTES", 10_000)
    monkeypatch.setattr(hdf5_images, "BATCH_SIZE", 1)
    held = []
    add = GrowingDataset.add

    def add_and_record(self, rows):
        add(self, rows)
        held.append(sum(row.nbytes for row in self.rows))
        assert held[-1] == self.buffered < 10_000

    monkeypatch.setattr(GrowingDataset, "add", add_and_record)
    encode = (lambda pixels: [pixels]) if encoding == "features" else None
    write(dataset(60), tmp_path / "made.h5", encoding=encoding, encode=encode)
    assert max(held) > 5_000
    assert len(held) >= 30


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_a_user_error():
    message(lambda: list(map_in_order(die, [1, 2, 3], 2)), "worker process was killed", "--workers 1")
