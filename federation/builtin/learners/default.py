"""Local training by plain gradient steps."""

from __future__ import annotations

from typing import final

from federation.builtin.learners.stepped import SteppedLearner, Task
from federation.core.types import TrainResult


@final
class DefaultLearner(SteppedLearner):
    """Minimises the loss of the client's data, by `local_epochs` passes or `local_steps` steps.

    The local part of FedAvg (McMahan et al. 2017, Algorithm 1). Settings, results and errors are those of every
    SteppedLearner.
    """

    def _train(self, task: Task) -> TrainResult:
        descent = self._descend(task)
        return TrainResult(self._model().weights, len(task.data.y), descent.metrics, state=descent.state or None)
