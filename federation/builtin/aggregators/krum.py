"""Krum: Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent"."""

from __future__ import annotations

from typing import final

import numpy as np

from federation.builtin.aggregators.krum_scores import KrumFamily, krum_scores
from federation.core.matrix import Matrix
from federation.core.weights import Weights


@final
class KrumAggregator(KrumFamily):
    """The update with the smallest sum of squared distances to its n - f - 2 closest others, exactly as it is.

    Of equal scores, the first in the cohort counts. Needs n >= 2f + 3 updates.
    """

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Distances choose; one row travels."""
        scores = krum_scores((await matrix.gram()).squared_distances, self.num_byzantine)
        await matrix.row(int(np.argmin(scores)), out)
