"""FedAsync: Xie et al. 2019, "Asynchronous federated optimization"."""

from __future__ import annotations

import math
from typing import final

import numpy as np

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
class FedAsyncAggregator(AsyncAggregator):
    """x = (1 - a) x + a x_k for each update x_k as it comes, with a = mixing * s(staleness) (Algorithm 1 of the paper).

    `staleness` says how s falls with the number of versions that x_k is behind: constant, 1; polynomial,
    (1 + staleness) ^ -exponent; hinge, 1 up to `hinge` and 1 / (exponent * (staleness - hinge) + 1) beyond. The whole
    model is mixed, buffers included; integers are rounded. Clients count alike, whatever their samples.
    """

    def __init__(self, mixing: float = 0.6, staleness: Staleness = "polynomial", exponent: float = EXPONENT,
                 hinge: int = HINGE) -> None:
        check_settings(staleness_problems(staleness, exponent, hinge), mixing=(mixing, 0, math.nextafter(1, 2)),
                       exponent=(exponent, 0, math.inf), hinge=(hinge, -0.0, math.inf))
        self._mixing = mixing
        self._staleness: Staleness = staleness
        self._exponent = exponent
        self._hinge = hinge

    def receive(self, weights: Weights, update: LateUpdate) -> bool:
        """Every update makes a new version."""
        share = self._mixing * discount(self._staleness, update.staleness, self._exponent, self._hinge)
        for current, given in zip(weights, update.weights, strict=True):
            mixed = (1 - share) * current.astype(np.float64) + share * given.astype(np.float64)
            current[...] = rounded(mixed, current.dtype)
        return True
