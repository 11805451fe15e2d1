"""Samples from files of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from federation.data.files import read_arrays
from federation.data.formats.raw import Content, Samples
from federation.data.provider import DataProvider, Request
from federation.errors import DataError


def arrays(request: Request, *, task: str | None = None, num_classes: int | None = None) -> DataProvider:
    """A `.npz` or HDF5 file that holds x and y, or x_train, y_train, x_test and y_test.

    `task`: classification or regression; by default integer y means classes. `num_classes`: by default the largest
    label plus 1.
    """
    path = _file(request, "a file that holds x and y, or x_train, y_train, x_test, y_test")
    return DataProvider(str(path), lambda: _content(read_arrays(path)), (path,), {"reader": "arrays"}, task, num_classes)


def _content(found: Mapping[str, np.ndarray]) -> Content:
    x, y, *test = found.values()
    return Content(Samples(x, y), Samples(test[0], test[1]) if test else None)


def _file(request: Request, expected: str) -> Path:
    path = request.root / request.name
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path.absolute()} {what}; expected {expected} (relative names are looked for in data.root)")
    return path


#: The end of a file's name -> what opens it.
SUFFIXES: Mapping[str, Callable[..., DataProvider]] = MappingProxyType({
    ".npz": arrays, ".h5": arrays, ".hdf5": arrays})
