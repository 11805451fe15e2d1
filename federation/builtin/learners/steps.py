"""What a learner asks of a model that it trains in steps, whatever the library behind it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from federation.data.client_data import ClientData


@dataclass(frozen=True)
class StepSettings:
    """The optimiser: plain SGD with (heavy-ball) momentum, or Adam; weight decay is added to the gradient in both."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    client_lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: Literal["auto", "cross_entropy", "mse"] = "auto"

    def loss_for(self, num_classes: int | None) -> Literal["cross_entropy", "mse"]:
        """The loss that "auto" means for these data."""
        if self.loss != "auto":
            return self.loss
        return "mse" if num_classes is None else "cross_entropy"


class Session(Protocol):
    """One client's training."""

    def step(self, batch: np.ndarray) -> None:
        """One optimiser step on the samples with these indices (int64)."""
        ...

    def mean_loss(self) -> float:
        """The mean over all samples of all steps so far, in float64."""
        ...


class Steps(Protocol):
    """A model's way to be trained and evaluated. `smallest_batch` samples are the fewest that a step can take."""

    smallest_batch: int

    def training(self, data: ClientData, settings: StepSettings, seed: int) -> AbstractContextManager[Session]:
        """Train from the present weights: a fresh optimiser, and randomness (dropout) that follows from `seed`."""
        ...

    def evaluate(self, x: np.ndarray, y: np.ndarray, num_classes: int | None, settings: StepSettings,
                 batch_size: int) -> dict[str, float]:
        """Mean "loss", and "accuracy" for classes, over at least one sample."""
        ...


class SteppedModel(Protocol):
    """A model that a DefaultLearner can train."""

    input_shape: tuple[int, ...] | None
    num_classes: int | None

    def make_steps(self) -> Steps:
        """How to train it."""
        ...
