"""Ditto: Li et al. 2021, "Ditto: fair and robust federated learning through personalization"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack, final

from federation.builtin.learners.stepped import SteppedLearner, SteppedSettings, Task
from federation.builtin.steps.contract import Correction
from federation.core.model import Model
from federation.core.problems import number_problem, whole_number_problem
from federation.core.types import TrainResult
from federation.core.weights import Weights
from federation.errors import ConfigError

#: What the names of the personal model's arrays begin with in a client's state.
PERSONAL = "personal."


@final
class DittoLearner(SteppedLearner):
    """Trains the global model as the default learner does, and beside it a model of the client's own (Algorithm 1).

    The personal model v minimises loss + personal_lambda/2 * ||v - w_global||^2 on the same data, in `personal_epochs`
    passes, where w_global is what the global model's training began with; the client keeps it as `personal.<name>` for
    each array, and a client without one starts from w_global. Its optimiser begins at zero each time. All other settings
    are those of the default learner, and hold for both models. The weights of a result are a copy.

    Raises ConfigError for settings that cannot be.
    """

    def __init__(self, model: Model, data: Any = None, *, personal_lambda: float = 0.1, personal_epochs: int = 1,
                 **settings: Unpack[SteppedSettings]) -> None:
        super().__init__(model, data, **settings)
        problems = [*number_problem("personal_lambda", personal_lambda),
                    *whole_number_problem("personal_epochs", personal_epochs)]
        if problems:
            raise ConfigError([f"learner_config: {problem}" for problem in problems])
        self._personal_lambda = float(personal_lambda)
        self._personal_epochs = personal_epochs

    def personal_weights(self, weights: Weights) -> Weights | None:
        """The client's own model; None for a client that has not trained yet."""
        if not all(PERSONAL + name in self.client_state for name in weights.names):
            return None
        return Weights.of({name: self.client_state[PERSONAL + name] for name in weights.names})

    def _train(self, task: Task) -> TrainResult:
        model = self._model()
        start = model.weights.copy()
        descent = self._descend(task)
        trained = model.weights.copy()
        model.set_weights(self.personal_weights(start) or start)
        settings = replace(task.settings, local_epochs=self._personal_epochs, local_steps=None)
        correction = Correction(self._personal_lambda, dict(start.items())) if self._personal_lambda else None
        self._descend(replace(task, settings=settings, metrics=()), correction, purpose="personal ")
        state = {PERSONAL + name: array.copy() for name, array in model.weights.items()}
        return TrainResult(trained, descent.num_samples, descent.metrics, state={**descent.state, **state})
