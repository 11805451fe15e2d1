"""Columns of the matrix whose rows are updates: where they lie, and what robust rules make of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from federation import columnwise
from federation.core.weights import Layout, Weights, rounded


class Kernel(NamedTuple):
    """What to make of a column: its median, its mean without the `amount` smallest and the `amount` largest values, or
    the mean of the `amount` values closest to its median. See federation.columnwise for ties and infinities."""

    name: Literal["median", "trimmed_mean", "mean_around_median"]
    amount: int = 0


@dataclass(frozen=True)
class Columns:
    """A range of the flat buffer that holds elements of one dtype; first and last are in bytes."""

    dtype: np.dtype
    first: int
    last: int

    def of(self, weights: Weights) -> np.ndarray:
        """The elements of `weights` in these columns, in their memory."""
        return weights.buffer[self.first : self.last].view(self.dtype)

    def __len__(self) -> int:
        return (self.last - self.first) // self.dtype.itemsize

    def blocks(self, width: int) -> Iterator[Columns]:
        """These columns, `width` at a time, the last fewer."""
        step = width * self.dtype.itemsize
        for first in range(self.first, self.last, step):
            yield Columns(self.dtype, first, min(first + step, self.last))


def column_runs(layout: Layout, parameters_only: bool = False) -> list[Columns]:
    """The whole buffer as few ranges of one dtype each: arrays of one dtype that follow each other, padding included.

    With `parameters_only`, only those of `layout.parameters`. Padding is zero in all rows, and harms nothing.
    """
    chosen = layout.parameters if parameters_only else range(len(layout))
    runs: list[Columns] = []
    previous = -2
    for index in chosen:
        begin, dtype = layout.offsets[index], layout.dtypes[index]
        end = layout.offsets[index + 1] if index + 1 < len(layout) else layout.nbytes
        # The array before may be empty, and then no part of the last run.
        if index == previous + 1 and runs and runs[-1].dtype == dtype and runs[-1].last == begin:
            runs[-1] = replace(runs[-1], last=end)
        elif end > begin:
            runs.append(Columns(dtype, begin, end))
        previous = index
    return runs


def column_statistic(kernel: Kernel, block: np.ndarray) -> np.ndarray:
    """What `kernel` makes of each column of `block`, [K, n] in C order, in its dtype: [n].

    Other dtypes than float32 and float64 are worked on as float64 and rounded once, integers to nearest even.
    """
    if block.dtype in (np.float32, np.float64):
        return _native(kernel, block)
    if block.dtype.kind in "iu":
        return _integer_statistic(kernel, block)
    found = _native(kernel, block.astype(np.float64))
    return rounded(found, block.dtype)


def _integer_statistic(kernel: Kernel, block: np.ndarray) -> np.ndarray:
    """Of each column's heights above its smallest value, which are exact as float64 where they are below 2**53."""
    lowest = block.min(axis=0)
    lowest -= lowest & 1  # an even number, so that halves are rounded as they would be without it
    # The difference of two signed integers may need the unsigned type; wrapping around makes it right.
    unsigned = np.dtype(f"u{block.dtype.itemsize}")
    heights = block.view(unsigned) - lowest.view(unsigned)
    found = np.rint(_native(kernel, heights.astype(np.float64)))
    # float64 may have rounded the greatest heights up, out of the range of integers.
    found = np.minimum(found, np.nextafter(2.0 ** (8 * block.dtype.itemsize), 0)).astype(unsigned)
    return (lowest.view(unsigned) + np.minimum(found, heights.max(axis=0))).view(block.dtype)


def _native(kernel: Kernel, block: np.ndarray) -> np.ndarray:
    out = np.empty(block.shape[1], block.dtype)
    if kernel.name == "median":
        columnwise.median(block, out)
    elif kernel.name == "trimmed_mean":
        columnwise.trimmed_mean(block, out, kernel.amount)
    else:
        columnwise.mean_around_median(block, out, kernel.amount)
    return out
