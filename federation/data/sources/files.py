"""Samples from files of the user's own, relative to data.root."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from federation.data.formats.arrays import read_arrays
from federation.data.formats.folder import read_folder
from federation.data.formats.leaf import read_leaf
from federation.data.formats.raw import Content, Samples
from federation.data.formats.table import read_table
from federation.data.provider import DataProvider, Request
from federation.errors import DataError


def arrays(request: Request, *, task: str | None = None, num_classes: int | None = None) -> DataProvider:
    """A `.npz` or HDF5 file that holds x and y, or x_train, y_train, x_test and y_test.

    `task`: classification or regression; by default integer y means classes. `num_classes`: by default the largest
    label plus 1.
    """
    path = _file(request, "a file that holds x and y, or x_train, y_train, x_test, y_test")
    return DataProvider(str(path), lambda: _content(read_arrays(path)), (path,), {"reader": "arrays"}, task, num_classes)


def table(request: Request, *, target: str, columns: tuple[str, ...] = (), drop: tuple[str, ...] = (),
          task: str | None = None, num_classes: int | None = None) -> DataProvider:
    """A `.csv`, `.csv.gz` or `.parquet` file, see `formats.table.read_table`; `task` and `num_classes` as for arrays."""
    path = _file(request, "a table")
    facts = {"reader": "table", "target": target, "columns": list(columns), "drop": list(drop)}
    return DataProvider(str(path), lambda: read_table(path, target=target, columns=columns, drop=drop,
                                                      is_regression=task == "regression"), (path,), facts, task, num_classes)


def folder(request: Request, *, task: str | None = None, num_classes: int | None = None) -> DataProvider:
    """A folder (its name ends with /) of `.npy` files, see `formats.folder.read_folder`; settings as for arrays."""
    path = request.root / request.name
    return DataProvider(str(path), lambda: read_folder(path), files_in(path, "*.npy"), {"reader": "folder"}, task,
                        num_classes)


def leaf(request: Request, *, num_classes: int | None = None, image_shape: list[int] | None = None) -> DataProvider:
    """A folder of LEAF's JSON files, `leaf:FOLDER`, see `formats.leaf.read_leaf`. `image_shape`: what rows of numbers are
    turned into."""
    path = request.root / os.path.expanduser(request.name.removeprefix("leaf:"))
    shape = None if image_shape is None else tuple(image_shape)
    return DataProvider(str(path), lambda: read_leaf(path, num_classes=num_classes, image_shape=shape),
                        files_in(path, "*/*.json"), {"reader": "leaf", "image_shape": image_shape}, None, num_classes)


def files_in(folder: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob(pattern)))


def _content(found: Mapping[str, np.ndarray]) -> Content:
    x, y, *test = found.values()
    return Content(Samples(x, y), Samples(test[0], test[1]) if test else None)


def _file(request: Request, expected: str) -> Path:
    path = request.root / request.name
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path.absolute()} {what}; expected {expected} (relative names are looked for in data.root)")
    return path


#: The end of a name -> what opens it.
SUFFIXES: Mapping[str, Callable[..., DataProvider]] = MappingProxyType({
    ".npz": arrays, ".h5": arrays, ".hdf5": arrays, ".csv": table, ".csv.gz": table, ".parquet": table, "/": folder})
