"""Local training of scikit-learn classifiers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, final

import numpy as np

from federation.builtin.learners.settings import metrics_wanted, overrides
from federation.core.learner import Learner
from federation.core.model import Model
from federation.core.problems import number_problem, whole_number_problem
from federation.core.types import EvalResult, TrainResult
from federation.data.client_data import ClientData, builtin_sample
from federation.errors import ConfigError

logger = logging.getLogger(__name__)


class LearningModel(Protocol):
    """What a SklearnLearner asks of its model; see federation.builtin.models.sklearn_model.SklearnModel."""

    input_shape: tuple[int, ...]
    num_classes: int

    def learn(self, x: np.ndarray, y: np.ndarray, seeds: Sequence[int], client_lr: float | None) -> bool:
        """Train with one pass for each seed; False where these data teach nothing."""
        ...

    def metrics(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Means over at least one sample."""
        ...


@final
class SklearnLearner(Learner):
    """`local_epochs` passes (`partial_fit`), or iterations of the solver, on the client's data.

    Every class of the task is known to the estimator, so clients that lack some take part. Shuffling follows from
    (seed, round, client). `client_lr` replaces the estimator's learning rate `eta0`; None leaves it as it is.
    `fit` takes `local_epochs` (or `epochs`) and `client_lr` in its config.

    Raises ConfigError for settings that cannot be, and for a model that is not scikit-learn's.
    """

    def __init__(self, model: Model, data: Any = None, *, local_epochs: int = 1,
                 client_lr: float | None = None) -> None:
        super().__init__(model, data)
        if not hasattr(model, "learn"):
            raise ConfigError(f"SklearnLearner trains model.sklearn.*, not {type(model).__name__}; other models go "
                              "with federated.learner.default")
        self._learning = cast(LearningModel, model)
        self._settings = {"local_epochs": local_epochs, "client_lr": client_lr}
        problems = _problems(self._settings)
        estimator = getattr(model, "estimator", None)
        if client_lr is not None and estimator is not None and "eta0" not in estimator.get_params():
            problems.append(f"client_lr={client_lr!r}: {type(estimator).__name__} has no rate (eta0); leave it out")
        if problems:
            raise ConfigError([f"learner_config: {problem}" for problem in problems])
        self._sample: ClientData | None = None
        self._said_single_class = False

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """Train. `num_samples` is 0, and the weights unchanged, where a client has no samples or cannot be learnt from.

        Metrics: `train_accuracy`, and `train_loss` of estimators that know probabilities, after training; and where
        `config["metrics"]` asks for it, `start_loss`, before training.
        """
        settings = self._overridden(config)
        wanted = metrics_wanted(config, ("start_loss",), "SklearnLearner")
        data = self._client_data()
        count = len(data.y)
        before = self._start_loss(data) if wanted and count else {}
        seeds = [self.random_seed(f"pass {number}") for number in range(settings["local_epochs"])]
        if count and not self._learning.learn(data.x, data.y, seeds, settings["client_lr"]):
            if not self._said_single_class:
                self._said_single_class = True
                logger.warning("clients with a single class are left out: this estimator needs two")
            count = 0
        after = self._learning.metrics(data.x, data.y) if count else {}
        metrics = {**before, **{f"train_{name}": mean for name, mean in after.items()}} if count else {}
        return TrainResult(self._model().get_weights(), count, metrics)

    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """Mean `accuracy` (and `loss`) on the evaluation samples (`x_test`); 0 samples where a client has none."""
        self._overridden(config)
        data = self._client_data()
        x, y = data.x_test, data.y_test
        return EvalResult(len(y), self._learning.metrics(x, y) if len(y) else {})

    def _start_loss(self, data: ClientData) -> dict[str, float]:
        metrics = self._learning.metrics(data.x, data.y)
        if "loss" not in metrics:
            raise ValueError(f"config: {type(self._model()).__name__} knows no probabilities, so SklearnLearner cannot "
                             "report the metric start_loss: use an estimator with predict_proba, or another aggregator")
        return {"start_loss": metrics["loss"]}

    def _overridden(self, config: Mapping[str, Any] | None) -> dict[str, Any]:
        settings = {**self._settings, **overrides(config, tuple(self._settings))}
        if problems := _problems(settings):
            raise ValueError(f"config: {'; '.join(problems)}")
        return settings

    def _client_data(self) -> ClientData:
        if self.data is not None:
            data: ClientData = self.data
            return data
        if self._sample is None:
            logger.warning("no data bound: training on a small built-in sample shaped like the model")
            self._sample = builtin_sample(self._learning.input_shape, self._learning.num_classes)
        return self._sample


def _problems(settings: Mapping[str, Any]) -> list[str]:
    rate = settings["client_lr"]
    problems = whole_number_problem("local_epochs", settings["local_epochs"])
    if rate is not None and (number_problem("client_lr", rate) or rate == 0):
        problems.append(f"client_lr={rate!r} is not a number above 0")  # scikit-learn takes no rate of 0
    return problems
