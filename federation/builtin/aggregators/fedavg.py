"""Federated averaging: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017."""

from __future__ import annotations

from typing import final

from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.aggregator import WEIGHTINGS, MeanAggregator, RoundStats, Weighting
from federation.core.problems import choice_problem
from federation.core.weights import Weights


@final
class FedAvgAggregator(MeanAggregator):
    """The new global weights are the mean of the clients' weights (Algorithm 1 of the paper).

    `weighting="samples"` weighs client k by n_k / n as the paper does; `"uniform"` counts each client once.
    Integer arrays, such as BatchNorm's counters, become the rounded weighted mean.
    """

    def __init__(self, weighting: Weighting = "samples") -> None:
        check_settings(choice_problem("weighting", weighting, WEIGHTINGS))
        self.weighting = weighting

    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """The mean is the result."""
