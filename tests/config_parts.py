"""Components for the tests of configuration and registry; they are never run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from federation.core.aggregator import Aggregator
from federation.core.learner import Learner
from federation.core.model import Model


class PlainLearner(Learner):
    """Takes settings of every kind that YAML can express."""

    def __init__(self, model: Any = None, data: Any = None, *, client_lr: float = 0.1, local_epochs: int = 1,
                 local_steps: int | None = None, nesterov: bool = False, optimizer: Literal["sgd", "adam"] = "sgd",
                 betas: tuple[float, float] = (0.9, 0.999), milestones: Sequence[int] = (), note: str = "",
                 extra: Mapping[str, Any] | None = None, api_key: str = "",
                 schedule: Callable[[int], float] | None = None) -> None:
        super().__init__(model, data)

    def fit(self, config: Any = None) -> Any:
        raise NotImplementedError

    def evaluate(self, config: Any = None) -> Any:
        raise NotImplementedError


class OwnScaffold(PlainLearner):
    """Says that it does what SCAFFOLD needs."""

    implements = ("federated.learner.scaffold",)


class NeedyAggregator(Aggregator):
    """Has a setting without a default."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def aggregate(self, updates: Any, global_model: Any = None) -> Any:
        raise NotImplementedError


class PlainModel(Model):
    """Takes no settings."""

    def get_weights(self) -> Any:
        raise NotImplementedError

    def set_weights(self, weights: Any) -> None:
        raise NotImplementedError


class Unrelated:
    """Is no component at all."""


NOT_A_CLASS = 3
