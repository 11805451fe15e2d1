"""The native loops over columns, behind checked doors: what robust rules make of the values that clients give a parameter.

`rows` is [K, n], float32 or float64, in C order: K >= 1 clients, n parameters. Results go into `out`, [n] of the same
dtype, which overlaps nothing. They depend on the values of a column alone, not on their order, and are the same bits on
every CPU and in every variant (see federation.kernels). NaN counts as larger than everything, +infinity included; a
result that takes one in is NaN. Infinities are values like others, and their sums those of IEEE 754. Sums are float64, in
sorted order, and rounded once. The GIL is released while columns are worked on.

TypeError and ValueError as in federation.kernels, before a single element is touched.
"""

from __future__ import annotations

import numpy as np

from federation import _native

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def median(rows: np.ndarray, out: np.ndarray) -> None:
    """The middle value of each column; of an even number, the mean of the two in the middle."""
    _check(rows, out)
    (_native.median_float32 if rows.dtype == np.float32 else _native.median_float64)(rows, out)


def trimmed_mean(rows: np.ndarray, out: np.ndarray, trim: int) -> None:
    """The mean of each column without its `trim` smallest and its `trim` largest values, which leave at least one."""
    _check(rows, out)
    if not 0 <= 2 * trim < len(rows):
        raise ValueError(f"trim must be at least 0 and leave one of {len(rows)} values, not {trim}")
    (_native.trimmed_mean_float32 if rows.dtype == np.float32 else _native.trimmed_mean_float64)(rows, out, trim)


def mean_around_median(rows: np.ndarray, out: np.ndarray, count: int) -> None:
    """The mean of the `count` values of each column that are closest to its median.

    They are neighbours in the sorted column: taken from the median outwards, of two as close the smaller.
    """
    _check(rows, out)
    if not 1 <= count <= len(rows):
        raise ValueError(f"count must be from 1 to {len(rows)}, the number of rows, not {count}")
    kernel = _native.mean_around_median_float32 if rows.dtype == np.float32 else _native.mean_around_median_float64
    kernel(rows, out, count)


def _check(rows: np.ndarray, out: np.ndarray) -> None:
    for name, array in (("rows", rows), ("out", out)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
        if array.dtype not in _DTYPES:
            raise TypeError(f"{name} has the dtype {array.dtype}; allowed are float32 and float64, in native byte order")
        if not array.flags.c_contiguous:
            raise TypeError(f"{name} is not C-contiguous: use np.ascontiguousarray")
    if not out.flags.writeable:
        raise TypeError("out is read-only, but it is to be written")
    if rows.dtype != out.dtype:
        raise TypeError(f"rows has the dtype {rows.dtype}, but out has {out.dtype}")
    if rows.ndim != 2 or len(rows) < 1 or out.shape != rows.shape[1:]:
        raise ValueError(f"rows must be [K, n] with K >= 1 and out [n], not {list(rows.shape)} and {list(out.shape)}")
    if np.may_share_memory(rows, out):
        raise ValueError("out overlaps rows in memory: they must be apart")
