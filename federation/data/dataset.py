"""A data set, checked once: in memory, or as rows of stored arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from federation.data.aligned import aligned, aligned_rows
from federation.data.draws import shuffled, shuffled_by
from federation.data.partition import classes_of
from federation.data.rows import Rows, Store, chosen
from federation.data.sampling import exact_share
from federation.errors import DataError

#: The parts of a data set.
PARTS = ("train", "test", "validation")
#: Types of samples that are stored as they are, and become float32 when a client's turn comes.
SMALL = (np.dtype(np.uint8), np.dtype(np.uint16))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, test and validation samples.

    `x_...`: float32[n, ...], finite; or Rows of a stored array (float32, or a type of SMALL), which was checked when it
    was stored. A client sees x * `scale` as float32. `y_...`: int64[n], labels 0 .. num_classes-1, or float32[n] regression
    targets where `num_classes` is None. Arrays of other real dtypes are converted. All are C-ordered, 64-byte aligned
    and read-only; an array that was given so is kept, others are copied. There is at least one training sample; the
    test set may be empty, and so is the validation set unless it is given.

    `columns`: further facts of the training samples by name, int64[n], such as "user"; `test_columns` has the same
    facts of the test samples, in the same coding, where the data set knows them.

    Raises DataError, beginning with `name` and naming the array, for anything else.
    """

    x_train: Store
    y_train: np.ndarray
    x_test: Store
    y_test: np.ndarray
    num_classes: int | None
    name: str
    x_validation: Store | None = None
    y_validation: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    test_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_classes is not None and not is_count(self.num_classes):
            raise DataError(f"{self.name}: num_classes is {self.num_classes!r}; expected a whole number of at least 1, "
                            f"or None for regression")
        if self.x_validation is None or self.y_validation is None:
            if self.x_validation is not None or self.y_validation is not None:
                raise DataError(f"{self.name}: x_validation and y_validation go together: give both or neither")
            object.__setattr__(self, "x_validation", chosen(self.x_train, np.empty(0, np.int64)))
            object.__setattr__(self, "y_validation", np.asarray(self.y_train)[:0])
        for part in PARTS:
            self._check(part)
        if len(self.x_train) == 0:
            raise DataError(f"{self.name}: x_train holds no samples; expected at least one")
        for columns, count in (("columns", len(self.y_train)), ("test_columns", len(self.y_test))):
            object.__setattr__(self, columns, {
                key: _read_only(check_column(values, count, f"{self.name}: {columns}[{key!r}]"))
                for key, values in getattr(self, columns).items()})

    def _check(self, part: str) -> None:
        x, y = check_samples(getattr(self, f"x_{part}"), getattr(self, f"y_{part}"), f"{self.name}: x_{part}",
                             f"{self.name}: y_{part}", regression=self.num_classes is None)
        if self.num_classes is not None and len(y) and y.max() >= self.num_classes:
            raise DataError(f"{self.name}: y_{part} holds label {y.max()}; expected 0 to {self.num_classes - 1}, "
                            f"as there are {self.num_classes} classes")
        if x.shape[1:] != self.x_train.shape[1:]:
            raise DataError(f"{self.name}: a sample of x_{part} has the shape {list(x.shape[1:])}; expected "
                            f"{list(self.x_train.shape[1:])}, as in x_train")
        object.__setattr__(self, f"x_{part}", x if isinstance(x, Rows) else _read_only(x))
        object.__setattr__(self, f"y_{part}", _read_only(y))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.x_train.shape[1:]

    def samples(self, part: str) -> tuple[Store, np.ndarray]:
        """The samples of `part`, one of PARTS, and their labels or targets."""
        return getattr(self, f"x_{part}"), getattr(self, f"y_{part}")

    def set_apart(self, part: Literal["test", "validation"], fraction: float, rng: np.random.Generator) -> Dataset:
        """Make `fraction` (0 or more, below 1) of the training samples the test or validation set, drawn by `rng`.

        Their number is the exact product, rounded, and leaves at least one for training. Each class gives its share,
        and keeps one sample for training where the others can give instead. Order is kept.
        """
        exact = exact_share(fraction, f"{part}_fraction")
        if exact == 0:
            return self
        is_apart = _drawn(self.y_train, exact, self.num_classes is not None, rng)
        stay, go = np.flatnonzero(~is_apart), np.flatnonzero(is_apart)
        columns = {key: values[stay] for key, values in self.columns.items()}
        away: dict[str, Any] = {f"x_{part}": chosen(self.x_train, go), f"y_{part}": aligned_rows(self.y_train, go)}
        if part == "test":
            away["test_columns"] = {key: values[go] for key, values in self.columns.items()}
        return replace(self, x_train=chosen(self.x_train, stay), y_train=aligned_rows(self.y_train, stay),
                       columns=columns, **away)


