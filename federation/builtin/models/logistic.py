"""Logistic regression of scikit-learn."""

from __future__ import annotations

from typing import Literal, final

from sklearn.linear_model import LogisticRegression, SGDClassifier

from federation.builtin.models.sklearn_model import SklearnModel
from federation.errors import ConfigError

#: The penalties where none are given.
ALPHA, C = 1e-4, 1.0


@final
class LogisticModel(SklearnModel):
    """Logistic regression, with `coef_` and `intercept_` as in SklearnModel, zero at first.

    solver: "sgd" is an SGDClassifier with a constant learning rate, one class against the rest, and takes part with any
    classes. "lbfgs" is LogisticRegression, softmax over the classes; clients with a single class are left out.
    `alpha` is the L2 penalty of "sgd"; `c` the inverse penalty of "lbfgs", scikit-learn's C.
    """

    def __init__(self, input_size: int = 784, output_size: int = 10, solver: Literal["sgd", "lbfgs"] = "sgd",
                 alpha: float = ALPHA, c: float = C) -> None:
        if alpha < 0 or c <= 0:
            raise ConfigError(f"model_config: alpha={alpha} is at least 0, and c={c} above 0")
        if solver not in ("sgd", "lbfgs"):
            raise ConfigError(f"model_config.solver: {solver!r} is not one of sgd, lbfgs")
        for name, value, default, owner in (("alpha", alpha, ALPHA, "sgd"), ("c", c, C, "lbfgs")):
            if value != default and solver != owner:
                raise ConfigError(f"model_config.{name}: {value} is for solver: {owner}, and it is {solver}; leave it out")
        if solver == "sgd":
            estimator = SGDClassifier(loss="log_loss", alpha=alpha, learning_rate="constant", eta0=0.01)
        else:
            estimator = LogisticRegression(C=c, solver="lbfgs")
        super().__init__(estimator, input_size, output_size)
