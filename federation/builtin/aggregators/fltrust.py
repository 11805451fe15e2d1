"""FLTrust: Cao et al. 2021, "FLTrust: Byzantine-robust federated learning via trust bootstrapping"."""

from __future__ import annotations

from typing import final

import numpy as np

from federation.core.aggregator import MatrixAggregator
from federation.core.matrix import Matrix
from federation.core.weights import Weights
from federation.errors import RoundError


@final
class FLTrustAggregator(MatrixAggregator):
    """The mean of the other clients' differences from the start, scaled to the length of the root client's and weighted
    by max(0, cosine of the angle to it) (equations 2 to 4 of the paper).

    The root client holds the small clean data set that the paper's server trains on: `root_client` is its id, and it has
    to be in every cohort. It sets direction and length, and counts itself only where no other client is trusted, that is,
    goes in its direction at all. Buffers and integers take the same weights.
    """

    def __init__(self, root_client: str) -> None:
        self._root_client = root_client

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Angles and lengths from K x K numbers, then one combination."""
        if self._root_client not in matrix.client_ids:
            raise RoundError(f"root_client={self._root_client!r} has sent no update that could be trusted: it is not among "
                             f"the {len(matrix)} of this round ({', '.join(matrix.client_ids[:6])}"
                             f"{', ...' if len(matrix) > 6 else ''}); with FLTrust it has to be in every cohort")
        geometry = await matrix.gram()
        geometry.check_reach(matrix.client_ids)
        coefficients = trusted(geometry.products, matrix.client_ids.index(self._root_client))
        await matrix.combine(coefficients.tolist(), out)


def trusted(products: np.ndarray, root: int) -> np.ndarray:
    """float64[K]: what each difference counts, given the inner products of all, in that of row `root`'s direction."""
    lengths = np.sqrt(np.diag(products))
    moved = lengths > 0
    cosines = np.zeros(len(lengths))
    if moved[root]:
        cosines[moved] = products[root][moved] / (lengths[root] * lengths[moved])
    scores = np.maximum(cosines, 0.0)
    scores[root] = 0.0
    if not scores.any():
        scores[root] = 1.0
        return scores
    coefficients = np.zeros(len(lengths))
    coefficients[moved] = scores[moved] / scores.sum() * lengths[root] / lengths[moved]
    return coefficients
