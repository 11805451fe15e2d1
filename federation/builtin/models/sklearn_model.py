"""Any linear scikit-learn classifier as a model: its `coef_` and `intercept_`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from federation.core.model import Model
from federation.core.types import WeightsLike
from federation.core.weights import Weights
from federation.errors import ConfigError, DataError


class SklearnModel(Model):
    """The float64 arrays `coef_` (output_size, input_size) and `intercept_` (output_size,) of a linear classifier.

    Both have their full shape from the start, whatever classes a client has seen; as scikit-learn has it, two classes
    share one row. `estimator` is cloned, and learns by `partial_fit(x, y, classes)`; one without, such as
    LogisticRegression, by `fit` with `warm_start` on the rows of the classes that the client has.

    Raises ConfigError for an estimator that keeps what it has learnt anywhere else.
    """

    def __init__(self, estimator: Any, input_size: int, output_size: int) -> None:
        if input_size < 1 or output_size < 2:
            raise ConfigError(f"model_config: input_size={input_size} is at least 1 and output_size={output_size}, the "
                              "number of classes, at least 2: scikit-learn models classify")
        self._in_parts = hasattr(estimator, "partial_fit")
        settings = estimator.get_params()
        if settings.get("average"):
            raise ConfigError(f"{estimator!r}: with average, the estimator goes on from weights of its own, not from "
                              "coef_; clients are averaged anyway")
        if not self._in_parts and "warm_start" not in settings:
            raise ConfigError(f"{type(estimator).__name__} has neither partial_fit nor warm_start, so it cannot go on "
                              "from the weights that a client is given")
        self.input_shape: tuple[int, ...] = (input_size,)
        self.num_classes = output_size
        self.classes = np.arange(output_size)
        self.estimator = clone(estimator)
        if "random_state" in settings:  # else the first fit would draw from NumPy's global generator
            self.estimator.set_params(random_state=0)
        # A fit on nothing but zeros gives the estimator its shape; what it learnt is overwritten at once.
        x, y = np.zeros((2 * output_size, input_size)), np.repeat(self.classes, 2)
        if self._in_parts:
            self.estimator.partial_fit(x, y, classes=self.classes)
        else:
            self.estimator.set_params(warm_start=True).fit(x, y)
        rows = 1 if output_size == 2 else output_size
        for name, shape in (("coef_", (rows, input_size)), ("intercept_", (rows,))):
            found = getattr(getattr(self.estimator, name, None), "shape", "none")
            if found != shape:
                raise ConfigError(f"{type(estimator).__name__} has {name} of shape {found}; wanted is {shape}")
        self._put(np.zeros((rows, input_size)), np.zeros(rows))

    def get_weights(self) -> Weights:
        """A copy of `coef_` and `intercept_`."""
        return Weights.of({"coef_": self.estimator.coef_, "intercept_": self.estimator.intercept_})

    def set_weights(self, weights: WeightsLike) -> None:
        """Overwrite both; raises UpdateError unless they fit."""
        own = self.get_weights()
        own.copy_from(weights, who=f"the weights for {type(self).__name__}")
        self._put(own["coef_"].copy(), own["intercept_"].copy())

    def learn(self, x: np.ndarray, y: np.ndarray, seeds: Sequence[int], client_lr: float | None) -> bool:
        """Go on from the present weights on (x, y), with one pass (or iteration of the solver) for each of `seeds`.

        `x`: (n, ...) real; `y`: int64 (n,), n at least 1. `client_lr` is the estimator's `eta0`, where it has one.
        Returns False, with weights unchanged, where the estimator cannot learn from a single class.
        """
        rows, settings = self._rows(x, y), self.estimator.get_params()
        if client_lr is None:
            return self._go_on(rows, y, seeds)
        if "eta0" not in settings:
            raise ConfigError(f"learner_config.client_lr: {type(self.estimator).__name__} has no rate (eta0)")
        self.estimator.set_params(eta0=client_lr)
        try:
            return self._go_on(rows, y, seeds)
        finally:
            self.estimator.set_params(eta0=settings["eta0"])  # the next call may want the estimator's own

    def metrics(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Mean "accuracy" over (x, y), at least one sample; and "loss", the cross entropy, of estimators that know
        probabilities."""
        rows = self._rows(x, y)
        means = {"accuracy": float((self.estimator.predict(rows) == y).mean())}
        if hasattr(self.estimator, "predict_proba"):
            with np.errstate(divide="ignore", invalid="ignore"):
                probabilities = self.estimator.predict_proba(rows)
            # Scores so low that all probabilities vanish say nothing: 0 / 0 stands for "any class".
            likelihoods = np.nan_to_num(probabilities[np.arange(len(y)), y], nan=1 / self.num_classes)
            means["loss"] = float(-np.log(np.clip(likelihoods, 1e-15, 1.0)).mean())
        return means

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Input size and number of classes."""
        return {"input_size": math.prod(input_shape), "output_size": num_classes or 1}

    def _go_on(self, rows: np.ndarray, y: np.ndarray, seeds: Sequence[int]) -> bool:
        if not self._in_parts:
            return self._solve(rows, y, seeds)
        if hasattr(self.estimator, "t_"):
            self.estimator.t_ = 1.0  # the schedule's clock would tell one client from the next
        for seed in seeds:
            if "random_state" in self.estimator.get_params():
                self.estimator.set_params(random_state=seed % 2**32)
            self.estimator.partial_fit(rows, y, classes=self.classes)
        return True

    def _solve(self, rows: np.ndarray, y: np.ndarray, seeds: Sequence[int]) -> bool:
        present = np.unique(y)
        if len(present) < 2:
            return False
        coef, intercept = self.estimator.coef_.copy(), self.estimator.intercept_.copy()
        local = clone(self.estimator).set_params(max_iter=len(seeds), random_state=seeds[0] % 2**32)
        local.classes_ = present
        if len(present) == 2 < self.num_classes:
            # Two classes of several: scikit-learn fits the difference of their rows, which leaves their mean as it is.
            low, high = present
            local.coef_, local.intercept_ = (rows_[[high]] - rows_[[low]] for rows_ in (coef, intercept))
            _fit(local, rows, y)
            for all_rows, difference in ((coef, local.coef_[0]), (intercept, local.intercept_[0])):
                mean = (all_rows[low] + all_rows[high]) / 2
                all_rows[low], all_rows[high] = mean - difference / 2, mean + difference / 2
        else:
            chosen = slice(None) if self.num_classes == 2 else present
            local.coef_, local.intercept_ = coef[chosen], intercept[chosen]
            _fit(local, rows, y)
            coef[chosen], intercept[chosen] = local.coef_, local.intercept_
        self._put(coef, intercept)
        return True

    def _put(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        self.estimator.coef_, self.estimator.intercept_ = coef, intercept

    def _rows(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Samples as rows of float64; raises DataError unless they and their labels fit."""
        [wanted] = self.input_shape
        rows = x.reshape(len(x), int(np.prod(x.shape[1:], dtype=np.int64))).astype(np.float64)
        if rows.shape[1] != wanted:
            raise DataError(f"samples have {rows.shape[1]} features, the model {wanted}")
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= self.num_classes:
            raise DataError(f"labels are integers from 0 to {self.num_classes - 1}, but these are {y.dtype} from "
                            f"{y.min()} to {y.max()}")
        return rows


def _fit(estimator: Any, x: np.ndarray, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few iterations a round are the idea
        estimator.fit(x, y)
