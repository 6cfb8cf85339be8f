"""Files under a root, unpacked or inside zips, as one tree; zips are read in place."""

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

DEPTH = 4  # folders below the root: root/NAME, two levels of an archive's own folders, and the images' folder
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
OTHER_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".rar", ".7z")
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DATASETS = ("flickr8k", "flickr30k", "coco")  # names that folders of a shared root go by


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file on disk; calling it reads it."""

    path: str

    def __call__(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of a zip, by its offset; calling it reads it, or raises OSError where the archive is damaged.

    With the offset, reading needs neither an open handle (which forked workers would share) nor the central
    directory (COCO's has 118,287 entries, and every worker would parse it).
    """

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
                raise OSError(f"{self.archive}: {self.member} does not decompress ({error})") from error
        if zlib.crc32(data) != self.crc:
            raise OSError(f"{self.archive}: {self.member} fails its checksum; is the archive damaged?")
        return data


File = DiskFile | ZipMember
Found = tuple[str, File]  # path under the root, reader


@dataclass
class Tree:
    """All files at most DEPTH folders below `root`, and the members of the zips among them.

    Where several files answer to a name, the choice is fixed: first one whose path holds `name`, the data
    set's; then unpacked before zipped; then the shallower; then by path. Folders and zips that are named
    after another of DATASETS are not entered, so that several data sets can share a root. UserError: the root
    does not exist.
    """

    root: Path
    name: str = ""
    problems: list[tuple[str, str]] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)  # archives that are not read in place

    def __post_init__(self) -> None:
        self.entries: dict[str, list[Found]] = defaultdict(list)  # by the base name, folded
        if self.root.is_dir():
            self._walk(self.root, "", 0)
        elif not self.root.exists():
            raise UserError(f"--root {self.root} does not exist; name the data set's folder or zip")
        elif zipfile.is_zipfile(self.root):
            self._open_zip(self.root, self.root.name)
        else:
            raise UserError(f"--root {self.root} is neither a folder nor a zip; name the data set's")

    def _foreign(self, path: str) -> bool:
        path = path.lower()
        return self.name not in path and any(other in path for other in DATASETS if other != self.name)

    def _walk(self, folder: Path, prefix: str, depth: int) -> None:
        try:
            with os.scandir(folder) as listing:
                found = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append((str(folder), f"cannot be listed ({error.strerror}); left out"))
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
                if lower.endswith(OTHER_ARCHIVES) and self.name in path.lower():
                    self.packed.append(path)
                self.entries[folded(entry.name)].append((path, DiskFile(entry.path)))

    def _open_zip(self, archive: Path, path: str) -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            self.problems.append((path, f"not a readable zip ({error}); download it again"))
            return
        for info in members:
            parts = PurePosixPath(info.filename).parts
            if info.is_dir() or not parts or "__MACOSX" in parts or parts[-1].startswith("."):
                continue
            name = f"{path}/{info.filename}"
            if info.flag_bits & 1 or info.compress_type not in READABLE:
                self.problems.append((name, "encrypted or unusually compressed; unpack the zip"))
                continue
            at, size = info.header_offset, info.compress_size
            file = ZipMember(str(archive), info.filename, at, size, info.compress_type, info.CRC)
            self.entries[folded(parts[-1])].append((name, file))

    def _rank(self, found: Found) -> tuple:
        path, file = found
        return self.name not in path.lower(), isinstance(file, ZipMember), path.count("/"), path

    def find_all(self, name: str) -> list[Found]:
        """Return the files called `name`, the one to prefer first. `name` is a base name or the end of a path
        (`train2014/a.jpg`); case does not matter."""
        name = folded(name)
        found = self.entries.get(name.rpartition("/")[2], [])
        if "/" in name:
            found = [entry for entry in found if folded(f"/{entry[0]}").endswith("/" + name)]
        return sorted(found, key=self._rank) if len(found) > 1 else found

    def find(self, name: str) -> Found | None:
        """Return the first of `find_all(name)`, or None."""
        return next(iter(self.find_all(name)), None)

    def at(self, path: str) -> Found | None:
        """Return the file whose whole path under the root is `path`, or None; case does not matter."""
        return next((found for found in self.find_all(path) if folded(found[0]) == folded(path)), None)

    def folders_of_images(self) -> set[str]:
        """Return the base names, in lower case, of the folders that hold images."""
        return {
            PurePosixPath(path).parent.name.lower()
            for name, entries in self.entries.items()
            if name.endswith(IMAGE_SUFFIXES)
            for path, _ in entries
        }

    def hints(self) -> str:
        """Return the end of a message about a lacking file: damaged zips, and archives left packed."""
        notes = [f"{path} is {reason}" for path, reason in self.problems if "zip" in reason]
        notes += [f"{path} must be unpacked first" for path in self.packed]
        return "".join(f"; {note}" for note in notes[:3])


def folded(name: str) -> str:
    """Return a name as it is compared: in lower case, and composed (macOS writes é as e and an accent)."""
    return unicodedata.normalize("NFC", name).lower()


def text_of(found: Found, problems: list[tuple[str, str]]) -> str:
    """Read a text file: UTF-8 with or without BOM, UTF-16 with BOM, else Windows-1252, which is reported."""
    path, read = found
    try:
        data = read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append((path, f"not UTF-8 (byte {error.start}); read as Windows-1252"))
        return data.decode("cp1252", errors="replace")


def lines_of(found: Found, problems: list[tuple[str, str]]) -> list[str]:
    """Return a text file's lines that are not blank. (str.splitlines would also break at U+0085 and U+2028,
    which captions hold.)"""
    return [line for line in re.split("\r\n|\n|\r", text_of(found, problems)) if line.strip()]
