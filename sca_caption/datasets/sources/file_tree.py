"""The files of a folder and the members of its zips, found by name. Zips are read without unpacking."""

import os
import re
import struct
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.folders import is_hidden, walk

IMAGE_BYTES, TEXT_BYTES = 1 << 28, 1 << 31  # read at most; a zip of 3 MB can hold a file of 3 GB
MAX_DEPTH = 4  # root/NAME/, two folders from inside an archive, and the folder of the images
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
UNREAD_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".rar", ".7z")
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DATASETS = ("flickr8k", "flickr30k", "coco")  # names of folders in a root that several data sets share


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file on disk. Calling it returns its bytes; raises OSError as `open` does, and see `bounded`."""

    path: str

    def __call__(self, most: int = IMAGE_BYTES) -> bytes:
        with open(self.path, "rb") as file:
            return bounded(file.read(most + 1), most)


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of a zip. Calling it returns its bytes; raises OSError if the archive is damaged, and see `bounded`.

    The member's offset is stored, so reading needs no open handle, which forked workers would share, and no
    central directory, which has 118,287 entries for COCO and would be parsed again in each worker.
    """

    archive: str
    member: str
    offset: int
    size: int  # bytes, compressed
    method: int
    crc: int

    def __call__(self, most: int = IMAGE_BYTES) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise OSError(
                    f"{self.archive}: no local header for {self.member}; the archive is damaged, download it again"
                )
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            file.seek(name_length + extra_length, os.SEEK_CUR)
            data = bounded(file.read(min(self.size, most + 1)), most)
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                data = bounded(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most + 1), most)
            except zlib.error as error:
                raise OSError(
                    f"{self.archive}: {self.member} does not decompress ({error}); download the archive again"
                ) from error
        if zlib.crc32(data) != self.crc:
            raise OSError(
                f"{self.archive}: {self.member} fails its checksum; the archive is damaged, download it again"
            )
        return data


def bounded(data: bytes, most: int) -> bytes:
    """Return `data`. Raises OSError for more than `most` bytes; readers read one byte more at most."""
    if len(data) > most:
        raise OSError(f"more than {most / 1e6:.0f} MB; make it smaller")
    return data


File = DiskFile | ZipMember
FoundFile = tuple[str, File]  # path relative to the root, reader


