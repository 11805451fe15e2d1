"""From what a reader returns to arrays that are checked, converted, and fit to be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from federation.data.dataset import SMALL, Dataset, as_array, check_column, check_samples, is_count
from federation.data.formats.raw import Content, Samples
from federation.data.rows import Rows, Store
from federation.errors import DataError

#: Labels from here on, more than there are samples, are dates, prices or names of things, unless num_classes says otherwise.
MOST_CLASSES = 1 << 20


@dataclass(frozen=True, eq=False)
class Checked:
    """Arrays by name (x_train, y_train, x_test, y_test, columns.NAME, test_columns.NAME) and what else is known.

    x is float32 or of a type of SMALL, y is int64 or float32, columns are int64. Without a test set of its own, a data
    set has no array whose name contains "test".
    """

    arrays: Mapping[str, np.ndarray]
    num_classes: int | None
    scale: float

    def dataset(self, name: str, is_stored: bool) -> Dataset:
        """The data set, all without a test set for training. Stored arrays, and SMALL ones, are taken as they are."""
        arrays = self.arrays

        def store(x: np.ndarray) -> Store:
            return Rows(x) if is_stored or x.dtype in SMALL else x

        x, y = store(arrays["x_train"]), arrays["y_train"]
        x_test = arrays.get("x_test", arrays["x_train"][:0])
        y_test = arrays.get("y_test", y[:0])
        return Dataset(x, y, store(x_test), y_test, self.num_classes, name, columns=self._columns("columns."),
                       test_columns=self._columns("test_columns."), scale=self.scale)

    @property
    def has_test(self) -> bool:
        return "x_test" in self.arrays

    def _columns(self, prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


def check(content: Content, name: str, *, task: str | None = None, num_classes: int | None = None) -> Checked:
    """Check `content` of the data set `name`, which messages begin with.

    `task`, "classification" or "regression", and `num_classes` are what the user says of it. Else integers are labels
    of as many classes as the largest says. Raises DataError.
    """
    if task not in (None, "classification", "regression"):
        raise DataError(f"{name}: task: {task!r} is neither classification nor regression")
    if num_classes is not None and (task == "regression" or not is_count(num_classes)):
        raise DataError(f"{name}: num_classes: {num_classes!r} is not a whole number of at least 1, for classification")
    num_classes = num_classes if num_classes is not None else content.num_classes
    parts = {"train": content.train} if content.test is None else {"train": content.train, "test": content.test}
    names = {"train": ("x", "y")} if content.test is None else {part: (f"x_{part}", f"y_{part}") for part in parts}
    labels = {part: f"{name}: {names[part][1]}" for part in parts}
    is_regression = task == "regression" or (task is None and num_classes is None
                                             and _are_targets(content.train.y, labels["train"]))
    arrays: dict[str, np.ndarray] = {}
    for part, samples in parts.items():
        x_name = f"{name}: {names[part][0]}"
        x, y = check_samples(samples.x, samples.y, x_name, labels[part], is_regression, keep_small=True)
        if part == "train" and len(x) == 0:
            raise DataError(f"{x_name} holds no samples; expected at least one")
        arrays |= {f"x_{part}": x, f"y_{part}": y, **_columns(samples, part, len(y), name)}
    classes = None if is_regression else _num_classes({labels[part]: arrays[f"y_{part}"] for part in parts}, num_classes)
    if content.test is not None and arrays["x_test"].dtype != arrays["x_train"].dtype:
        arrays |= {key: arrays[key].astype(np.float32, copy=False) for key in ("x_train", "x_test")}
    return Checked(arrays, classes, content.scale)


def _num_classes(labels: Mapping[str, np.ndarray], num_classes: int | None) -> int:
    worst, highest = max(((name, int(y.max())) for name, y in labels.items() if len(y)), key=lambda found: found[1])
    if num_classes is not None and highest >= num_classes:
        raise DataError(f"{worst} holds label {highest}; expected 0 to {num_classes - 1}, as num_classes is {num_classes}")
    if num_classes is None and highest >= max(MOST_CLASSES, sum(map(len, labels.values()))):
        raise DataError(f"{worst} holds label {highest}, which would make {highest + 1} classes of "
                        f"{sum(map(len, labels.values()))} samples; expected labels 0, 1, 2, ...: number them, or set task: "
                        f"regression, or num_classes if so many are meant (in dataset_config)")
    return highest + 1 if num_classes is None else num_classes


def _columns(samples: Samples, part: str, count: int, name: str) -> dict[str, np.ndarray]:
    prefix = "columns" if part == "train" else "test_columns"
    found = {}
    for key, values in samples.columns.items():
        column = as_array(values, f"{name}: the column {key!r}")
        numbers = column.astype(np.int64) if column.dtype.kind == "b" else column
        found[f"{prefix}.{key}"] = check_column(numbers, count, f"{name}: the column {key!r}")
    return found


def _are_targets(y: object, name: str) -> bool:
    """Whether `y` is for regression, where nobody has said so; DataError where it looks like labels in disguise."""
    values = as_array(y, name)
    if values.dtype.kind != "f":
        return False
    if values.ndim == 1 and values.size and (values == np.floor(values)).all():
        raise DataError(f"{name} is {values.dtype} and holds whole numbers only; expected integers for class labels "
                        f"(y.astype('int64')), or task: regression (in dataset_config) if they are targets")
    return True
