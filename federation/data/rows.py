"""Rows of an array that lies elsewhere, in a memory-mapped file above all. Nothing is copied until it is asked for."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from federation.data.aligned import aligned_rows


class Rows:
    """The rows `indices` (int64, within range; None: all) of `array`, [n, ...], in that order. Both are borrowed.

    A split of a stored data set is made of these, so that the processes of a machine go on sharing the file's pages.
    """

    def __init__(self, array: np.ndarray, indices: np.ndarray | None = None) -> None:
        self._array = array
        self._indices = indices

    def __len__(self) -> int:
        return len(self._array) if self._indices is None else len(self._indices)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """A new aligned copy of these rows (int64, within range); reads no others."""
        return aligned_rows(self._array, indices if self._indices is None else self._indices[indices])

    def chosen(self, indices: np.ndarray) -> Rows:
        """A part of them, without a copy."""
        return Rows(self._array, indices if self._indices is None else self._indices[indices])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All rows, as a new array."""
        if copy is False:
            raise ValueError("rows cannot be had as an array without a copy")
        return self.take(np.arange(len(self))).astype(dtype or self.dtype, copy=False)


#: Where samples lie: in memory, or in a file.
Store: TypeAlias = np.ndarray | Rows


def take(store: Store, indices: np.ndarray) -> np.ndarray:
    """A new aligned copy of the rows `indices` (all within range) of `store`."""
    return store.take(indices) if isinstance(store, Rows) else aligned_rows(store, indices)


def chosen(store: Store, indices: np.ndarray) -> Store:
    """The rows `indices` (all within range) of `store`: a copy where they are in memory."""
    return store.chosen(indices) if isinstance(store, Rows) else aligned_rows(store, indices)
