"""Logistic regression of scikit-learn, by stochastic gradient descent."""

from __future__ import annotations

import math
from typing import final

import numpy as np
from sklearn.linear_model import SGDClassifier

from federation.core.model import Model
from federation.core.types import WeightsLike
from federation.core.weights import Weights
from federation.errors import ConfigError


@final
class LogisticModel(Model):
    """One-against-rest logistic regression: float64 `coef_` (classes, input_size) and `intercept_` (classes,).

    Both have their full shape from the start, whatever classes a client has seen; as scikit-learn has it, two classes
    share one row. `estimator` is an SGDClassifier with a constant learning rate; `alpha` is its L2 penalty.
    """

    def __init__(self, input_size: int = 784, output_size: int = 10, alpha: float = 1e-4) -> None:
        if output_size < 2:
            raise ConfigError("model.sklearn.logistic classifies: output_size is at least 2, and the data need class labels")
        self.classes = np.arange(output_size)
        self.input_size = input_size
        self.estimator = SGDClassifier(loss="log_loss", alpha=alpha, learning_rate="constant", eta0=0.01)
        # A fit on nothing but zeros gives the estimator its shape; what it learned is overwritten at once.
        self.estimator.partial_fit(np.zeros((output_size, input_size)), self.classes, classes=self.classes)
        self.set_weights([np.zeros_like(self.estimator.coef_), np.zeros_like(self.estimator.intercept_)])

    def get_weights(self) -> Weights:
        """A copy of `coef_` and `intercept_`."""
        return Weights.of({"coef_": self.estimator.coef_, "intercept_": self.estimator.intercept_})

    def set_weights(self, weights: WeightsLike) -> None:
        """Overwrite both; raises UpdateError unless they fit."""
        own = self.get_weights()
        own.copy_from(weights, who="the weights for LogisticModel")
        self.estimator.coef_, self.estimator.intercept_ = own["coef_"].copy(), own["intercept_"].copy()

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Input and output sizes."""
        return {"input_size": math.prod(input_shape), "output_size": num_classes or 1}
