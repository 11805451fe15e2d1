"""The samples of one client, as its learner sees them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from federation.data.aligned import aligned, aligned_rows
from federation.data.dataset import is_count
from federation.data.draws import shuffled
from federation.data.sources.synthetic import synthetic, synthetic_regression
from federation.errors import DataError


class ClientData:
    """Samples to train on (x, y), and to evaluate on: test samples and validation samples, none unless given.

    `x`: float32[n, ...]; `y`: int64[n] class labels, or float32[n] regression targets; arrays of other real dtypes are
    converted. All are C-ordered and 64-byte aligned; an array that was given so is kept, others are copied.
    `num_classes` is that of the whole task, of which this client may have seen only a part; None for regression.
    `rows` (int64, all within range): the samples to train on are these rows of `x` and `y`, which are read only; they are
    copied when somebody looks at `x`.

    Raises DataError for shapes that do not fit.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, x_test: np.ndarray | None = None,
                 y_test: np.ndarray | None = None, num_classes: int | None = None,
                 x_validation: np.ndarray | None = None, y_validation: np.ndarray | None = None, *,
                 rows: np.ndarray | None = None) -> None:
        if num_classes is not None and not is_count(num_classes):
            raise DataError(f"num_classes: {num_classes!r} is not a whole number of at least 1, or None for regression")
        x, y = _pair(x, y, "x", "y")
        self._stored = x, rows
        self.y = y if rows is None else aligned_rows(y, rows)
        self.x_test, self.y_test = self._evaluation(x_test, y_test, "test")
        self.x_validation, self.y_validation = self._evaluation(x_validation, y_validation, "validation")
        self.num_classes = num_classes

    @property
    def x(self) -> np.ndarray:
        """The training samples."""
        array, rows = self._stored
        if rows is not None:
            array = aligned_rows(array, rows)
            self._stored = array, None
        return array

    @x.setter
    def x(self, array: np.ndarray) -> None:
        self._stored = array, None

    @property
    def stored(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Where x lies: an array, which is not to be written, and which of its rows it is (None: all)."""
        return self._stored

    def _evaluation(self, x: np.ndarray | None, y: np.ndarray | None, part: str) -> tuple[np.ndarray, np.ndarray]:
        if x is None and y is None:
            return np.empty((0, *self.sample_shape), np.float32), np.empty(0, self.y.dtype)
        if x is None or y is None:
            raise DataError(f"x_{part} and y_{part} go together: give both or neither")
        x, y = _pair(x, y, f"x_{part}", f"y_{part}")
        if x.shape[1:] != self.sample_shape:
            raise DataError(f"a sample of x_{part} has the shape {list(x.shape[1:])}; expected "
                            f"{list(self.sample_shape)}, as in x")
        return x, y

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """That of one sample of x."""
        return self._stored[0].shape[1:]

    def get_num_samples(self) -> int:
        """Training samples."""
        return len(self.y)

    def get_num_test_samples(self) -> int:
        """Test samples: what evaluation metrics of this client are weighted by."""
        return len(self.y_test)

    def get_num_validation_samples(self) -> int:
        return len(self.y_validation)

    def get_train_loader(self, batch_size: int = 32, shuffle: bool = True,
                         rng: np.random.Generator | None = None) -> Batches:
        """Batches of the training samples, shuffled by `rng` if it is given and `shuffle` holds.

        Without `rng` they come in the order of `x`, which is random in a partition: nothing is drawn from a global
        generator. `self.random("shuffle")` of a learner is one that repeats in every mode. No sample is dropped.
        """
        order = shuffled(rng, len(self.y)) if shuffle and rng is not None else None
        return Batches(self.x, self.y, batch_size, order)

    def get_test_loader(self, batch_size: int = 256) -> Batches:
        """Batches of the test samples, in order; none where the client has none."""
        return Batches(self.x_test, self.y_test, batch_size)

    def get_validation_loader(self, batch_size: int = 256) -> Batches:
        """Batches of the validation samples, in order; none where the client has none."""
        return Batches(self.x_validation, self.y_validation, batch_size)

    def measured_on_validation(self) -> ClientData:
        """The same client with its validation samples in the place of its test samples. Arrays are shared."""
        other = copy.copy(self)
        other.x_test, other.y_test = self.x_validation, self.y_validation
        other.x_validation, other.y_validation = self._evaluation(None, None, "validation")
        return other


class Batches:
    """Iterates over (x, y) in batches of `batch_size`, the last one smaller, as often as wanted.

    Batches are aligned like ClientData: copies that belong to the caller, or views where they lie right already.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, batch_size: int, order: np.ndarray | None = None) -> None:
        if not is_count(batch_size):
            raise DataError(f"batch_size: {batch_size!r} is not a whole number of at least 1")
        self._x, self._y = x, y
        self._batch_size = int(batch_size)
        self._order = order

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self._y) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self._y), self._batch_size):
            batch = slice(start, start + self._batch_size)
            if self._order is None:
                yield aligned(self._x[batch], self._x.dtype), aligned(self._y[batch], self._y.dtype)
            else:
                chosen = self._order[batch]
                yield aligned_rows(self._x, chosen), aligned_rows(self._y, chosen)


def builtin_sample(input_shape: tuple[int, ...], num_classes: int | None, n: int = 64) -> ClientData:
    """A small sample shaped like a model, always the same: `n` training and n // 4 evaluation samples of `synthetic`
    (of `synthetic_regression` where `num_classes` is None)."""
    count = n + n // 4
    num_features = int(np.prod(input_shape, dtype=np.int64))
    if num_classes is None:
        x, y, _ = synthetic_regression(0, num_samples=count, num_features=num_features)
    else:
        x, y, _ = synthetic(0, num_samples=count, num_features=num_features, num_classes=num_classes)
    x = x.reshape(count, *input_shape)
    return ClientData(x[:n], y[:n], x[n:], y[n:], num_classes)


def _pair(x: Any, y: Any, x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{x_name} has the shape {list(x.shape)} and {y_name} {list(y.shape)}; "
                        f"expected [n, ...features] and [n]")
    for name, array in ((x_name, x), (y_name, y)):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} is an array of {array.dtype}; expected real numbers")
    return aligned(x, np.float32), aligned(y, np.float32 if y.dtype.kind == "f" else np.int64)
