"""The coordinate-wise median: Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates"."""

from __future__ import annotations

from typing import final

from federation.core.aggregator import MatrixAggregator
from federation.core.columns import Kernel
from federation.core.matrix import Matrix
from federation.core.weights import Weights


@final
class MedianAggregator(MatrixAggregator):
    """Each element of the new weights is the median of the clients' (Definition 1 of the paper).

    Of an even number of clients, it is the mean of the two in the middle. Clients count alike, whatever their samples.
    """

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """One columnwise pass."""
        await matrix.columnwise(Kernel("median"), out)
