"""The geometric median: Pillutla et al. 2022, "Robust aggregation for federated learning" (RFA)."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.aggregator import MatrixAggregator, Weighting
from federation.core.matrix import Matrix
from federation.core.weights import Weights


@final
class GeometricMedianAggregator(MatrixAggregator):
    """The point with the least sum of distances to the updates, weighted by samples or uniformly.

    By the smoothed Weiszfeld algorithm (Algorithm 2 of the paper): at most `max_iterations`, until the objective falls by
    less than its `tolerance`-th part. Distances count as at least `smoothing` times the mean distance from the start, so
    that a point that meets an update does no harm. Every iterate is a weighted mean of the updates, so the inner products
    are all that is needed, and one combination at the end. Buffers and integers take the same weights.
    """

    def __init__(self, weighting: Weighting = "samples", max_iterations: int = 100, tolerance: float = 1e-9,
                 smoothing: float = 1e-6) -> None:
        check_settings(max_iterations=(max_iterations, 0, math.inf), tolerance=(tolerance, -0.0, 1),
                       smoothing=(smoothing, 0, math.inf))
        self._weighting = weighting
        self._max_iterations = max_iterations
        self._tolerance = tolerance
        self._smoothing = smoothing

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Weiszfeld on the K x K inner products, then one combination."""
        counts = matrix.num_samples if self._weighting == "samples" else [1] * len(matrix)
        coefficients = self._coefficients(await matrix.gram(), np.array(counts, np.float64) / sum(counts))
        await matrix.combine(coefficients.tolist(), out)

    def _coefficients(self, gram: np.ndarray, shares: np.ndarray) -> np.ndarray:
        least = self._smoothing * float(np.sqrt(np.diag(gram)) @ shares)
        coefficients, before = shares, math.inf
        for _ in range(self._max_iterations):
            distances = np.maximum(distances_from(gram, coefficients), least)
            objective = float(shares @ distances)
            if objective == 0 or before - objective <= self._tolerance * objective:
                break
            weights = shares / distances
            coefficients, before = weights / weights.sum(), objective
        return coefficients


def distances_from(gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """float64[K]: the distance of each row from the combination of rows with these coefficients."""
    products = gram @ coefficients
    squares = np.diag(gram) - 2 * products + coefficients @ products
    distances: np.ndarray = np.sqrt(np.maximum(squares, 0.0))
    return distances
