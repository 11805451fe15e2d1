"""The learner: how one client trains and evaluates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from federation.core.model import Model
from federation.core.random import stream, stream_seed
from federation.core.types import EvalResult, TrainResult, WeightsLike
from federation.core.weights import Weights


@dataclass(frozen=True)
class Context:
    """Whose turn it is: what every random draw of a learner is keyed by."""

    client_id: str = "client"
    round: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """One of several clients that are trained at once: what `bind` takes, and the weights (borrowed) to start from."""

    data: Any
    context: Context
    start: Weights


class Learner(ABC):
    """Trains `model` on the data of one client at a time.

    A rank makes one learner and uses it for all its clients in turn: `bind` (data and context), `set_weights`
    (the round's global weights), then `fit` or `evaluate`. So what a learner keeps on itself belongs to the rank,
    not to a client, and must not change results. What belongs to a client goes out with `TrainResult.state` and comes
    back, wherever the client trains next, as `client_state`.

    client_state: what the present client kept the last time, by name; read-only, empty at first.
    shared: the arrays that the aggregator shares beside the model (SCAFFOLD's control variate, say), read-only; None
    where it shares none.
    implements: names of the learners that aggregators ask for which this one can stand in for.
    clients_at_once: how many clients `fit_many` takes; 1 where there is none, and `fit` trains one after the other.

    Settings are named, typed keyword arguments of the constructor, filled from `learner_config`.
    """

    implements: ClassVar[tuple[str, ...]] = ()
    client_state: Mapping[str, np.ndarray] = MappingProxyType({})
    shared: Weights | None = None
    clients_at_once: int = 1

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

    def fit_many(self, turns: Sequence[Turn],
                 config: Mapping[str, Any] | None = None) -> Iterator[tuple[int, TrainResult | Exception]]:
        """Train up to `clients_at_once` clients together, which keep no state; `config` is as for `fit`.

        Yields each one's index in `turns` and result, whose weights are borrowed until the next is asked for, or the
        exception that `fit` would have raised; in any order. A result must not depend on who the others are.
        """
        raise NotImplementedError(f"{type(self).__name__} has clients_at_once={self.clients_at_once}, and no fit_many")

    def personal_weights(self, weights: Weights) -> WeightsLike | None:
        """The present client's own model, where it has one beside the global `weights` (read-only); None: it has none.

        Evaluated on the client's data beside the global model. Ditto, for one, keeps such a model in its state.
        """
        return None

    def _model(self) -> Model:
        if self.model is None:
            raise ValueError(f"{type(self).__name__} has no model: pass one, {type(self).__name__}(model=...)")
        return self.model
