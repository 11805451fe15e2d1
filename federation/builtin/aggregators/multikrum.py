"""MultiKrum: Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent"."""

from __future__ import annotations

from typing import final

import numpy as np

from federation.builtin.aggregators.krum_scores import KrumFamily, krum_scores, squared_distances
from federation.core.matrix import Matrix
from federation.core.weights import Weights
from federation.errors import ConfigError, RoundError


@final
class MultiKrumAggregator(KrumFamily):
    """The mean of the `num_selected` updates with the smallest Krum scores (section 5 of the paper).

    By default n - f are selected. Of equal scores, the first in the cohort count. They count alike.
    """

    def __init__(self, num_byzantine: int = 1, num_selected: int | None = None) -> None:
        super().__init__(num_byzantine)
        if num_selected is not None and num_selected < 1:
            raise ConfigError(f"aggregator_config: num_selected={num_selected} is not a whole number of at least 1")
        self._num_selected = num_selected

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """The inner products choose; one combination."""
        count = len(matrix)
        selected = count - self.num_byzantine if self._num_selected is None else self._num_selected
        if selected > count:
            raise RoundError(f"num_selected={selected} is more than the {count} updates of this round")
        scores = krum_scores(squared_distances(await matrix.gram()), self.num_byzantine)
        coefficients = np.zeros(count)
        coefficients[np.argsort(scores, kind="stable")[:selected]] = 1 / selected
        await matrix.combine(coefficients.tolist(), out)
