"""How updates lie to each other: their inner products and distances, the same bits however columns are shared among ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from federation import kernels
from federation.errors import UpdateError

#: Differences from the start count as no larger, so that no product overflows: only float64 goes beyond.
FARTHEST = 2.0**160


@dataclass(frozen=True)
class Geometry:
    """products: float64[K, K], symmetric: the inner products of the rows' differences from the start.

    squared_distances: float64[K, K], symmetric: between rows. Relative errors are around 2**-40, and equal rows have 0.
    From products alone, the error would be 2**-52 times the squared distance from the start, which is more than there is
    to see where clients have moved far in the same direction.
    """

    products: np.ndarray
    squared_distances: np.ndarray

    def products_around(self, row: int) -> np.ndarray:
        """float64[K, K]: the inner products of the differences from one row.

        Each is had from products or from distances, by what loses less: from distances where both rows are closer to
        this one than to the start.
        """
        here, there = self.products[row], self.squared_distances[row]
        by_products = self.products - here - here[:, None] + here[row]
        by_distances = (there + there[:, None] - self.squared_distances) / 2
        sizes = np.sqrt(np.diag(self.products)) + math.sqrt(here[row])
        return np.where(sizes * sizes[:, None] < there + there[:, None], by_products, by_distances)

    def check_reach(self, client_ids: Sequence[str]) -> None:
        """Raise UpdateError, naming the client, for a row that is too far away for its distance to be known."""
        for index in np.flatnonzero(np.diag(self.products) >= FARTHEST**2).tolist():
            raise UpdateError(f"{client_ids[index]}: the update is too far from the global weights to count in their "
                              f"proportion: by more than {FARTHEST:.3g}")


def distances_from(products: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """float64[K]: how far each row is from the sum of `coefficients` times the rows; all seen from where products are."""
    image = products @ coefficients
    squares = np.diag(products) - 2 * image + coefficients @ image
    distances: np.ndarray = np.sqrt(np.maximum(squares, 0.0))
    return distances


class GramSum:
    """The sum over blocks of columns of what makes a Geometry.

    What one block gives is float64 arithmetic, of a shape and order that depend on nothing else; the sum over blocks is
    one wide integer for every pair of rows, in units of 2**-300, so that it can be split over ranks in any way.

    CHUNK: columns of a block. All blocks have this width but the last of a run of columns; a rank that works on a part
    of a run begins at a multiple of it.
    limbs: int64[16, K * K], to be reduced over ranks by summation: the products of the upper triangle, row by row, then
    the squared distances above the diagonal.
    """

    CHUNK = 4096
    _UNIT = 300
    #: Below this share of what it is the difference of, a squared distance is computed from the rows themselves.
    _CLOSE = 2.0**-10

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._pairs = np.triu_indices(num_rows)
        self._apart = np.triu_indices(num_rows, 1)
        self.limbs = np.zeros((kernels.MAX_LIMBS, num_rows * num_rows), np.int64)

    def add(self, block: np.ndarray, start: np.ndarray) -> None:
        """Add what the rows of `block` and `start` give: [K, n] and [n], n at most CHUNK, finite, of one floating dtype."""
        with np.errstate(over="ignore"):
            difference = np.subtract(block, start, dtype=np.float64)
        if block.dtype == np.float64:
            np.clip(difference, -FARTHEST, FARTHEST, out=difference)
        products = difference @ difference.T
        values = np.concatenate([products[self._pairs], self._squared_distances(block, products)])
        kernels.accumulate_wide(list(self.limbs), values, np.zeros_like(values), math.ldexp(1.0, self._UNIT))

    def result(self) -> Geometry:
        """Each number rounded once."""
        values = np.empty(self.limbs.shape[1])
        kernels.finish(values, np.zeros_like(values), list(self.limbs), math.ldexp(1.0, -self._UNIT), 1.0)
        count = len(self._pairs[0])
        return Geometry(self._symmetric(self._pairs, values[:count]), self._symmetric(self._apart, values[count:]))

    def _squared_distances(self, block: np.ndarray, products: np.ndarray) -> np.ndarray:
        first, second = self._apart
        norms = np.diag(products)
        both = norms[first] + norms[second]
        squares = both - 2 * products[self._apart]
        for pair in np.flatnonzero(squares < self._CLOSE * both):
            squares[pair] = kernels.squared_distance(block[first[pair]], block[second[pair]])
        return np.minimum(squares, FARTHEST**2)

    def _symmetric(self, pairs: tuple[np.ndarray, np.ndarray], values: np.ndarray) -> np.ndarray:
        matrix = np.zeros((self._num_rows, self._num_rows))
        matrix[pairs] = values
        matrix.T[pairs] = values
        return matrix
