"""The geometric median: Pillutla et al. 2022, "Robust aggregation for federated learning" (RFA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np

from federation.builtin.aggregators.krum_scores import check_whole
from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.aggregator import WEIGHTINGS, MatrixAggregator, Weighting
from federation.core.gram import Geometry, distances_from
from federation.core.matrix import Matrix
from federation.core.problems import choice_problem
from federation.core.weights import Weights


@final
class GeometricMedianAggregator(MatrixAggregator):
    """The point with the least sum of distances to the updates, weighted by samples or uniformly.

    By the smoothed Weiszfeld algorithm (Algorithm 2 of the paper): at most `max_iterations`, until a step is shorter than
    `tolerance` times the scale of the updates: the median of the distances from the update in their midst. It begins near
    that one, and distances count as at least `smoothing` times the scale, so that neither depends on how far away a
    minority is. Every iterate is a weighted mean of the updates, so the inner products are all that is needed, and one
    combination at the end. Buffers and integers take the same weights.
    """

    def __init__(self, weighting: Weighting = "samples", max_iterations: int = 1000, tolerance: float = 1e-9,
                 smoothing: float = 1e-6) -> None:
        check_whole("max_iterations", max_iterations, 1)
        check_settings(choice_problem("weighting", weighting, WEIGHTINGS), tolerance=(tolerance, -0.0, 1),
                       smoothing=(smoothing, 0, math.inf))
        self._weighting = weighting
        self._max_iterations = max_iterations
        self._tolerance = tolerance
        self._smoothing = smoothing

    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Weiszfeld on K x K numbers, then one combination."""
        geometry = await matrix.gram()
        geometry.check_reach(matrix.client_ids)
        counts = matrix.num_samples if self._weighting == "samples" else [1] * len(matrix)
        await matrix.combine(self._coefficients(geometry, counts).tolist(), out)

    def _coefficients(self, geometry: Geometry, counts: Sequence[int]) -> np.ndarray:
        middle, scale = midst(np.sqrt(geometry.squared_distances), counts)
        if scale == 0:  # most of the weight is in one place, which is the geometric median
            alone = np.zeros(len(counts))
            alone[middle] = 1
            return alone
        shares = np.array(counts, np.float64) / sum(counts)
        products = geometry.products_around(middle)
        coefficients = _normalised(shares / np.maximum(np.sqrt(geometry.squared_distances[middle]), scale))
        for _ in range(self._max_iterations):
            distances = distances_from(products, coefficients)
            before, coefficients = coefficients, _normalised(shares / np.maximum(distances, self._smoothing * scale))
            step = coefficients - before
            if step @ products @ step <= (self._tolerance * scale) ** 2:
                break
        return coefficients


def midst(distances: np.ndarray, counts: Sequence[int]) -> tuple[int, float]:
    """The row that has most of the weight closest around it, and how close: the least distance that more than half of
    `counts` is within. While a minority may be anywhere, both are of the others."""
    total = sum(counts)
    radii = []
    for row in distances:
        order = np.argsort(row, kind="stable")
        within = np.cumsum(np.array(counts)[order])
        radii.append(float(row[order[np.searchsorted(within, total // 2, side="right")]]))
    middle = int(np.argmin(radii))
    return middle, radii[middle]


def _normalised(weights: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = weights / weights.sum()
    return normalised
