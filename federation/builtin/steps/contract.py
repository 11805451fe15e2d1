"""What a learner asks of a model that it trains in steps, whatever the library behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from federation.core.weights import Weights
from federation.data.client_data import ClientData
from federation.errors import ConfigError, DataError

#: Adam's constants (Kingma and Ba 2015, Algorithm 1).
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8

#: What keeps the division by a gradient's norm finite, in clip_norm as in torch.nn.utils.clip_grad_norm_.
CLIP_EPSILON = 1e-6

Loss = Literal["cross_entropy", "mse"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken: the optimiser, plain SGD with (heavy-ball) momentum or Adam, and the loss.

    In each step: the gradient of the batch's mean loss is scaled down to a norm of `clip_norm`, over all trainable
    parameters together, where it is longer; then a Correction is added, then `weight_decay` times the parameter, then the
    optimiser moves. `momentum` is for SGD alone.

    precision: of the passes through the model in training; parameters, gradients and evaluation keep the model's own.
    compiled_for: the most samples of a step, where the passes through the model are to be compiled; None: they are not.
    device: "cpu", "cuda:N", or "cuda" and "auto", which choose (see federation.builtin.steps.device).
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    client_lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: Literal["auto", Loss] = "auto"
    clip_norm: float | None = None
    precision: Precision = "float32"
    device: str = "cpu"
    compiled_for: int | None = None

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


@dataclass(frozen=True)
class Correction:
    """What is added to the gradient of the loss: proximal * (w - anchor) + linear, for each trainable parameter w.

    That is the gradient of proximal/2 * ||w - anchor||^2 + <linear, w>. Both are arrays by the parameter's name, shaped
    like it, which nobody changes during training; arrays of other names are ignored. `anchor` has all trainable parameters
    unless `proximal` is 0; `linear` has all of them, or is empty. A parameter that the loss does not reach in some step has
    a gradient of zero there.
    """

    proximal: float = 0.0
    anchor: Mapping[str, np.ndarray] = field(default_factory=dict)
    linear: Mapping[str, np.ndarray] = field(default_factory=dict)


class Session(Protocol):
    """One client's training."""

    #: Steps taken so far.
    num_steps: int

    def step(self, batch: np.ndarray) -> None:
        """One optimiser step on the samples with these indices (int64)."""
        ...

    def mean_loss(self) -> float:
        """The mean over all samples of all steps so far (at least one), in float64."""
        ...

    def momentum(self) -> dict[str, np.ndarray]:
        """A copy of SGD's momentum at present, by parameter; empty for an optimiser without any."""
        ...


class Steps(Protocol):
    """A model's way to be trained and evaluated."""

    def problems(self, settings: StepSettings) -> list[str]:
        """What of `settings` this model, or this machine, does not have; one sentence each."""
        ...

    def smallest_batch(self, data: ClientData) -> int:
        """The fewest of these samples that a step can take: 2 where BatchNorm has nothing to average over in one."""
        ...

    def training(self, data: ClientData, settings: StepSettings, seed: int, correction: Correction | None = None,
                 momentum: Mapping[str, np.ndarray] | None = None) -> AbstractContextManager[Session]:
        """Train from the present weights: a fresh optimiser, and randomness (dropout) that follows from `seed`.

        `correction` is added to each gradient. `momentum` is what SGD begins with, as Session.momentum gave it (copied);
        parameters that it lacks begin at zero. When the block ends, the model has the trained weights.
        """
        ...

    def evaluate(self, x: np.ndarray, y: np.ndarray, settings: StepSettings, batch_size: int,
                 seed: int) -> dict[str, float]:
        """Mean "loss", and "accuracy" for classes, over at least one sample."""
        ...


class SteppedModel(Protocol):
    """A model that a SteppedLearner can train."""

    input_shape: tuple[int, ...] | None
    num_classes: int | None

    def make_steps(self) -> Steps:
        """How to train it."""
        ...


@dataclass(frozen=True)
class Member:
    """One client of a group: its samples, those of each of its steps as indices (int64; at least one step), and the weights
    that it starts from (borrowed)."""

    data: ClientData
    batches: Sequence[np.ndarray]
    start: Weights


class GroupSteps(Protocol):
    """A model's way to be trained for several clients at once, each with weights of its own."""

    def problems(self, settings: StepSettings) -> list[str]:
        """What of `settings` does not go with that, and why this model may not; one sentence each."""
        ...

    def train(self, members: Sequence[Member], settings: StepSettings, batch_size: int) -> Iterator[tuple[int, float]]:
        """Train from the members' weights, each with a fresh optimiser, in steps of up to `batch_size` samples.

        Yields (index of the member, its mean loss as in Session.mean_loss) as soon as a member has taken its steps; until
        the next is asked for, the model has its weights. What comes out for one does not depend on the others, nor on
        its place among them. Raises for all where one cannot be trained.
        """
        ...


@runtime_checkable
class GroupedModel(Protocol):
    """A model that can be trained for several clients at once."""

    def make_group_steps(self, size: int) -> GroupSteps:
        """How to train it for up to `size` clients at once."""
        ...


def wrong_outputs(kind: Loss, outputs: int) -> ConfigError:
    """What to raise where a model's outputs do not fit the loss."""
    classifies = kind == "cross_entropy"
    wanted = "one output for each class, at least 2" if classifies else "one output"
    advice = "float targets mean regression" if classifies else "integer targets are taken for class labels"
    return ConfigError(f"the loss {kind} needs a model with {wanted}, not {outputs}: set model_config.output_size, or "
                       f"change the data ({advice})")
