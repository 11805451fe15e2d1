"""FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks"."""

from __future__ import annotations

from typing import Any, Unpack, final

from federation.builtin.learners.stepped import SteppedLearner, SteppedSettings, Task
from federation.builtin.steps.contract import Correction
from federation.core.model import Model
from federation.core.problems import number_problem
from federation.core.types import TrainResult
from federation.errors import ConfigError


@final
class FedProxLearner(SteppedLearner):
    """Minimises loss + mu/2 * ||w - w_global||^2, where w_global is what training began with (equation 2).

    Over trainable parameters; the loss reported is that of the data alone. mu = 0 is the default learner, bit for bit.
    All other settings are those of the default learner.

    Raises ConfigError for settings that cannot be.
    """

    def __init__(self, model: Model, data: Any = None, *, mu: float = 0.01, **settings: Unpack[SteppedSettings]) -> None:
        super().__init__(model, data, **settings)
        if problems := number_problem("mu", mu):
            raise ConfigError(f"learner_config: {problems[0]}")
        self._mu = float(mu)

    def _train(self, task: Task) -> TrainResult:
        correction = None
        if self._mu:
            correction = Correction(self._mu, anchor=dict(self._model().weights.copy().items()))
        descent = self._descend(task, correction)
        return TrainResult(self._model().weights, descent.num_samples, descent.metrics, state=descent.state or None)
