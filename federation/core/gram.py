"""The inner products of updates, the same bits however the columns are shared among ranks."""

from __future__ import annotations

import math

import numpy as np

from federation import kernels
from federation.errors import UpdateError


class GramSum:
    """The sum of the Gram matrices of blocks of columns.

    The product of one block is float64 arithmetic, of a shape and order that depend on nothing else; the sum over blocks
    is one wide integer for every pair of rows, in units of 2**-300, so that it can be split over ranks in any way.

    CHUNK: columns of a block. All blocks have this width but the last of a run of columns; a rank that works on a part
    of a run begins at a multiple of it.
    limbs: int64[16, K * (K + 1) // 2], to be reduced over ranks by summation: the upper triangle, row by row.
    """

    CHUNK = 4096
    _UNIT = 300

    def __init__(self, num_rows: int) -> None:
        self._pairs = np.triu_indices(num_rows)
        self._num_rows = num_rows
        self.limbs = np.zeros((kernels.MAX_LIMBS, len(self._pairs[0])), np.int64)

    def add(self, block: np.ndarray, start: np.ndarray) -> None:
        """Add the products of the rows of `block` - `start`: [K, n] and [n], n at most CHUNK, of one floating dtype.

        Raises UpdateError where a product is beyond 2**360.
        """
        difference = np.subtract(block, start, dtype=np.float64)
        products = np.ascontiguousarray((difference @ difference.T)[self._pairs])
        try:
            kernels.accumulate_wide(list(self.limbs), products, np.zeros_like(products), math.ldexp(1.0, self._UNIT))
        except ValueError:
            raise UpdateError(f"updates are too far from the global weights for their distances to be taken: a product "
                              f"of differences is {np.max(np.abs(products)):.3g}") from None

    def result(self) -> np.ndarray:
        """float64[K, K], symmetric; each product rounded once."""
        upper = np.empty(self.limbs.shape[1])
        kernels.finish(upper, np.zeros_like(upper), list(self.limbs), math.ldexp(1.0, -self._UNIT), 1.0)
        gram = np.empty((self._num_rows, self._num_rows))
        gram[self._pairs] = upper
        gram.T[self._pairs] = upper
        return gram
