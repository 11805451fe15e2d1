"""Gradient steps for the linear model, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from federation.builtin.steps.contract import (
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPSILON,
    CLIP_EPSILON,
    Correction,
    Loss,
    StepSettings,
    wrong_outputs,
)
from federation.core.weights import Weights
from federation.data.aligned import aligned_rows
from federation.data.client_data import ClientData


class NumpySteps:
    """Trains the scores `x @ weight.T + bias` in place: float32 `weight` (outputs, inputs) and `bias` (outputs,)."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def problems(self, settings: StepSettings) -> list[str]:
        """See Steps: float32 on the CPU is all there is."""
        found = []
        if settings.precision != "float32":
            found.append(f"precision={settings.precision!r} is for torch models; model.numpy.linear trains in float32")
        if settings.compiled_for is not None:
            found.append("compile=True is for torch models")
        if settings.device not in ("auto", "cpu"):
            found.append(f"device={settings.device!r} is for torch models; model.numpy.linear trains on the cpu")
        return found

    def smallest_batch(self, data: ClientData) -> int:
        """See Steps."""
        return 1

    @contextmanager
    def training(self, data: ClientData, settings: StepSettings, seed: int, correction: Correction | None = None,
                 momentum: Mapping[str, np.ndarray] | None = None) -> Iterator[NumpySession]:
        """See Steps; nothing here is random, so `seed` is not used."""
        yield NumpySession(self._weights, data, settings, correction, momentum or {})

    def evaluate(self, x: np.ndarray, y: np.ndarray, settings: StepSettings, batch_size: int,
                 seed: int) -> dict[str, float]:
        """See Steps."""
        kind = settings.loss_for(y)
        weight, bias = self._weights
        loss, correct = 0.0, 0
        for first in range(0, len(y), batch_size):
            scores = _rows(x[first:first + batch_size]) @ weight.T + bias
            labels = y[first:first + batch_size]
            loss += float(loss_and_slope(scores, labels, kind)[0].sum(dtype=np.float64))
            correct += int((scores.argmax(axis=1) == labels).sum())
        means = {"loss": loss / len(y)}
        return means if kind == "mse" else {**means, "accuracy": correct / len(y)}


class NumpySession:
    """One client's training."""

    def __init__(self, weights: Weights, data: ClientData, settings: StepSettings, correction: Correction | None,
                 momentum: Mapping[str, np.ndarray]) -> None:
        self._names = weights.names
        self._weights = list(weights)
        self._correction = correction
        self._x, self._y = _rows(data.x), data.y
        self._settings = settings
        self._kind = settings.loss_for(data.y)
        self._first = [np.array(momentum[name]) if name in momentum else np.zeros_like(array)
                       for name, array in weights.items()]
        self._second = [np.zeros_like(array) for array in weights] if settings.optimizer == "adam" else self._first
        self.num_steps = 0
        self._loss = 0.0
        self._count = 0

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        weight, bias = self._weights
        x, y = aligned_rows(self._x, batch), self._y[batch]
        losses, slope = loss_and_slope(x @ weight.T + bias, y, self._kind)
        self._loss += float(losses.sum(dtype=np.float64))
        self._count += len(batch)
        slope /= np.float32(len(batch))
        self._update(self._adjusted([slope.T @ x, slope.sum(axis=0)]))

    def mean_loss(self) -> float:
        """See Session."""
        return self._loss / self._count

    def momentum(self) -> dict[str, np.ndarray]:
        """See Session."""
        if not self._settings.momentum:
            return {}
        return {name: array.copy() for name, array in zip(self._names, self._first, strict=True)}

    def _adjusted(self, gradients: list[np.ndarray]) -> list[np.ndarray]:
        """The gradients, in place: clipped, then corrected."""
        clip_norm, correction = self._settings.clip_norm, self._correction
        if clip_norm is not None:
            norm = math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients))
            for gradient in gradients:
                gradient *= min(1.0, clip_norm / (norm + CLIP_EPSILON))
        if correction is not None:
            for name, array, gradient in zip(self._names, self._weights, gradients, strict=True):
                if correction.proximal:
                    gradient += correction.proximal * (array - correction.anchor[name])
                if correction.linear:
                    gradient += correction.linear[name]
        return gradients

    def _update(self, gradients: list[np.ndarray]) -> None:
        # Python floats take part in float32 arithmetic as float32.
        settings = self._settings
        self.num_steps += 1
        for array, gradient, first, second in zip(self._weights, gradients, self._first, self._second, strict=True):
            if settings.weight_decay:
                gradient += settings.weight_decay * array
            if settings.optimizer == "adam":
                first += (1 - ADAM_BETA1) * (gradient - first)
                second *= ADAM_BETA2
                second += (1 - ADAM_BETA2) * (gradient * gradient)
                root = np.sqrt(second) / float(np.sqrt(1 - ADAM_BETA2**self.num_steps)) + ADAM_EPSILON
                array -= settings.client_lr / (1 - ADAM_BETA1**self.num_steps) * (first / root)
            elif settings.momentum:
                first *= settings.momentum
                first += gradient
                array -= settings.client_lr * first
            else:
                array -= settings.client_lr * gradient


def loss_and_slope(scores: np.ndarray, y: np.ndarray, kind: Loss) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each sample (n,), and its gradient by the scores (n, outputs); float32.

    cross_entropy: softmax over the scores against labels `y`; mse: squared error of the only score against `y`.
    Raises ConfigError where the model has too few or too many outputs for the loss.
    """
    outputs = scores.shape[1]
    if kind == "mse":
        if outputs != 1:
            raise wrong_outputs(kind, outputs)
        error = scores - y.reshape(-1, 1).astype(scores.dtype)
        return (error * error)[:, 0], 2 * error
    if outputs < 2:
        raise wrong_outputs(kind, outputs)
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    losses = np.log(total[:, 0]) - shifted[rows, y]
    slope = exponentials / total
    slope[rows, y] -= 1
    return losses, slope


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), int(np.prod(x.shape[1:], dtype=np.int64)))
