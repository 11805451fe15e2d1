"""Arrays that start on a multiple of 64 bytes.

Vector code treats the first and last elements of an array apart, according to where the array lies, so that sums over
the same numbers may differ in the last bit from one allocation to the next. Samples always lie the same way.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from federation.core.weights import ALIGNMENT, aligned_empty


def aligned_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """A new C-ordered array of arbitrary values."""
    dtype = np.dtype(dtype)
    return aligned_empty(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def lies_right(array: np.ndarray, dtype: npt.DTypeLike) -> bool:
    """Whether `array` is of `dtype`, C-ordered and aligned."""
    return bool(array.dtype == dtype and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0)


def aligned(array: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    """`array` as `dtype`, C-ordered and aligned: itself where it is so already, else a copy."""
    dtype = np.dtype(dtype)
    if lies_right(array, dtype):
        return array
    copy = aligned_array(array.shape, dtype)
    np.copyto(copy, array, casting="unsafe")
    return copy


def aligned_rows(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A copy of the rows `indices` (all within range) of `array`."""
    out = aligned_array((len(indices), *array.shape[1:]), array.dtype)
    np.take(array, indices, axis=0, out=out, mode="clip")  # any other mode goes through a second copy
    return out
