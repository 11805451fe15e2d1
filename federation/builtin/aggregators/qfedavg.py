"""q-FedAvg: Li et al. 2020, "Fair resource allocation in federated learning"."""

from __future__ import annotations

import math
from typing import ClassVar, final

from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.aggregator import MeanAggregator, RoundStats
from federation.core.distance import squared_distance
from federation.core.metrics import as_number
from federation.core.types import ClientUpdate
from federation.core.updates import Contribution
from federation.core.weights import Weights
from federation.errors import Diverged, UpdateError

#: Losses below it count as this much: a client without any loss would have no finite weight for q below 1.
LEAST_LOSS = 1e-10


@final
class QFedAvgAggregator(MeanAggregator):
    """Clients with a high loss count for more: F_k^q, where F_k is the loss of the global model (Algorithm 2).

    With D_k = lipschitz * (x - x_k):  x -= sum(F_k^q D_k) / sum(q F_k^(q-1) ||D_k||^2 + lipschitz * F_k^q). `lipschitz`
    is 1 / client_lr in the paper; q = 0 is FedAvg with every client counted once. Clients report F_k, the mean loss over
    their training samples before they train, as the metric `start_loss`. Buffers take the uniform mean.
    """

    metrics_needed: ClassVar = ("start_loss",)
    weighting = "uniform"

    def __init__(self, lipschitz: float, q: float = 1.0) -> None:
        check_settings(q=(q, -0.0, math.inf), lipschitz=(lipschitz, 0, math.inf))
        self._q = q
        self._lipschitz = lipschitz

    def weigh(self, update: ClientUpdate, start: Weights) -> Contribution:
        """lipschitz * F_k^q, and h_k of the paper."""
        given = update.metrics.get("start_loss")
        loss = as_number(given)
        if loss is None or loss < 0:
            raise UpdateError(f"{update.client_id}: q-FedAvg needs the metric start_loss (the loss before training), a "
                              f"number of at least 0, and got {given!r}: use federated.learner.default, or report it where "
                              "config[\"metrics\"] asks for it")
        if not math.isfinite(loss):
            raise Diverged(update.client_id, "start_loss")
        loss = max(loss, LEAST_LOSS)
        try:
            weight = self._lipschitz * loss**self._q
        except OverflowError:
            raise UpdateError(f"{update.client_id}: start_loss={loss:g} to the power of q={self._q:g} is beyond float64; "
                              "use a smaller q") from None
        if self._q == 0:
            return Contribution(weight, weight)
        distance = self._lipschitz**2 * squared_distance(update.weights, start)
        return Contribution(weight, self._q * loss ** (self._q - 1) * distance + weight)

    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """The mean, so weighted, is the result."""
