"""The trimmed mean: Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates"."""

from __future__ import annotations

import math
from typing import final

from federation.core.aggregator import MatrixAggregator
from federation.core.columns import Kernel
from federation.core.matrix import Matrix
from federation.core.weights import Weights
from federation.data.sampling import exact_fraction
from federation.errors import ConfigError


@final
class TrimmedMeanAggregator(MatrixAggregator):
    """Each element is the mean of the clients' without the smallest and the largest (Definition 2 of the paper).

    `trim_fraction` of the clients, rounded down, is left out on either side; below 1/2. Clients count alike.
    """

    def __init__(self, trim_fraction: float = 0.1) -> None:
        fraction = exact_fraction(trim_fraction)
        if fraction is None or not 0 <= 2 * fraction < 1:
            raise ConfigError(f"aggregator_config: trim_fraction={trim_fraction!r} is not a number of at least 0 and below "
                              "0.5; as many are cut on either side, so that half and more leaves no client")
        self._fraction = fraction

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """One columnwise pass."""
        # Below 1/2, some client is always left.
        await matrix.columnwise(Kernel("trimmed_mean", math.floor(self._fraction * len(matrix))), out)
