"""Files under a root, unpacked or inside zips, as one tree; zips are read in place."""

import os
import struct
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import UserError

DEPTH = 4  # folders below the root: root/NAME, two levels of an archive's own folders, and the images' folder
OTHER_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".rar", ".7z")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file on disk; calling it reads it."""

    path: str

    def __call__(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of a zip, by its offset: reading it needs neither an open handle (which forked workers would
    share) nor the central directory (118,287 entries for COCO, once in every worker)."""

    archive: str
    member: str
    offset: int
    size: int  # compressed
    method: int
    crc: int

    def __call__(self) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise OSError(f"{self.archive}: no local header for {self.member}; is the archive damaged?")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            file.seek(name_length + extra_length, os.SEEK_CUR)
            data = file.read(self.size)
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise OSError(f"{self.archive}: {self.member} does not decompress: {error}") from error
        if zlib.crc32(data) != self.crc:
            raise OSError(f"{self.archive}: {self.member} fails its checksum; is the archive damaged?")
        return data


@dataclass
class Tree:
    """All files at most DEPTH folders below `root`, and the members of the zips among them.

    Where several files answer to a name, the choice is fixed: first one whose path holds `name` (the data set's),
    then unpacked before zipped, then the shallower, then by path. Folders and zips named after one of `others`
    (and not after `name`) are not entered, so that several data sets can share a root.
    """

    root: Path
    name: str = ""
    others: tuple[str, ...] = ()
    problems: list[tuple[str, str]] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)  # archives that this reader does not open

    def __post_init__(self) -> None:
        # base name, lower case -> [(path under the root, reader)]
        self.entries: dict[str, list[tuple[str, DiskFile | ZipMember]]] = defaultdict(list)
        if self.root.is_dir():
            self._walk(self.root, "", 0)
        elif zipfile.is_zipfile(self.root):
            self._open_zip(self.root, self.root.name)
        elif self.root.exists():
            raise UserError(f"--root {self.root} is neither a folder nor a zip; name the folder that holds the data")
        else:
            raise UserError(f"--root {self.root} does not exist; name the folder that holds the data")

    def _foreign(self, path: str) -> bool:
        path = path.lower()
        return self.name not in path and any(other in path for other in self.others)

    def _walk(self, folder: Path, prefix: str, depth: int) -> None:
        try:
            with os.scandir(folder) as listing:
                found = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append((str(folder), f"cannot be listed: {error.strerror}"))
            return
        for entry in found:
            path, lower = prefix + entry.name, entry.name.lower()
            if lower.startswith(".") or lower == "__macosx":
                continue
            if entry.is_dir():
                if depth < DEPTH and not self._foreign(path):
                    self._walk(folder / entry.name, path + "/", depth + 1)
            elif lower.endswith(".zip"):
                if not self._foreign(path):
                    self._open_zip(Path(entry.path), path)
            else:
                if lower.endswith(OTHER_ARCHIVES):
                    self.packed.append(path)
                self.entries[lower].append((path, DiskFile(entry.path)))

    def _open_zip(self, archive: Path, path: str) -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            self.problems.append((path, f"not a readable zip ({error}); download it again"))
            return
        for member in members:
            parts = PurePosixPath(member.filename).parts
            if member.is_dir() or "__MACOSX" in parts or parts[-1].startswith("."):
                continue
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self.problems.append((f"{path}/{member.filename}", "encrypted or in an unusual compression; unpack it"))
                continue
            reader = ZipMember(str(archive), member.filename, member.header_offset,
                               member.compress_size, member.compress_type, member.CRC)
            self.entries[parts[-1].lower()].append((f"{path}/{member.filename}", reader))

    def _rank(self, entry: tuple[str, DiskFile | ZipMember]) -> tuple:
        path, reader = entry
        return self.name not in path.lower(), isinstance(reader, ZipMember), path.count("/"), path

    def find(self, name: str) -> tuple[str, DiskFile | ZipMember] | None:
        """Return (path under the root, reader) of the file called `name`, or None.

        `name` is a base name or ends a path (`train2014/a.jpg`); case does not matter."""
        name = name.lower().replace("\\", "/")
        candidates = self.entries.get(name.rpartition("/")[2], ())
        if "/" in name:
            candidates = [entry for entry in candidates if f"/{entry[0].lower()}".endswith("/" + name)]
        return min(candidates, key=self._rank, default=None)

    def image_folders(self) -> list[str]:
        """Return the folders (under the root, zips counting as folders) that hold images, sorted."""
        return sorted({path.rpartition("/")[0] or "." for name, entries in self.entries.items()
                       if name.endswith(IMAGE_SUFFIXES) for path, _ in entries})


def text_of(data: bytes, path: str, problems: list[tuple[str, str]]) -> str:
    """Decode a text file: UTF-8 with or without BOM, UTF-16 with BOM, else Windows-1252, which is reported."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append((path, f"not UTF-8 (byte {error.start}); read as Windows-1252"))
        return data.decode("cp1252", errors="replace")
