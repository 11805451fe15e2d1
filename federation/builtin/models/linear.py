"""A linear model in NumPy: softmax regression, or least squares. Needs no torch."""

from __future__ import annotations

import copy
import math
from typing import Any, final

import numpy as np

from federation.builtin.steps.numpy_steps import NumpySteps
from federation.core.model import Model
from federation.core.types import WeightsLike
from federation.core.weights import Weights
from federation.errors import ConfigError


@final
class LinearModel(Model):
    """Scores `x @ weight.T + bias`: float32 `weight` (output_size, input_size) and `bias` (output_size,).

    With class labels, the scores are the logits of a softmax; with targets, `output_size` is 1 and they are
    predictions. Samples may have any shape of `input_size` values. Both arrays are zero at first, which is as good a
    start as any: the loss is convex.
    """

    def __init__(self, input_size: int = 784, output_size: int = 10) -> None:
        if min(input_size, output_size) < 1:
            raise ConfigError(f"model_config: input_size={input_size} and output_size={output_size} are at least 1")
        self.input_shape = (input_size,)
        self.num_classes = output_size if output_size > 1 else None
        self._weights = Weights.of({"weight": np.zeros((output_size, input_size), np.float32),
                                    "bias": np.zeros(output_size, np.float32)})
        self._weights.borrowed = True

    @property
    def weights(self) -> Weights:
        """The live weights."""
        return self._weights

    def get_weights(self) -> Weights:
        """A copy of `weight` and `bias`."""
        return self._weights.copy()

    def set_weights(self, weights: WeightsLike) -> None:
        """Overwrite both; raises UpdateError unless they fit."""
        self._weights.copy_from(weights, who="the weights for LinearModel")

    def make_steps(self) -> NumpySteps:
        """How a learner trains this model."""
        return NumpySteps(self._weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> LinearModel:
        """A model of its own, whose weights are as live."""
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone._weights = copy.deepcopy(self._weights, memo)
        clone._weights.borrowed = True
        return clone

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Input and output sizes."""
        return {"input_size": math.prod(input_shape), "output_size": num_classes or 1}
