"""Datasets of HDF5 files that may be damaged, or made to do harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from federation.data.formats.damage import check_claim, damage
from federation.errors import DataError

if TYPE_CHECKING:
    import h5py


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, for reading. Raises DataError where it is missing, damaged or no HDF5."""
    import h5py

    if not path.is_file():
        raise DataError(f"{path.absolute()} {'is a folder' if path.is_dir() else 'does not exist'}; expected an HDF5 file")
    with damage(path, "HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        yield file


def members(group: h5py.Group, path: Path) -> list[str]:
    """The names of what is in `group`; h5py gives those that are damaged as bytes. Raises DataError."""
    with damage(path, "HDF5 file"):
        return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in group]


def read_dataset(group: h5py.Group, key: str, path: Path, name: str) -> np.ndarray:
    """The values of the dataset `key`, which `group` has; `name` is what messages call it. Texts come as bytes.

    Raises DataError for a group, for types that NumPy has not, and for a dataset larger than its file can hold.
    """
    import h5py

    with damage(path, f"dataset {name}"):
        node = group[key]
        if not isinstance(node, h5py.Dataset):
            raise DataError(f"{path}: {name} is a group; expected a dataset")
        try:
            dtype = node.dtype
        except TypeError as error:
            raise DataError(f"{path}: {name} is of a type that is not supported ({error}); expected numbers") from error
        if dtype.kind == "O" and h5py.check_string_dtype(dtype) is None:
            raise DataError(f"{path}: {name} is an array of objects ({dtype}); expected numbers or texts")
        check_claim(node.nbytes, path, f"dataset {name}")
        return np.asarray(node[()])
