"""Arrays from `.npz` and HDF5 files. Nothing that such a file holds is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.hdf5 import members, opened, read_dataset
from federation.errors import DataError

#: One table (split by test_fraction), or training and test samples: what each array is called.
TOGETHER = ("x", "y")
APART = ("x_train", "y_train", "x_test", "y_test")

_HDF5_GROUPS = ("train/x", "train/y", "test/x", "test/y")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of `path` by key: x, y or x_train, y_train, x_test, y_test (in HDF5 also train/x and so on).

    Raises DataError, naming the file and what was expected, for a file that is missing, damaged, of another kind, or
    lacks keys, and for arrays of objects.
    """
    reader = READERS[path.suffix.lower()]
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path.absolute()} {what}; expected a file that holds {' and '.join(TOGETHER)}, or "
                        f"{', '.join(APART)} (relative names are looked for in data.root)")
    return reader(path)


def read_npz(path: Path, keys: Callable[[list[str]], Iterable[str]] = lambda present: present) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` archive under `keys`, a function of those that are present; all of them by default."""
    with damage(path, ".npz archive"):
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: this is no .npz archive, or a damaged one; expected what numpy.savez writes")
        archive = np.load(path, allow_pickle=False)
    with archive:
        found: dict[str, np.ndarray] = {}
        for key in keys(archive.files):
            with damage(path, f"array under the key {key!r}"):
                found[key] = _numbers(archive[key], path, key)
        return found


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    return read_npz(path, lambda present: _keys(path, present, (TOGETHER, APART)))


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with opened(path) as file:
        with damage(path, "HDF5 file"):
            names = [key for key in (*TOGETHER, *APART, *_HDF5_GROUPS) if key in file]
            present = names or members(file, path)
        found: dict[str, np.ndarray] = {}
        for key in _keys(path, present, (TOGETHER, APART, _HDF5_GROUPS)):
            found[key] = _numbers(read_dataset(file, key, path, repr(key)), path, key)
        return found


#: Suffix -> reader.
READERS: Mapping[str, Callable[[Path], dict[str, np.ndarray]]] = MappingProxyType({
    ".npz": _read_npz, ".h5": _read_hdf5, ".hdf5": _read_hdf5})


def _keys(path: Path, present: list[str], layouts: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The layout that the file follows: exactly one of them must be there, and whole."""
    begun = [layout for layout in layouts if set(layout) & set(present)]
    choices = ", or ".join(" ".join(layout) for layout in layouts)
    if not begun:
        listed = ", ".join(sorted(present)[:20]) or "nothing"
        raise DataError(f"{path}: expected the keys {choices}; found {listed}")
    if len(begun) > 1:
        both = " as well as ".join(" ".join(sorted(set(layout) & set(present))) for layout in begun)
        raise DataError(f"{path}: expected the keys {choices}; found {both}, so it is unclear which to use")
    missing = [key for key in begun[0] if key not in present]
    if missing:
        raise DataError(f"{path}: the key {' and '.join(missing)} is missing; expected {choices}; "
                        f"found {', '.join(sorted(present)[:20])}")
    return begun[0]


def _numbers(array: object, path: Path, key: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):  # a member that is no .npy file comes as bytes
        raise DataError(f"{path}: {key!r} is not an array; expected what numpy.savez writes")
    if array.dtype.hasobject:
        raise DataError(_objects(path, key))
    return array


def _objects(path: Path, key: str) -> str:
    return (f"{path}: {key!r} is an array of Python objects or of strings; expected an array of numbers "
            f"(objects are never loaded, as that could execute code)")
