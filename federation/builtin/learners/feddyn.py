"""FedDyn: Acar et al. 2021, "Federated learning based on dynamic regularization"."""

from __future__ import annotations

from typing import Any, Unpack, final

import numpy as np

from federation.builtin.learners.stepped import SteppedLearner, SteppedSettings, Task
from federation.builtin.steps.contract import Correction
from federation.core.model import Model
from federation.core.problems import number_problem
from federation.core.types import TrainResult
from federation.core.weights import rounded
from federation.errors import ConfigError

#: What the names of gradients begin with in a client's state.
GRADIENT = "gradient."


@final
class FedDynLearner(SteppedLearner):
    """Minimises loss - <g, w> + alpha/2 * ||w - w_global||^2, where w_global is what training began with (Algorithm 1).

    g, one array for each parameter, is zero at first; after training it becomes g - alpha * (w - w_global), which the
    client keeps as `gradient.<name>`. `alpha` is the same number as `aggregator_config.alpha`. Over trainable parameters;
    the loss reported is that of the data alone. All other settings are those of the default learner.

    Raises ConfigError for settings that cannot be.
    """

    def __init__(self, model: Model, data: Any = None, *, alpha: float = 0.01,
                 **settings: Unpack[SteppedSettings]) -> None:
        super().__init__(model, data, **settings)
        if number_problem("alpha", alpha) or alpha == 0:
            raise ConfigError(f"learner_config: alpha={alpha!r} is not a number above 0")
        self._alpha = float(alpha)

    def _train(self, task: Task) -> TrainResult:
        start = self._model().weights.copy()
        names = [start.names[index] for index in start.layout.parameters]
        gradients = {name: self.client_state.get(GRADIENT + name, np.zeros_like(start[name])) for name in names}
        correction = Correction(self._alpha, dict(start.items()), {name: -gradients[name] for name in names})
        descent = self._descend(task, correction)
        trained = self._model().weights
        state = dict(descent.state)
        for name in names:
            moved = trained[name].astype(np.float64) - start[name].astype(np.float64)
            state[GRADIENT + name] = rounded(gradients[name].astype(np.float64) - self._alpha * moved, start[name].dtype)
        return TrainResult(trained, descent.num_samples, descent.metrics, state=state)