def _drawn(y: np.ndarray, fraction: Fraction, has_classes: bool, rng: np.random.Generator) -> np.ndarray:
    """Which samples are set apart, bool[n]."""
    count = min(math.floor(fraction * len(y) + Fraction(1, 2)), max(len(y) - 1, 0))
    is_apart = np.zeros(len(y), bool)
    if count and has_classes:
        classes, codes = classes_of(y)
        order, offsets = shuffled_by(rng, codes, len(classes))
        for start, share in zip(offsets[:-1], _stratified(np.diff(offsets), count), strict=True):
            is_apart[order[start : start + share]] = True
    else:
        is_apart[shuffled(rng, len(y))[:count]] = True
    return is_apart


def _stratified(totals: np.ndarray, wanted: int) -> np.ndarray:
    """Test samples of each class, int64: its share rounded down, then one more by largest remainder, until `wanted`."""
    exact = totals * wanted
    counts: np.ndarray = exact // totals.sum()
    by_remainder = np.argsort(-(exact % totals.sum()), kind="stable")
    kept = 1  # samples of each class that stay for training
    while (missing := wanted - int(counts.sum())) > 0:
        open_classes = by_remainder[(counts < totals - kept)[by_remainder]]
        counts[open_classes[:missing]] += 1
        if len(open_classes) == 0:
            kept = 0
    return counts


def check_samples(x: object, y: object, x_name: str, y_name: str, regression: bool, *,
                  keep_small: bool = False) -> tuple[Any, np.ndarray]:
    """`x` as float32[n, ...] and `y` as int64[n] (or float32[n] if `regression`), C-ordered and aligned.

    Rows stay Rows, and with `keep_small` types of SMALL stay as they are. Raises DataError, beginning with the array's
    name and saying what was expected.
    """
    inputs, targets = x if isinstance(x, Rows) else _real(x, x_name), _real(y, y_name)
    if len(inputs.shape) < 2:
        raise DataError(f"{x_name} has the shape {list(inputs.shape)}; expected [samples, ...features]: "
                        f"reshape(-1, 1) makes one feature of it")
    if 0 in inputs.shape[1:]:
        raise DataError(f"{x_name} has the shape {list(inputs.shape)}; expected at least one feature")
    if targets.ndim != 1:
        raise DataError(f"{y_name} has the shape {list(targets.shape)}; expected [samples], one number each")
    if len(inputs) != len(targets):
        raise DataError(f"{x_name} holds {len(inputs)} samples, but {y_name} {len(targets)}; expected as many")
    if isinstance(inputs, Rows):
        samples: Any = inputs
    elif keep_small and inputs.dtype in SMALL:
        samples = aligned(inputs, inputs.dtype)
    else:
        samples = _finite(inputs, x_name)
    if regression:
        return samples, _finite(targets, y_name)
    if targets.dtype.kind == "f":
        raise DataError(f"{y_name} is {targets.dtype}; expected integers, as class labels are: convert them "
                        f"(y.astype('int64')), or set task: regression")
    if len(targets) and (targets.min() < 0 or targets.max() >= 2**62):
        raise DataError(f"{y_name} holds {targets.min() if targets.min() < 0 else targets.max()}; expected labels "
                        f"0, 1, 2, ...")
    return samples, aligned(targets, np.int64)


def is_count(value: object) -> bool:
    """Whether `value` is a whole number of at least 1 (True is not)."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def as_array(value: object, name: str) -> np.ndarray:
    """`value` as an array; DataError, beginning with `name`, where NumPy can make none of it, or not of all of it."""
    if np.ma.is_masked(value):
        raise DataError(f"{name} is a masked array, of which some values are masked; fill them (with .filled(0), say), or leave "
                        "those samples out")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, a tensor of a GPU or with a gradient
        raise DataError(f"{name} is {type(value).__name__} that NumPy makes no array of ({error}); expected real numbers, "
                        f"with samples of one shape") from error


def _real(value: object, name: str) -> np.ndarray:
    array = as_array(value, name)
    if array.dtype.kind in "biuf":
        return array
    try:  # bfloat16 and its relatives call themselves void, and are numbers all the same
        plain_void = array.dtype.names is not None or not np.can_cast(array.dtype, np.float32, "safe")
    except TypeError:
        plain_void = True
    if plain_void:
        raise DataError(f"{name} is an array of {array.dtype}; expected real numbers")
    return array.astype(np.float32)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        values = aligned(array, np.float32)
    flat = values.reshape(-1)
    for start in range(0, flat.size, 1 << 22):  # in pieces: isfinite makes an array of its own
        good = np.isfinite(flat[start : start + (1 << 22)])
        if not good.all():
            where = start + int(good.argmin())
            index = [int(i) for i in np.unravel_index(where, values.shape)]
            raise DataError(f"{name} holds {array[tuple(index)]} at {index}; expected finite numbers, "
                            f"within the range of float32")
    return values


def check_column(values: object, count: int, name: str) -> np.ndarray:
    """`values` as int64[count]; DataError, beginning with `name`, unless they are an integer for each of `count` samples."""
    column = as_array(values, name)
    if column.dtype.kind not in "iu" or column.shape != (count,):
        raise DataError(f"{name} is {column.dtype}{list(column.shape)}; expected an integer for each of {count} samples")
    return column.astype(np.int64, copy=False)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
