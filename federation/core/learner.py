"""The learner: how one client trains and evaluates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from federation.core.model import Model
from federation.core.random import stream, stream_seed
from federation.core.types import EvalResult, TrainResult, WeightsLike


@dataclass(frozen=True)
class Context:
    """Whose turn it is: what every random draw of a learner is keyed by."""

    client_id: str = "client"
    round: int = 0
    seed: int = 0


class Learner(ABC):
    """Trains `model` on the data of one client at a time.

    A rank makes one learner and uses it for all its clients in turn: `bind` (data and context), `set_weights`
    (the round's global weights), then `fit` or `evaluate`. So what a learner keeps on itself belongs to the rank,
    not to a client, and must not change results.

    Settings are named, typed keyword arguments of the constructor, filled from `learner_config`.
    """

    def __init__(self, model: Model | None = None, data: Any = None) -> None:
        self.model = model
        self.data = data
        self.context = Context()

    def bind(self, data: Any, context: Context) -> None:
        """Turn to the client of `context`, with its data (`ClientData`, or whatever the learner understands)."""
        self.data = data
        self.context = context

    def get_weights(self) -> WeightsLike:
        """A copy of the model's weights."""
        return self._model().get_weights()

    def set_weights(self, weights: WeightsLike) -> None:
        """Start from `weights` (copied)."""
        self._model().set_weights(weights)

    def random(self, purpose: str) -> np.random.Generator:
        """A generator keyed by (seed, purpose, round, client): the same draws wherever this client is trained."""
        return stream(self.context.seed, purpose, self.context.round, self.context.client_id)

    def random_seed(self, purpose: str) -> int:
        """A 63-bit seed with the same key, for libraries that bring generators of their own."""
        return stream_seed(self.context.seed, purpose, self.context.round, self.context.client_id)

    @abstractmethod
    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """Train from the present weights on the present client's data; `config` overrides settings for this call."""

    @abstractmethod
    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """Evaluate the present weights on the present client's evaluation data."""

    def _model(self) -> Model:
        if self.model is None:
            raise ValueError(f"{type(self).__name__} has no model: pass one, {type(self).__name__}(model=...)")
        return self.model
