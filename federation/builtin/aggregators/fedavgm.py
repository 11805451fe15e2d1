"""Server momentum.

Hsu et al. 2019, "Measuring the effects of non-identical data distribution for federated visual classification".
"""

from __future__ import annotations

from typing import ClassVar, Unpack, final

import numpy as np

from federation.builtin.aggregators.server_optimizer import ServerOptimizer, ServerSettings, check_settings


@final
class FedAvgMAggregator(ServerOptimizer):
    """v = momentum * v + d, x += server_lr * v, where d is the mean's difference from x (section 4.2 of the paper).

    The momentum is not damped: v grows to d / (1 - momentum) where d stays the same.
    """

    memory: ClassVar = ("velocity",)

    def __init__(self, momentum: float = 0.9, **settings: Unpack[ServerSettings]) -> None:
        super().__init__(**settings)
        check_settings(momentum=(momentum, -0.0, 1))
        self._momentum = momentum

    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """See ServerOptimizer."""
        velocity, = memory
        velocity *= self._momentum
        velocity += difference
        return server_lr * velocity
