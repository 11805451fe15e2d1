"""What travels between clients and the server, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from federation.core.weights import Weights

#: The weights of a model: a Weights, or any sequence of arrays in the model's order.
WeightsLike = Weights | Sequence[np.ndarray]


@dataclass(frozen=True)
class TrainResult:
    """What `Learner.fit` returns.

    `weights` are the client's weights after training, shaped like the model's. They may be a live view of the
    learner's model (`Weights.borrowed`): who keeps them beyond the learner's next use copies them.
    `num_samples` is the number of samples trained on, the client's weight in the average.
    `metrics` are means over those samples: numbers (integers of 64 bits at most), or text, None and lists, which no mean takes in.
    `shared` are the client's values of the arrays that the aggregator shares beside the model (see
    `Aggregator.shared`), None where it shares none.
    `state` is what the client keeps for the next time that it trains, as named arrays (see `Learner.client_state`); it
    replaces what it kept before. None: it keeps what it has.
    """

    weights: WeightsLike
    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    shared: WeightsLike | None = None
    state: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class EvalResult:
    """What `Learner.evaluate` returns: means over `num_samples` evaluation samples."""

    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """One client's contribution to a round, as an aggregator sees it. It owns its weights."""

    client_id: str
    weights: WeightsLike
    num_samples: int
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_result(cls, client_id: str, result: TrainResult) -> ClientUpdate:
        """Name `result` as the update of `client_id`; weights borrowed from a live model are copied."""
        weights = result.weights
        if isinstance(weights, Weights) and weights.borrowed:
            weights = weights.copy()
        return cls(client_id, weights, result.num_samples, result.metrics)
