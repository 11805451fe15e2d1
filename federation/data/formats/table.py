"""Tables: CSV and Parquet files, read by pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content, Samples
from federation.errors import DataError


def read_table(path: Path, *, target: str, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> Content:
    """A table with a sample a row: `.csv`, `.csv.gz` (first line: names) or `.parquet`.

    `target` is the column of labels or targets: whole numbers stay, text and truth values are numbered in sorted order,
    other numbers are regression targets. `columns` are kept beside the samples, such as a user's name, and numbered in
    the same way; `drop` is left out. All others are features, in the file's order: numbers as they are, truth values as
    0 and 1, and text one-hot, a feature for each value in sorted order. x float32[n, features].

    Raises DataError for names that do not exist, missing values (naming column and row), and columns of other types.
    """
    table = _read(path)
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
    values = {name: _values(table.column(name), name, path) for name in (target, *columns, *features)}
    x = np.concatenate([_features(values[name], name, path) for name in features], axis=1)
    y = values[target]
    return Content(Samples(x, y if y.dtype.kind in "iuf" else _numbered(y),
                           {name: _numbered(values[name]) for name in columns}))


def _read(path: Path) -> Any:
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow, which is not installed: pip install 'federation-hpc[tabular]'") from error
    with damage(path, "table"):
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        return pyarrow.csv.read_csv(path)


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
        return array
    if types.is_string(kind) or types.is_large_string(kind):
        return np.asarray(column.to_pylist(), dtype=np.str_)
    raise DataError(f"{path}: the column {name!r} is {kind}; expected numbers, truth values or text: leave it out with drop")


def _features(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """float32[n, features of this column]."""
    if values.dtype.kind != "U":
        return values.astype(np.float32).reshape(-1, 1)
    kinds, codes = np.unique(values, return_inverse=True)
    if len(kinds) > max(64, len(values) // 10):
        raise DataError(f"{path}: the column {name!r} is text with {len(kinds)} different values in {len(values)} rows, too "
                        f"many for one-hot features: leave it out with drop, or keep it as one of columns")
    one_hot: np.ndarray = codes[:, None] == np.arange(len(kinds))
    return one_hot.astype(np.float32)


def _numbered(values: np.ndarray) -> np.ndarray:
    """Whole numbers as they are, others by their sorted order."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
