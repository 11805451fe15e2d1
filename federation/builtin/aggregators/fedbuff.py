"""FedBuff: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from federation.builtin.aggregators.krum_scores import check_whole
from federation.builtin.aggregators.server_optimizer import check_settings
from federation.core.async_aggregator import (
    EXPONENT,
    HINGE,
    AsyncAggregator,
    LateUpdate,
    Staleness,
    discount,
    staleness_problems,
)
from federation.core.weights import Weights, rounded


@final
class FedBuffAggregator(AsyncAggregator):
    """x += server_lr / K * sum(s(staleness_k) * (x_k - start_k)) once K = `buffer_size` updates are there (Algorithm 1).

    start_k is the version that client k started from; the sum is added to the weights as of now. s is as in FedAsync, by
    default 1 / sqrt(1 + staleness). Buffers and integers become the mean of the clients' own: added to those as of now, what
    several clients have made of one variance would leave it negative. Clients count alike, whatever their samples. The sum
    is kept as float64, and is the state that survives a restart.
    """

    def __init__(self, buffer_size: int = 10, server_lr: float = 1.0, staleness: Staleness = "polynomial",
                 exponent: float = EXPONENT, hinge: int = HINGE) -> None:
        check_whole("buffer_size", buffer_size, 1)
        check_settings(staleness_problems(staleness, exponent, hinge), server_lr=(server_lr, 0, math.inf),
                       exponent=(exponent, 0, math.inf), hinge=(hinge, -0.0, math.inf))
        self._buffer_size = buffer_size
        self._server_lr = server_lr
        self._staleness: Staleness = staleness
        self._exponent = exponent
        self._hinge = hinge
        self._sums: dict[str, np.ndarray] = {}
        self._count = 0

    def receive(self, weights: Weights, update: LateUpdate) -> bool:
        """A new version with every `buffer_size`-th update."""
        share = discount(self._staleness, update.staleness, self._exponent, self._hinge)
        parameters = {weights.layout.names[index] for index in weights.layout.parameters}
        for (name, given), begun in zip(update.weights.items(), update.start, strict=True):
            total, wide = self._sums.setdefault(name, np.zeros(given.shape)), given.astype(np.float64)
            total += share * (wide - begun.astype(np.float64)) if name in parameters else wide
        self._count += 1
        if self._count < self._buffer_size:
            return False
        for name, current in weights.items():
            if name in parameters:
                new = current.astype(np.float64) + self._server_lr / self._count * self._sums[name]
            else:
                new = self._sums[name] / self._count
            current[...] = rounded(new, current.dtype)
            self._sums[name].fill(0)
        self._count = 0
        return True

    def state(self) -> dict[str, Any]:
        """The buffer: its sum by array, and how many updates are in it."""
        return {"sums": dict(self._sums), "count": self._count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take on what `state` returned."""
        self._sums = {name: np.array(array) for name, array in state["sums"].items()}
        self._count = int(state["count"])