@dataclass
class FileTree:
    """The files at most MAX_DEPTH folders below `root`, and the members of the zips among them.

    root: a folder or a zip. name: the data set's name. Raises UserError if `root` is neither.

    If several files have the same name, a path that contains `name` is preferred, then a file on disk over a zip
    member, then the path with fewer folders, then the first path in sorted order. Folders and zips whose path
    contains another name of DATASETS are skipped, so several data sets can share a root.
    """

    root: Path
    name: str = ""
    problems: list[tuple[str, str]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # archives that must be unpacked first

    def __post_init__(self) -> None:
        self.entries: dict[str, list[FoundFile]] = defaultdict(list)  # by normalised base name
        if self.root.is_dir():
            self._read_folder()
        elif not self.root.exists():
            raise UserError(f"--root {self.root} does not exist; give the data set's folder or zip")
        elif zipfile.is_zipfile(self.root):
            self._open_zip(self.root, self.root.name)
        else:
            raise UserError(
                f"--root {self.root} is neither a folder nor a zip; give the data set's folder or zip"
            )

    def _of_other_dataset(self, path: str) -> bool:
        path = path.lower()
        return self.name not in path and any(other in path for other in DATASETS if other != self.name)

    def _read_folder(self) -> None:
        def report(folder: Path, error: OSError) -> None:
            self.problems.append((str(folder), f"cannot be listed ({error.strerror}); skipped"))

        def enter(path: str, depth: int) -> bool:
            return depth < MAX_DEPTH and not self._of_other_dataset(path)

        for path, entry in walk(self.root, report, enter):
            lower = entry.name.lower()
            if lower.endswith(".zip"):
                if not self._of_other_dataset(path):
                    self._open_zip(Path(entry.path), path)
                continue
            if lower.endswith(UNREAD_ARCHIVES) and self.name in path.lower():
                self.unread.append(path)
            self.entries[normalize_name(entry.name)].append((path, DiskFile(entry.path)))

    def _open_zip(self, archive: Path, path: str) -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            self.problems.append((path, f"not a readable zip ({error}); download it again"))
            return
        for info in members:
            parts = PurePosixPath(info.filename).parts
            if info.is_dir() or any(map(is_hidden, parts)) or not parts:
                continue
            name = f"{path}/{info.filename}"
            if info.flag_bits & 1 or info.compress_type not in ZIP_METHODS:
                self.problems.append(
                    (name, "encrypted or compressed by an unsupported method; unpack the zip")
                )
                continue
            at, size = info.header_offset, info.compress_size
            file = ZipMember(str(archive), info.filename, at, size, info.compress_type, info.CRC)
            self.entries[normalize_name(parts[-1])].append((name, file))

    def _rank(self, found: FoundFile) -> tuple:
        path, file = found
        return self.name not in path.lower(), isinstance(file, ZipMember), path.count("/"), path

    def find_all(self, name: str) -> list[FoundFile]:
        """Return all files called `name`, the preferred one first.

        name: a base name or the last parts of a path (`train2014/a.jpg`); upper and lower case are the same.
        """
        name = normalize_name(name)
        found = self.entries.get(name.rpartition("/")[2], [])
        if "/" in name:
            found = [entry for entry in found if normalize_name(f"/{entry[0]}").endswith("/" + name)]
        return sorted(found, key=self._rank) if len(found) > 1 else found

    def find(self, name: str) -> FoundFile | None:
        """Return the preferred file called `name`, or None."""
        return next(iter(self.find_all(name)), None)

    def find_path(self, path: str) -> FoundFile | None:
        """Return the file at `path` relative to the root, or None; upper and lower case are the same."""
        return next(
            (found for found in self.find_all(path) if normalize_name(found[0]) == normalize_name(path)), None
        )

    def image_folders(self) -> set[str]:
        """Return the base names, in lower case, of all folders that contain images."""
        return {
            PurePosixPath(path).parent.name.lower()
            for name, entries in self.entries.items()
            if name.endswith(IMAGE_SUFFIXES)
            for path, _ in entries
        }

    def error_hints(self) -> str:
        """Return the end of an error message about a missing file: damaged zips, closed folders, packed archives."""
        notes = [f"{path} is {reason}" for path, reason in self.problems if "zip" in reason]
        notes += [f"{path} {reason}" for path, reason in self.problems if "listed" in reason]
        notes += [f"{path} must be unpacked first" for path in self.unread]
        return "".join(f"; {note}" for note in notes[:3])


def normalize_name(name: str) -> str:
    """Return a name in lower case and Unicode form NFC, for comparison. macOS decomposes é into e and an accent."""
    return unicodedata.normalize("NFC", name).lower()


def read_text(found: FoundFile, problems: list[tuple[str, str]]) -> str:
    """Decode a text file: UTF-8 with or without BOM, UTF-16 with BOM, otherwise Windows-1252.

    Adds to `problems` if the file is read as Windows-1252. Raises UserError if the file cannot be read.
    """
    path, read = found
    try:
        data = read(TEXT_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check the file") from error
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append((path, f"not UTF-8 (byte {error.start}); read as Windows-1252"))
        return data.decode("cp1252", errors="replace")


def read_lines(found: FoundFile, problems: list[tuple[str, str]]) -> list[str]:
    """Return the non-blank lines of a text file. Only line feeds and carriage returns end a line: str.splitlines
    would also split at U+0085 and U+2028, which occur in captions.
    """
    return [line for line in re.split("\r\n|\n|\r", read_text(found, problems)) if line.strip()]
