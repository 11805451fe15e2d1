"""Bulyan: El Mhamdi et al. 2018, "The hidden vulnerability of distributed learning in Byzantium"."""

from __future__ import annotations

from typing import final

import numpy as np

from federation.builtin.aggregators.krum_scores import KrumFamily, krum_scores
from federation.core.columns import Kernel
from federation.core.matrix import Matrix
from federation.core.weights import Weights


@final
class BulyanAggregator(KrumFamily):
    """Selects n - 2f updates by Krum, one after the other; then, element by element, averages the n - 4f of those
    that are closest to their median (Algorithm 2 of the paper).

    Each selection is by Krum among the updates that are left. Needs n >= 4f + 3 updates.
    """

    @property
    def min_updates(self) -> int:
        """4 f + 3."""
        return 4 * self.num_byzantine + 3

    def _minimum(self) -> str:
        return f"with num_byzantine={self.num_byzantine} needs n >= 4f + 3 = {self.min_updates} updates"

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Distances choose; one columnwise pass over the chosen."""
        distances = (await matrix.gram()).squared_distances
        left = np.arange(len(matrix))
        selected = []
        for _ in range(len(matrix) - 2 * self.num_byzantine):
            scores = krum_scores(distances[np.ix_(left, left)], self.num_byzantine)
            best = int(np.argmin(scores))
            selected.append(int(left[best]))
            left = np.delete(left, best)
        kept = len(selected) - 2 * self.num_byzantine
        await matrix.columnwise(Kernel("mean_around_median", kept), out, selected)
