"""Clipping each update's norm: Sun et al. 2019, "Can you really backdoor federated learning?"."""

from __future__ import annotations

import math
from typing import Unpack, final

import numpy as np

from federation.builtin.aggregators.server_optimizer import ServerOptimizer, ServerSettings, check_settings
from federation.core.distance import squared_distance
from federation.core.types import ClientUpdate
from federation.core.updates import Contribution
from federation.core.weights import Weights


@final
class NormClippingAggregator(ServerOptimizer):
    """The mean of the differences from the start, each scaled down to an L2 norm of at most `clip_norm`.

    The norm is over all parameters together. No client moves the mean by more than its share times `clip_norm`.
    """

    def __init__(self, clip_norm: float, **settings: Unpack[ServerSettings]) -> None:
        super().__init__(**settings)
        check_settings(clip_norm=(clip_norm, 0, math.inf))
        self._clip_norm = clip_norm

    def weigh(self, update: ClientUpdate, start: Weights) -> Contribution:
        """The client's share, times what its difference is scaled by."""
        count = update.num_samples if self.weighting == "samples" else 1
        norm = math.sqrt(squared_distance(update.weights, start))
        return Contribution(count * min(1.0, self._clip_norm / norm) if norm else count, count)

    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """See ServerOptimizer."""
        return server_lr * difference
