"""Tables: CSV and Parquet files, read by pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content, Samples
from federation.errors import DataError

#: Different texts of a column that become a feature each; names and the like have more.
MOST_KINDS = 256


def read_table(path: Path, *, target: str, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> Content:
    """A table with a sample a row: `.csv`, `.csv.gz` (first line: names) or `.parquet`.

    `target` is the column of labels or targets: whole numbers stay, text and truth values are numbered in sorted order,
    other numbers are regression targets. `columns` are kept beside the samples, such as a user's name, and numbered in
    the same way; `drop` is left out. All others are features, in the file's order: numbers as they are, truth values as
    0 and 1, and text one-hot, a feature for each of at most MOST_KINDS values in sorted order. x float32[n, features].

    Raises DataError for names that do not exist, missing and infinite values and empty text (naming column and row, of
    which the first is 1), and columns of other types.
    """
    table = _read(path)
    with damage(path, "list of column names"):
        names = table.column_names
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{path} has several columns called {', '.join(twice)}; expected different names")
    for name in (target, *columns, *drop):
        if name not in names:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(names)}")
    if overlap := {target} & {*columns, *drop}:
        raise DataError(f"{path}: the target {overlap.pop()!r} can neither be dropped nor kept as a column")
    features = [name for name in names if name not in (target, *columns, *drop)]
    if not features:
        raise DataError(f"{path}: no features are left beside {', '.join((target, *columns, *drop))}")
    kinds = {name: _kinds(table, name, path) for name in features}
    x = np.empty((table.num_rows, sum(1 if kind is None else len(kind) for kind in kinds.values())), np.float32)
    start = 0
    for name, kind in kinds.items():
        values = _values(table.column(name), name, path)
        if kind is None:
            x[:, start] = values
        else:
            x[:, start : start + len(kind)] = values[:, None] == kind
        start += 1 if kind is None else len(kind)
    y = _values(table.column(target), target, path)
    return Content(Samples(x, y if y.dtype.kind in "iuf" else _numbered(y),
                           {name: _numbered(_values(table.column(name), name, path)) for name in columns}))


def _read(path: Path) -> Any:
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow, which is not installed: pip install 'federation-hpc[tabular]'") from error
    if not path.is_file():
        raise DataError(f"{path.absolute()} {'is a folder' if path.is_dir() else 'does not exist'}; expected a table")
    with damage(path, "table"):
        try:
            if path.suffix.lower() == ".parquet":
                return pyarrow.parquet.ParquetFile(path).read()
            return pyarrow.csv.read_csv(path)
        except pyarrow.ArrowException as error:
            raise ValueError(error) from error


def _values(column: Any, name: str, path: Path) -> np.ndarray:
    import pyarrow.types as types

    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: the column {name!r} has no value in row {row + 1} ({column.null_count} are missing); fill "
                        f"them in, or leave the column out with drop")
    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        array: np.ndarray = column.to_numpy()
        if array.dtype.kind == "f" and not (good := np.abs(array) <= np.finfo(np.float32).max).all():
            row = int(good.argmin())
            raise DataError(f"{path}: the column {name!r} is {array[row]} in row {row + 1}; expected finite numbers, within the "
                            f"range of float32")
        return array
    if types.is_string(kind) or types.is_large_string(kind):
        with damage(path, f"text in the column {name!r}"):
            texts = np.asarray(column.to_pylist(), dtype=np.str_)
        if len(empty := np.flatnonzero(texts == "")):
            raise DataError(f"{path}: the column {name!r} has no text in row {empty[0] + 1} ({len(empty)} are empty); fill "
                            f"them in, or leave the column out with drop")
        return texts
    raise DataError(f"{path}: the column {name!r} is {kind}; expected numbers, truth values or text: leave it out with drop")


def _kinds(table: Any, name: str, path: Path) -> np.ndarray | None:
    """The sorted values of a column of text; None for numbers."""
    values = _values(table.column(name), name, path)
    if values.dtype.kind != "U":
        return None
    kinds = np.unique(values)
    if len(kinds) > MOST_KINDS:
        raise DataError(f"{path}: the column {name!r} is text with {len(kinds)} different values, more than the {MOST_KINDS} "
                        f"that become features: leave it out with drop, or keep it as one of columns")
    return kinds


def _numbered(values: np.ndarray) -> np.ndarray:
    """Whole numbers as they are, others by their sorted order."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
