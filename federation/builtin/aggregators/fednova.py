"""FedNova: Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization"."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack, final

import numpy as np

from federation.builtin.aggregators.server_optimizer import ServerOptimizer, ServerSettings
from federation.core.aggregator import RoundStats
from federation.core.metrics import as_number
from federation.core.types import ClientUpdate
from federation.core.updates import Contribution
from federation.core.weights import Weights
from federation.errors import ConfigError, Diverged, UpdateError


@final
class FedNovaAggregator(ServerOptimizer):
    """Averages what clients did per step, then takes as many steps as they took on average (Algorithm 1).

    x += server_lr * tau * sum(p_k (x_k - x) / a_k) with tau = sum(p_k a_k), where p_k is the client's share of the
    samples and a_k, the norm of its accumulation vector, is its number of local steps for plain SGD.
    Clients report a_k as the metric `normaliser`.
    """

    metrics_needed: ClassVar = ("normaliser",)

    def __init__(self, **settings: Unpack[ServerSettings]) -> None:
        super().__init__(**settings)
        if self.weighting != "samples":
            raise ConfigError(f"aggregator_config: weighting={self.weighting!r}; FedNova weighs by samples")

    def weigh(self, update: ClientUpdate, start: Weights) -> Contribution:
        """p_k / a_k, up to a factor that all clients share."""
        given = update.metrics.get("normaliser")
        normaliser = as_number(given)
        if normaliser is None or normaliser <= 0:
            raise UpdateError(f"{update.client_id}: FedNova needs the metric normaliser (the number of local steps, for "
                              f"plain SGD), a number above 0, and got {given!r}: use federated.learner.default, or "
                              "report it where config[\"metrics\"] asks for it")
        if not math.isfinite(normaliser):
            raise Diverged(update.client_id, "normaliser")
        return Contribution(update.num_samples / normaliser, update.num_samples)

    def divisor(self, total: float, stats: RoundStats) -> float:
        """Of the clients' samples, so that the mean is that of as many steps as they took on average."""
        return total / stats.metrics["normaliser"] if total else total

    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """See ServerOptimizer."""
        return server_lr * difference
