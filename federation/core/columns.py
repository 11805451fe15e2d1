"""Columns of the matrix whose rows are updates: where they lie, and what robust rules make of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from federation import columnwise
from federation.core.weights import Layout, Weights
from federation.kernels import BFLOAT16


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
        end = layout.offsets[index + 1] if index + 1 < len(layout) else layout.nbytes
        dtype = layout.dtypes[index]
        if index == previous + 1 and runs[-1].dtype == dtype:
            runs[-1] = replace(runs[-1], last=end)
        elif end > layout.offsets[index]:
            runs.append(Columns(dtype, layout.offsets[index], end))
        previous = index
    return runs


def column_statistic(kernel: Kernel, block: np.ndarray) -> np.ndarray:
    """What `kernel` makes of each column of `block`, [K, n] in C order, in its dtype: [n].

    Other dtypes than float32 and float64 are worked on as float64 and rounded once.
    """
    if block.dtype in (np.float32, np.float64):
        return _native(kernel, block)
    found = _native(kernel, block.astype(np.float64))
    if block.dtype.kind == "b":
        return found > 0.5
    if block.dtype.kind in "iu":
        # Rounding can leave the range of 64-bit integers at their very end, where float64 has no neighbours.
        limits = np.iinfo(block.dtype)
        return np.clip(np.rint(found), float(limits.min), np.nextafter(float(limits.max), 0)).astype(block.dtype)
    assert block.dtype == np.float16 or block.dtype == BFLOAT16
    return found.astype(block.dtype)


def _native(kernel: Kernel, block: np.ndarray) -> np.ndarray:
    out = np.empty(block.shape[1], block.dtype)
    if kernel.name == "median":
        columnwise.median(block, out)
    elif kernel.name == "trimmed_mean":
        columnwise.trimmed_mean(block, out, kernel.amount)
    else:
        columnwise.mean_around_median(block, out, kernel.amount)
    return out
