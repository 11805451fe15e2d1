"""Local training of scikit-learn estimators that learn by `partial_fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from federation.builtin.models.logistic import LogisticModel
from federation.core.learner import Learner
from federation.core.model import Model
from federation.core.types import EvalResult, TrainResult
from federation.errors import ConfigError


@final
class SklearnLearner(Learner):
    """`local_epochs` calls of `partial_fit` on the client's data, shuffled from (seed, round, client).

    Every class of the task is known to the estimator, so clients that lack some, or have only one, take part.
    """

    def __init__(self, model: Model, data: Any = None, *, local_epochs: int = 1, client_lr: float = 0.01) -> None:
        if not isinstance(model, LogisticModel):
            raise ConfigError(f"SklearnLearner trains model.sklearn.logistic, not {type(model).__name__}; other models go "
                              "with federated.learner.default")
        if local_epochs < 1 or client_lr <= 0:
            raise ConfigError(f"learner_config: local_epochs={local_epochs} must be at least 1, client_lr={client_lr} "
                              "more than 0")
        super().__init__(model, data)
        self._logistic = model
        self._local_epochs = local_epochs
        self._client_lr = client_lr

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """Train; metrics: `train_loss` and `train_accuracy` of the weights after training, on the training samples."""
        settings = config or {}
        epochs = settings.get("local_epochs", settings.get("epochs", self._local_epochs))
        x, y = _rows(self.data.x), self.data.y
        if len(y):
            estimator = self._logistic.estimator
            estimator.set_params(eta0=settings.get("client_lr", self._client_lr))
            estimator.t_ = 1.0
            for epoch in range(epochs):
                estimator.set_params(random_state=self.random_seed(f"sklearn epoch {epoch}") % 2**32)
                estimator.partial_fit(x, y, classes=self._logistic.classes)
        metrics = {f"train_{name}": value for name, value in self._scores(x, y).items()}
        return TrainResult(self._logistic.get_weights(), len(y), metrics)

    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """Mean `loss` and `accuracy` on the evaluation samples, or on the training samples where there are no others."""
        data = self.data
        x, y = (data.x_test, data.y_test) if data.get_num_test_samples() else (data.x, data.y)
        return EvalResult(len(y), self._scores(_rows(x), y))

    def _scores(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        if len(y) == 0:
            return {}
        probabilities = self._logistic.estimator.predict_proba(x)
        likelihoods = np.clip(probabilities[np.arange(len(y)), y], 1e-15, 1.0)
        accuracy = float((probabilities.argmax(axis=1) == y).mean())
        return {"loss": float(-np.log(likelihoods).mean()), "accuracy": accuracy}


def _rows(x: np.ndarray) -> np.ndarray:
    """Samples as rows of float64."""
    return x.reshape(len(x), int(np.prod(x.shape[1:]))).astype(np.float64)
