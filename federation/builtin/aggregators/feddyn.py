"""FedDyn: Acar et al. 2021, "Federated learning based on dynamic regularization"."""

from __future__ import annotations

import math
from typing import ClassVar, final

import numpy as np

from federation.builtin.aggregators.server_optimizer import ServerOptimizer, check_settings
from federation.core.aggregator import RoundStats
from federation.core.weights import Weights


@final
class FedDynAggregator(ServerOptimizer):
    """h -= alpha / m * sum(x_k - x) over the cohort of the m clients, x = mean(x_k) - h / alpha (Algorithm 1).

    `alpha` is the same number as `learner_config.alpha`. Clients count alike, as in the paper.
    """

    learner: ClassVar = "federated.learner.feddyn"
    memory: ClassVar = ("gradient",)

    def __init__(self, alpha: float = 0.01) -> None:
        super().__init__(weighting="uniform")
        check_settings(alpha=(alpha, 0, math.inf))
        self._alpha = alpha
        self._share = 1.0

    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """Update h by the share of clients that took part, then move."""
        self._share = stats.num_updates / stats.num_clients
        super().step(start, mean, stats)

    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """See ServerOptimizer."""
        gradient, = memory
        gradient -= self._alpha * self._share * difference
        return difference - gradient / self._alpha
