"""Centred clipping: Karimireddy et al. 2021, "Learning from history for Byzantine robust optimization"."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from federation.builtin.aggregators.krum_scores import check_whole
from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.aggregator import MatrixAggregator
from federation.core.gram import distances_from
from federation.core.matrix import Matrix
from federation.core.weights import Weights


@final
class CentredClippingAggregator(MatrixAggregator):
    """v += mean((x_k - v) * min(1, clip_norm / ||x_k - v||)), `iterations` times, from the global weights (Algorithm 2).

    Every v is the start plus a combination of the updates' differences, so the inner products are all that is needed,
    and one combination at the end. Clients count alike; buffers and integers take the same weights.
    """

    def __init__(self, clip_norm: float, iterations: int = 3) -> None:
        check_whole("iterations", iterations, 1)
        check_settings(clip_norm=(clip_norm, 0, math.inf))
        self._clip_norm = clip_norm
        self._iterations = iterations

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Clip on K x K numbers, then combine."""
        geometry = await matrix.gram()
        geometry.check_reach(matrix.client_ids)
        coefficients = np.zeros(len(matrix))
        for _ in range(self._iterations):
            distances = distances_from(geometry.products, coefficients)
            scales = np.minimum(1.0, self._clip_norm / np.maximum(distances, self._clip_norm))
            coefficients = coefficients + (scales - scales.sum() * coefficients) / len(matrix)
        await matrix.combine(coefficients.tolist(), out)
