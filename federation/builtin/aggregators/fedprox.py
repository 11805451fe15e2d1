"""FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks"."""

from __future__ import annotations

from typing import ClassVar, final

from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.aggregator import WEIGHTINGS, MeanAggregator, RoundStats, Weighting
from federation.core.problems import choice_problem
from federation.core.weights import Weights


@final
class FedProxAggregator(MeanAggregator):
    """The mean of the clients' weights, as in FedAvg; what is different is on the clients, which are held near the start.

    The paper (Algorithm 2) draws clients by their samples and counts each once: `trainer_config.sampling: weighted`
    with `weighting="uniform"`.
    """

    learner: ClassVar = "federated.learner.fedprox"

    def __init__(self, weighting: Weighting = "samples") -> None:
        check_settings(choice_problem("weighting", weighting, WEIGHTINGS))
        self.weighting = weighting

    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """The mean is the result."""
