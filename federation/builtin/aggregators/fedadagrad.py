"""Adagrad on the server: Reddi et al. 2021, "Adaptive federated optimization", Algorithm 2."""

from __future__ import annotations

from typing import ClassVar, Unpack, final

import numpy as np

from federation.builtin.aggregators.server_optimizer import ServerOptimizer, ServerSettings, check_settings


@final
class FedAdagradAggregator(ServerOptimizer):
    """m = beta1 * m + (1 - beta1) * d, v = v + d^2, x += server_lr * m / (sqrt(v) + tau).

    d is the mean's difference from x; m and v begin at 0, and there is no bias correction. `tau`, which is above 0, says
    how small a difference still counts: where all are 0, the weights stay.
    """

    memory: ClassVar = ("first_moment", "second_moment")

    def __init__(self, beta1: float = 0.0, tau: float = 1e-3,
                 **settings: Unpack[ServerSettings]) -> None:
        super().__init__(**settings)
        check_settings(beta1=(beta1, -0.0, 1), tau=(tau, 0, np.inf))
        self._beta1 = beta1
        self._tau = tau

    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """See ServerOptimizer."""
        first, second = memory
        square = difference * difference
        first *= self._beta1
        first += (1 - self._beta1) * difference
        second += square
        moved: np.ndarray = server_lr * first / (np.sqrt(second) + self._tau)
        return moved
