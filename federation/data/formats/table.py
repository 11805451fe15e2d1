"""Tables: CSV and Parquet files, read by pyarrow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content, Samples
from federation.errors import DataError

#: Different texts of a column that become a feature each; names and the like have more.
MOST_KINDS = 256
#: Bytes of columns that are converted at a time.
_GROUP = 1 << 26
#: Bytes of a CSV file that tell the types of its columns.
_CSV_BLOCK = 1 << 24
#: How pyarrow speaks of a value of another type.
_OTHER_TYPE = re.compile(r"In CSV column #(\d+): CSV conversion error")


def read_table(path: Path, *, target: str, columns: Sequence[str] = (), drop: Sequence[str] = (),
               is_regression: bool = False) -> Content:
    """A table with a sample a row: `.csv`, `.csv.gz` (first line: names) or `.parquet`.

    `target` is the column of labels or targets: whole numbers stay, text and truth values are numbered in sorted order,
    other numbers are regression targets. `columns` are kept beside the samples, such as a user's name, and numbered in
    the same way; `drop` is left out. All others are features, in the file's order: numbers as they are, truth values as
    0 and 1, and text one-hot, a feature for each of at most MOST_KINDS values in sorted order. x float32[n, features].

    Raises DataError for names that do not exist, missing and infinite values and empty text (naming column and row, of
    which the first is 1), columns of other types, and a target that is text if `is_regression`.
    """
    pyarrow = _pyarrow(path)
    if not path.is_file():
        raise DataError(f"{path.absolute()} {'is a folder' if path.is_dir() else 'does not exist'}; expected a table")
    with _arrow_damage(path):
        schema = pyarrow.parquet.read_schema(path) if _is_parquet(path) else _csv_schema(path)
        names = schema.names
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
    wanted = [target, *dict.fromkeys(columns), *features]
    found: dict[str, np.ndarray] = {}
    for table in _parquet(path, wanted) if _is_parquet(path) else _csv(path, wanted, schema, features):
        if not table.num_rows:
            raise DataError(f"{path} has no rows")
        for name in table.column_names:
            values = _values(table, name, path)
            found[name] = _features(values, name, path) if name in features else values
        del table, values
        pyarrow.default_memory_pool().release_unused()
    x = np.concatenate([found.pop(name) for name in features], axis=1)
    y = found[target]
    if is_regression and y.dtype.kind == "U":
        raise DataError(f"{path}: the target {target!r} is text, such as {str(y[0])!r}; expected numbers, as task is regression: "
                        f"write them without separators and units, or leave out task")
    return Content(Samples(x, y if y.dtype.kind in "iuf" else _numbered(y), {name: _numbered(found[name]) for name in columns}))


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow, which is not installed: pip install 'federation-hpc[tabular]'") from error
    return pyarrow


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


@contextmanager
def _arrow_damage(path: Path) -> Iterator[None]:
    pyarrow = _pyarrow(path)
    with damage(path, "table"):
        try:
            yield
        except pyarrow.ArrowException as error:
            raise ValueError(error) from error


def _groups(names: list[str], num_rows: int) -> Iterator[list[str]]:
    step = max(_GROUP // max(8 * num_rows, 1), 1)
    for start in range(0, len(names), step):
        yield names[start : start + step]


def _parquet(path: Path, wanted: list[str]) -> Iterator[Any]:
    """The wanted columns, a few in each table."""
    pyarrow = _pyarrow(path)
    with _arrow_damage(path):
        file = pyarrow.parquet.ParquetFile(path)
    with file:
        for names in _groups(wanted, file.metadata.num_rows):
            with _arrow_damage(path):
                table = file.read(columns=names).select(names)
            yield table


def _csv_schema(path: Path) -> Any:
    """Names and types, as the beginning of the file has them."""
    pyarrow = _pyarrow(path)
    with pyarrow.csv.open_csv(path, pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK)) as reader:
        return reader.schema


def _csv(path: Path, wanted: list[str], schema: Any, features: list[str]) -> Iterator[Any]:
    """The wanted columns, a few in each table, features that are numbers as float32.

    With types that are known beforehand pyarrow need not keep the text of the whole file. Where a later value is of
    another type than those at the beginning, whole numbers become real ones, and what is no number becomes text.
    """
    pyarrow = _pyarrow(path)
    types = dict(zip(schema.names, schema.types, strict=True))
    for name in features:
        if pyarrow.types.is_integer(types[name]) or pyarrow.types.is_floating(types[name]):
            types[name] = pyarrow.float32()
    while True:
        options = pyarrow.csv.ConvertOptions(include_columns=wanted, column_types={name: types[name] for name in wanted})
        with _arrow_damage(path):
            try:
                table = pyarrow.csv.read_csv(path, convert_options=options)
                break
            except pyarrow.ArrowInvalid as error:
                other = _OTHER_TYPE.match(str(error))
                changed = schema.names[int(other[1])] if other else None
                if changed is None or types[changed] == pyarrow.string():
                    raise
                is_whole = pyarrow.types.is_integer(types[changed])
                types[changed] = pyarrow.float64() if is_whole else pyarrow.string()
    for names in _groups(wanted, table.num_rows):
        group, table = table.select(names), table.drop_columns(names)
        yield group


def _values(table: Any, name: str, path: Path) -> np.ndarray:
    """The column as numbers, truth values or text; all there, and finite."""
    import pyarrow.types as types

    column = table.column(name)
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


def _features(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """float32[n, features of this column]."""
    if values.dtype.kind != "U":
        return values.astype(np.float32, copy=False).reshape(-1, 1)
    kinds = np.unique(values)
    if len(kinds) > MOST_KINDS:
        raise DataError(f"{path}: the column {name!r} is text with {len(kinds)} different values, more than the {MOST_KINDS} "
                        f"that become features: leave it out with drop, or keep it as one of columns")
    one_hot = np.empty((len(values), len(kinds)), np.float32)
    for code, kind in enumerate(kinds):
        one_hot[:, code] = values == kind
    return one_hot


def _numbered(values: np.ndarray) -> np.ndarray:
    """Whole numbers as they are, others by their sorted order."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
