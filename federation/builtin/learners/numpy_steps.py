"""Gradient steps for the linear model, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from federation.builtin.learners.steps import StepSettings
from federation.data.client_data import ClientData
from federation.errors import ConfigError

if TYPE_CHECKING:
    from federation.builtin.models.linear import LinearModel

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  #: Adam's constants (Kingma and Ba 2015, Algorithm 1)


class NumpySteps:
    """Trains a LinearModel in place."""

    smallest_batch = 1

    def __init__(self, model: LinearModel) -> None:
        self._model = model

    @contextmanager
    def training(self, data: ClientData, settings: StepSettings, seed: int) -> Iterator[NumpySession]:
        """See Steps; nothing here is random, so `seed` is not used."""
        yield NumpySession(self._model, data, settings)

    def evaluate(self, x: np.ndarray, y: np.ndarray, num_classes: int | None, settings: StepSettings,
                 batch_size: int) -> dict[str, float]:
        """See Steps."""
        kind = settings.loss_for(num_classes)
        weight, bias = self._model.weights
        loss = correct = 0.0
        for first in range(0, len(y), batch_size):
            scores = x[first:first + batch_size].reshape(-1, weight.shape[1]) @ weight.T + bias
            labels = y[first:first + batch_size]
            losses, _ = loss_and_gradient(scores, labels, kind)
            loss += float(losses.sum(dtype=np.float64))
            correct += int((scores.argmax(axis=1) == labels).sum())
        means = {"loss": loss / len(y)}
        return means if kind == "mse" else {**means, "accuracy": correct / len(y)}


class NumpySession:
    """One client's training; optimiser state begins at zero."""

    def __init__(self, model: LinearModel, data: ClientData, settings: StepSettings) -> None:
        self._weights = list(model.weights)
        self._x = data.x.reshape(len(data.x), -1)
        self._y = data.y
        self._settings = settings
        self._kind = settings.loss_for(data.num_classes)
        self._first = [np.zeros_like(array) for array in self._weights]
        self._second = [np.zeros_like(array) for array in self._weights]
        self._steps = 0
        self._loss = 0.0
        self._count = 0

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        weight, bias = self._weights
        x, y = self._x[batch], self._y[batch]
        losses, slope = loss_and_gradient(x @ weight.T + bias, y, self._kind)
        self._loss += float(losses.sum(dtype=np.float64))
        self._count += len(batch)
        slope /= len(batch)
        self._update([slope.T @ x, slope.sum(axis=0)])

    def mean_loss(self) -> float:
        """See Session."""
        return self._loss / self._count

    def _update(self, gradients: list[np.ndarray]) -> None:
        settings = self._settings
        rate = np.float32(settings.client_lr)
        self._steps += 1
        for array, gradient, first, second in zip(self._weights, gradients, self._first, self._second, strict=True):
            if settings.weight_decay:
                gradient = gradient + np.float32(settings.weight_decay) * array
            if settings.optimizer == "adam":
                first += np.float32(1 - BETA1) * (gradient - first)
                second += np.float32(1 - BETA2) * (gradient * gradient - second)
                scale = np.float32(np.sqrt(1 - BETA2**self._steps))
                array -= rate / np.float32(1 - BETA1**self._steps) * first / (np.sqrt(second) / scale + np.float32(EPSILON))
            elif settings.momentum:
                first *= np.float32(settings.momentum)
                first += gradient
                array -= rate * first
            else:
                array -= rate * gradient


def loss_and_gradient(scores: np.ndarray, y: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each sample (n,), and its gradient by the scores (n, outputs); float32.

    cross_entropy: softmax over the scores against labels `y`; mse: squared error of the only score against `y`.
    """
    if kind == "mse":
        if scores.shape[1] != 1:
            raise ConfigError(f"the mse loss wants a model with one output, not {scores.shape[1]}")
        error = scores - y[:, None].astype(scores.dtype)
        return (error * error)[:, 0], 2 * error
    shifted = scores - scores.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted)
    total = probabilities.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    losses = np.log(total[:, 0]) - shifted[rows, y]
    gradient = probabilities / total
    gradient[rows, y] -= 1
    return losses, gradient
