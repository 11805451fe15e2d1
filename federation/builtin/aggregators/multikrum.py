"""MultiKrum: Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent"."""

from __future__ import annotations

from typing import final

import numpy as np

from federation.builtin.aggregators.krum_scores import KrumFamily, check_whole, krum_scores
from federation.core.matrix import Matrix
from federation.core.weights import Weights
from federation.errors import RoundError


@final
class MultiKrumAggregator(KrumFamily):
    """The mean of the `num_selected` updates with the smallest Krum scores (section 5 of the paper).

    By default n - f are selected, which is the most. Of equal scores, the first in the cohort count. They count alike.
    """

    def __init__(self, num_byzantine: int = 1, num_selected: int | None = None) -> None:
        super().__init__(num_byzantine)
        if num_selected is not None:
            check_whole("num_selected", num_selected, 1)
        self._num_selected = num_selected

    def check_updates(self, count: int, what: str) -> None:
        """See Aggregator; known of a cohort before it trains."""
        super().check_updates(count, what)
        most = count - self.num_byzantine
        if self._num_selected is not None and self._num_selected > most:
            raise RoundError(f"{what}: num_selected={self._num_selected} is more than n - f = {most} of the {count} updates: some "
                             "of an attacker's would always be among them")

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Distances choose; one combination."""
        count = len(matrix)
        selected = count - self.num_byzantine if self._num_selected is None else self._num_selected
        scores = krum_scores((await matrix.gram()).squared_distances, self.num_byzantine)
        coefficients = np.zeros(count)
        coefficients[np.argsort(scores, kind="stable")[:selected]] = 1 / selected
        await matrix.combine(coefficients.tolist(), out)
