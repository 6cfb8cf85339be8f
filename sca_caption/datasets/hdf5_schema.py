"""Checks of a data file against its schema, which hdf5_reader.py describes.

A file from elsewhere may be damaged or made to mislead. HDF5 can take the values of a dataset from other files, by
external storage, external links and virtual datasets; a data file has none of these.
"""

from collections.abc import Sequence

import h5py
import numpy as np

LONGEST = 1000  # words of a stored caption that are believed; hdf5_captions.py writes at most 100


def check_attributes(vocabulary: object, encoding: str, encodings: Sequence[str]) -> None:
    """Raise ValueError for a vocabulary that is no list of words, and for an unknown encoding."""
    if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
        raise ValueError("vocabulary is no list of words")
    if encoding not in encodings:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(encodings)}")


def check_datasets(file: h5py.File, encoding: str, size: int, splits: int) -> None:
    """Check kinds, shapes and, except for word ids and pixels, values of all datasets of the file.

    size: of the images in pixels. splits: number of splits. Raises ValueError with what is wrong, and KeyError for a
    dataset that is missing.
    """
    limit = file.id.get_filesize()  # each row of a table takes more than a byte
    n = rows(file, "images/split", "u", (), limit)
    rows(file, "images/image_id", "i", (), limit, n)
    rows(file, "images/file_name", "O", (), limit, n)
    if encoding == "jpeg":
        length = rows(file, "images/data", "u", (), limit, item=1)
        rows(file, "images/offsets", "i", (), limit, n + 1)
        offsets = file["images/offsets"][:]
        if offsets[0] != 0 or offsets[-1] != length or (np.diff(offsets) < 0).any():
            raise ValueError("images/offsets do not divide images/data")
    elif encoding == "raw":
        rows(file, "images/pixels", "u", (size, size, 3), limit, n, item=1)
    else:
        outputs = len(group_of(file, "features"))
        for name in map(str, range(max(1, outputs))):
            rows(file, f"features/{name}", "f", None, limit, n)
    if n and file["images/split"][:].max() >= splits:
        raise ValueError("images/split has a number of no split")
    check_captions(file, "captions", "image", limit, n)
    captions = len(file["captions/image"])
    rows(file, "captions/text", "O", (), limit, captions)
    if "texts" in file:
        check_captions(file, "texts", "group", limit)


def check_self_contained(file: h5py.File) -> None:
    """Raise ValueError if the file takes anything from another file."""
    groups = [file]
    for group in groups:  # which grows
        for name in group:
            where = f"{group.name}/{name}".lstrip("/")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{where} is a link")
            found = group[name]
            if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
                raise ValueError(f"{where} has its values in another file")
            if isinstance(found, h5py.Group) and group is file:
                groups.append(found)


def group_of(file: h5py.File, name: str) -> h5py.Group:
    if not isinstance(file[name], h5py.Group):
        raise ValueError(f"{name} is no group")
    return file[name]


def rows(
    file: h5py.File,
    name: str,
    kind: str,
    shape: tuple[int, ...] | None,
    limit: int,
    count: int | None = None,
    item: int | None = None,
) -> int:
    """The number of rows of a dataset.

    kind: NumPy's letter of the type ("i" allows "u" too), "O" for text. shape: of one row; None: any. limit: most rows.
    count: the rows it must have. item: bytes of a number. Raises ValueError if the dataset is otherwise.
    """
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is no dataset")
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    kinds = "iu" if kind == "i" else kind
    if is_text != (kind == "O") or not (is_text or dataset.dtype.kind in kinds):
        raise ValueError(f"{name} has values of type {dataset.dtype}")
    if item is not None and dataset.dtype.itemsize != item:
        raise ValueError(f"{name} has values of type {dataset.dtype}")
    if not dataset.shape or (shape is not None and dataset.shape[1:] != shape):
        raise ValueError(f"{name} has shape {dataset.shape}")
    if len(dataset) > limit or (count is not None and len(dataset) != count):
        raise ValueError(f"{name} has {len(dataset)} rows, expected {limit if count is None else count}")
    return len(dataset)


def check_captions(file: h5py.File, group: str, owner: str, limit: int, owners: int | None = None) -> None:
    """Check the word lists of captions/ or texts/, whose rows belong to `owners` images or groups, in their order."""
    count = rows(file, f"{group}/{owner}", "i", (), limit)
    rows(file, f"{group}/length", "i", (), limit, count)
    tokens = file[f"{group}/tokens"]
    rows(file, f"{group}/tokens", "u", tokens.shape[1:2], limit, count)
    if not tokens.shape[1:] or tokens.shape[1] > LONGEST:
        raise ValueError(f"{group}/tokens has shape {tokens.shape}")
    owned, lengths = file[f"{group}/{owner}"][:].astype(np.int64), file[f"{group}/length"][:]
    last = owned[-1] + 1 if count else 0
    if count and (owned[0] != 0 or not np.isin(np.diff(owned), (0, 1)).all()):
        raise ValueError(f"{group}/{owner} is not ascending from 0 without gaps")
    if owners is not None and last != owners:
        raise ValueError(f"{group}/{owner} has {last} of {owners} images")
    if count and (lengths.min() < 0 or lengths.max() > tokens.shape[1]):
        raise ValueError(f"{group}/length is longer than {group}/tokens")
