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
    goes in its direction at all. Buffers and integers take the mean by trust alone: scaled to another length, a running
    variance might be negative.
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
        shares, coefficients = trusted(geometry.products, matrix.client_ids.index(self._root_client))
        await matrix.combine(coefficients.tolist(), out)
        if unscaled := set(range(len(out))).difference(out.layout.parameters):
            mean = Weights.zeros(out.layout)
            await matrix.combine(shares.tolist(), mean)
            for index in unscaled:
                out[index][...] = mean[index]


def trusted(products: np.ndarray, root: int) -> tuple[np.ndarray, np.ndarray]:
    """float64[K] each: the share of all trust that each row has, given the inner products of all differences, by its
    direction and that of row `root`; and what its difference counts, scaled to that row's length."""
    lengths = np.sqrt(np.diag(products))
    moved = lengths > 0
    cosines = np.zeros(len(lengths))
    if moved[root]:
        cosines[moved] = products[root][moved] / (lengths[root] * lengths[moved])
    scores = np.maximum(cosines, 0.0)
    scores[root] = 0.0
    if not scores.any():
        scores[root] = 1.0
        return scores, scores
    shares, coefficients = scores / scores.sum(), np.zeros(len(lengths))
    coefficients[moved] = shares[moved] * lengths[root] / lengths[moved]
    return shares, coefficients
