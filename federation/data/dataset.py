"""A data set in memory, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from federation.data.aligned import aligned, aligned_rows
from federation.data.draws import shuffled, shuffled_by
from federation.data.partition import classes_of
from federation.data.sampling import exact_fraction
from federation.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples.

    `x_train`, `x_test`: float32[n, ...], finite. `y_train`, `y_test`: int64[n], labels 0 .. num_classes-1, or
    float32[n] regression targets where `num_classes` is None. Arrays of other real dtypes are converted. All are
    C-ordered, 64-byte aligned and read-only; an array that was given so is kept, others are copied.
    There is at least one training sample; the test set may be empty.

    Raises DataError, beginning with `name` and naming the array, for anything else.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int | None
    name: str

    def __post_init__(self) -> None:
        if self.num_classes is not None and not is_count(self.num_classes):
            raise DataError(f"{self.name}: num_classes is {self.num_classes!r}; expected a whole number of at least 1, "
                            f"or None for regression")
        for part in ("train", "test"):
            x, y = check_samples(getattr(self, f"x_{part}"), getattr(self, f"y_{part}"), f"{self.name}: x_{part}",
                                 f"{self.name}: y_{part}", regression=self.num_classes is None)
            if self.num_classes is not None and len(y) and y.max() >= self.num_classes:
                raise DataError(f"{self.name}: y_{part} holds label {y.max()}; expected 0 to {self.num_classes - 1}, "
                                f"as there are {self.num_classes} classes")
            object.__setattr__(self, f"x_{part}", _read_only(x))
            object.__setattr__(self, f"y_{part}", _read_only(y))
        if len(self.x_train) == 0:
            raise DataError(f"{self.name}: x_train holds no samples; expected at least one")
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(f"{self.name}: a sample of x_test has the shape {list(self.x_test.shape[1:])}; expected "
                            f"{list(self.x_train.shape[1:])}, as in x_train")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.x_train.shape[1:]


def split(x: np.ndarray, y: np.ndarray, *, num_classes: int | None, name: str, test_fraction: float,
          rng: np.random.Generator) -> Dataset:
    """Set `test_fraction` (0 or more, below 1) of the samples apart as test set, drawn by `rng`, order kept.

    Their number is the exact product, rounded, and leaves at least one for training. Each class gives its share, and
    keeps one sample for training where the others can give instead. `x` and `y` must have passed `check_samples`.
    """
    fraction = exact_fraction(test_fraction)
    if fraction is None or not 0 <= fraction < 1:
        raise DataError(f"test_fraction: {test_fraction!r} is not a number of at least 0 and below 1")
    num_test = min(math.floor(fraction * len(y) + Fraction(1, 2)), max(len(y) - 1, 0))
    is_test = np.zeros(len(y), bool)
    if num_test and num_classes is not None:
        classes, codes = classes_of(y)
        order, offsets = shuffled_by(rng, codes, len(classes))
        for start, count in zip(offsets[:-1], _stratified(np.diff(offsets), num_test), strict=True):
            is_test[order[start : start + count]] = True
    else:
        is_test[shuffled(rng, len(y))[:num_test]] = True
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return Dataset(aligned_rows(x, train), aligned_rows(y, train), aligned_rows(x, test), aligned_rows(y, test),
                   num_classes, name)


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


def check_samples(x: object, y: object, x_name: str, y_name: str, regression: bool) -> tuple[np.ndarray, np.ndarray]:
    """`x` as float32[n, ...] and `y` as int64[n] (or float32[n] if `regression`), C-ordered and aligned.

    Raises DataError, beginning with the array's name and saying what was expected.
    """
    inputs, targets = _real(x, x_name), _real(y, y_name)
    if inputs.ndim < 2:
        raise DataError(f"{x_name} has the shape {list(inputs.shape)}; expected [samples, ...features]: "
                        f"reshape(-1, 1) makes one feature of it")
    if 0 in inputs.shape[1:]:
        raise DataError(f"{x_name} has the shape {list(inputs.shape)}; expected at least one feature")
    if targets.ndim != 1:
        raise DataError(f"{y_name} has the shape {list(targets.shape)}; expected [samples], one number each")
    if len(inputs) != len(targets):
        raise DataError(f"{x_name} holds {len(inputs)} samples, but {y_name} {len(targets)}; expected as many")
    if regression:
        return _finite(inputs, x_name), _finite(targets, y_name)
    if targets.dtype.kind == "f":
        raise DataError(f"{y_name} is {targets.dtype}; expected integers, as class labels are: convert them "
                        f"(y.astype('int64')), or set task: regression")
    if len(targets) and (targets.min() < 0 or targets.max() >= 2**62):
        raise DataError(f"{y_name} holds {targets.min() if targets.min() < 0 else targets.max()}; expected labels "
                        f"0, 1, 2, ...")
    return _finite(inputs, x_name), aligned(targets, np.int64)


def is_count(value: object) -> bool:
    """Whether `value` is a whole number of at least 1 (True is not)."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _real(value: object, name: str) -> np.ndarray:
    array = np.asarray(value)
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


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
