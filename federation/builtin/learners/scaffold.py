"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning"."""

from __future__ import annotations

from typing import Any, Unpack, final

import numpy as np

from federation.builtin.learners.stepped import SteppedLearner, SteppedSettings, Task
from federation.builtin.steps.contract import Correction
from federation.core.model import Model
from federation.core.types import TrainResult
from federation.core.weights import Weights, rounded
from federation.errors import ConfigError

#: What the names of control variates begin with, in shared arrays and in a client's state.
CONTROL = "control."


@final
class ScaffoldLearner(SteppedLearner):
    """Follows gradient - c_i + c, where the control variate c_i is the client's and c that of all (Algorithm 1, option II).

    With x the weights to begin with, y those after K steps: c_i+ = c_i - c + (x - y) / (K * client_lr), which the client
    keeps as `control.<name>` for each parameter, zero at first. The aggregator gets c + (c_i+ - c_i). Computed in float64
    and rounded once. A client that takes no step keeps c_i, and answers with c.

    The optimiser is plain SGD without momentum, on which the rule for c_i+ rests. All other settings are those of the
    default learner.

    Raises ConfigError for settings that cannot be, and where the aggregator does not share c.
    """

    def __init__(self, model: Model, data: Any = None, **settings: Unpack[SteppedSettings]) -> None:
        super().__init__(model, data, **settings)
        problems = []
        if self._step_settings.optimizer != "sgd":
            problems.append(f"optimizer={self._step_settings.optimizer!r}: SCAFFOLD takes steps of plain sgd")
        if self._step_settings.momentum:
            problems.append(f"momentum={self._step_settings.momentum!r}: SCAFFOLD takes steps of plain sgd; momentum on "
                            "the server has its place in aggregators")
        if self._fit_settings.client_lr == 0:
            problems.append("client_lr=0: SCAFFOLD divides by it; give a rate above 0")
        if problems:
            raise ConfigError([f"learner_config: {problem}" for problem in problems])

    def _train(self, task: Task) -> TrainResult:
        client_lr = task.step_settings.client_lr
        if client_lr == 0:
            raise ConfigError("learner_config: client_lr=0 in this round, by which SCAFFOLD divides: give a rate above 0 "
                              "(and a schedule with lr_gamma or lr_floor above 0)")
        shared = self._shared_controls()
        start = self._model().weights.copy()
        common = {name.removeprefix(CONTROL): array for name, array in shared.items()}
        own = {name: self.client_state.get(CONTROL + name, np.zeros_like(array)) for name, array in common.items()}
        descent = self._descend(task, Correction(linear={name: common[name] - own[name] for name in common}))
        if descent.num_steps == 0:
            return self._skip()
        trained = self._model().weights
        new, answer = {}, Weights.zeros(shared.layout)
        for name, array in common.items():
            moved = start[name].astype(np.float64) - trained[name].astype(np.float64)
            before = own[name].astype(np.float64)
            after = rounded(before - array.astype(np.float64) + moved / (descent.num_steps * client_lr), array.dtype)
            new[CONTROL + name] = after
            answer[CONTROL + name][...] = rounded(array.astype(np.float64) + (after.astype(np.float64) - before), array.dtype)
        return TrainResult(trained, descent.num_samples, descent.metrics, answer, new)

    def _skip(self) -> TrainResult:
        return TrainResult(self._model().weights, 0, shared=self._shared_controls().copy())

    def _shared_controls(self) -> Weights:
        """c, one array for each parameter."""
        weights = self._model().weights
        wanted = [CONTROL + weights.names[index] for index in weights.layout.parameters]
        if self.shared is None or sorted(self.shared.names) != sorted(wanted):
            raise ConfigError(f"ScaffoldLearner needs a control variate for each parameter, shared by the aggregator: use "
                              f"federated.aggregator.scaffold with it (shared are "
                              f"{'none' if self.shared is None else ', '.join(self.shared.names)}; wanted are "
                              f"{', '.join(wanted)})")
        return self.shared
