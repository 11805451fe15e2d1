"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning"."""

from __future__ import annotations

from typing import ClassVar, Unpack, final

import numpy as np

from federation.builtin.aggregators.server_optimizer import ServerOptimizer, ServerSettings
from federation.core.aggregator import RoundStats
from federation.core.weights import Layout, Weights, rounded

#: What the names of control variates begin with.
PREFIX = "control."


@final
class ScaffoldAggregator(ServerOptimizer):
    """x += server_lr * mean(y_i - x), c += |S| / N * mean(c_i+ - c_i) over the cohort S of the N clients (Algorithm 1).

    The control variates c are shared beside the model, one for each parameter; clients answer with c + (c_i+ - c_i).
    Clients count alike, as in the paper, unless `weighting` is samples.
    """

    learner: ClassVar = "federated.learner.scaffold"

    def __init__(self, **settings: Unpack[ServerSettings]) -> None:
        settings.setdefault("weighting", "uniform")
        super().__init__(**settings)

    def shared(self, layout: Layout) -> Layout:
        """One control variate for each parameter of the model."""
        chosen = layout.parameters
        return Layout([PREFIX + layout.names[index] for index in chosen], [layout.shapes[index] for index in chosen],
                      [layout.dtypes[index] for index in chosen])

    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """Move the model by `server_lr`, the control variates by the share of clients that took part."""
        names = set(start.layout.names)
        # A model may have names with this prefix as well; only a control variate has its parameter beside it.
        num_model = sum(not (name.startswith(PREFIX) and name.removeprefix(PREFIX) in names) for name in names)
        super().step(start.head(num_model), mean.head(num_model), stats)
        share = stats.num_updates / stats.num_clients
        for control, before in zip(mean.tail(num_model), start.tail(num_model), strict=True):
            here = before.astype(np.float64)
            control[...] = rounded(here + share * (control.astype(np.float64) - here), control.dtype)

    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """See ServerOptimizer."""
        return server_lr * difference
