"""What a learner asks of a model that it trains in steps, whatever the library behind it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from federation.data.client_data import ClientData
from federation.errors import ConfigError, DataError

#: Adam's constants (Kingma and Ba 2015, Algorithm 1).
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8

Loss = Literal["cross_entropy", "mse"]


@dataclass(frozen=True)
class StepSettings:
    """The optimiser, plain SGD with (heavy-ball) momentum or Adam, and the loss.

    `weight_decay` times the parameter is added to the gradient in both. `momentum` is for SGD alone.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    client_lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: Literal["auto", Loss] = "auto"

    def loss_for(self, y: np.ndarray) -> Loss:
        """The loss for targets `y`: "auto" is cross_entropy for integers, which are class labels, and mse for floats.

        Raises ConfigError where the loss that was asked for cannot be had with `y`, DataError for negative labels.
        """
        is_label = y.dtype.kind in "iu"
        kind: Loss = self.loss if self.loss != "auto" else "cross_entropy" if is_label else "mse"
        if kind == "mse":
            return kind
        if not is_label:
            raise ConfigError(f"learner_config.loss: cross_entropy needs class labels (integers), but the targets are "
                              f"{y.dtype}; use mse")
        if len(y) and y.min() < 0:
            raise DataError(f"class labels are 0 and up, but {y.min()} is among them")
        return kind


class Session(Protocol):
    """One client's training."""

    def step(self, batch: np.ndarray) -> None:
        """One optimiser step on the samples with these indices (int64)."""
        ...

    def mean_loss(self) -> float:
        """The mean over all samples of all steps so far (at least one), in float64."""
        ...


class Steps(Protocol):
    """A model's way to be trained and evaluated."""

    def smallest_batch(self, data: ClientData) -> int:
        """The fewest of these samples that a step can take: 2 where BatchNorm has nothing to average over in one."""
        ...

    def training(self, data: ClientData, settings: StepSettings, seed: int) -> AbstractContextManager[Session]:
        """Train from the present weights: a fresh optimiser, and randomness (dropout) that follows from `seed`."""
        ...

    def evaluate(self, x: np.ndarray, y: np.ndarray, settings: StepSettings, batch_size: int,
                 seed: int) -> dict[str, float]:
        """Mean "loss", and "accuracy" for classes, over at least one sample."""
        ...


class SteppedModel(Protocol):
    """A model that a DefaultLearner can train."""

    input_shape: tuple[int, ...] | None
    num_classes: int | None

    def make_steps(self) -> Steps:
        """How to train it."""
        ...


def wrong_outputs(kind: Loss, outputs: int) -> ConfigError:
    """What to raise where a model's outputs do not fit the loss."""
    classifies = kind == "cross_entropy"
    wanted = "one output for each class, at least 2" if classifies else "one output"
    advice = "float targets mean regression" if classifies else "integer targets are taken for class labels"
    return ConfigError(f"the loss {kind} needs a model with {wanted}, not {outputs}: set model_config.output_size, or "
                       f"change the data ({advice})")
