"""Gradient steps for torch models: flat parameters, flat gradients, one fused update a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from federation.builtin.learners.steps import StepSettings
from federation.data.client_data import ClientData

if TYPE_CHECKING:
    from federation.builtin.models.torch_model import TorchModel

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  #: Adam's constants (Kingma and Ba 2015, Algorithm 1)


class TorchSteps:
    """Trains a TorchModel in place. Gradients and optimiser state are allocated once and used for every client."""

    def __init__(self, model: TorchModel) -> None:
        self._module = model.module
        self._parameters = model.trainable()
        self._gradients = [torch.zeros_like(flat) for flat in self._parameters]
        self._state: dict[str, list[torch.Tensor]] = {}
        self._attach_gradients()
        normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self._module.modules())
        self.smallest_batch = 2 if normalises else 1

    @contextmanager
    def training(self, data: ClientData, settings: StepSettings, seed: int) -> Iterator[TorchSession]:
        """See Steps. torch's CPU generator is seeded for the time of training, and put back."""
        from federation.builtin.models.torch_model import private_randomness

        self._module.train()
        with private_randomness(seed):
            yield TorchSession(self, data, settings)

    def evaluate(self, x: np.ndarray, y: np.ndarray, num_classes: int | None, settings: StepSettings,
                 batch_size: int) -> dict[str, float]:
        """See Steps."""
        self._module.eval()
        kind = settings.loss_for(num_classes)
        samples, labels = self.inputs(x), torch.from_numpy(y)
        loss, correct = 0.0, 0
        with torch.inference_mode():
            for first in range(0, len(y), batch_size):
                scores = self._module(samples[first:first + batch_size])
                wanted = labels[first:first + batch_size]
                loss += float(loss_of(scores, wanted, kind, "none").sum(dtype=torch.float64))
                if kind == "cross_entropy":
                    correct += int((scores.argmax(1) == wanted).sum())
        means = {"loss": loss / len(y)}
        return means if kind == "mse" else {**means, "accuracy": correct / len(y)}

    def inputs(self, x: np.ndarray) -> torch.Tensor:
        """Samples in the dtype of the model; float32 ones share the array's memory."""
        samples = torch.from_numpy(x)
        dtype = self._parameters[0].dtype if self._parameters else torch.float32
        return samples if samples.dtype == dtype else samples.to(dtype)

    def scores(self, samples: torch.Tensor) -> torch.Tensor:
        """The module's output for a batch."""
        scores: torch.Tensor = self._module(samples)
        return scores

    def zero_state(self, *names: str) -> None:
        """Optimiser state of these names, all zero."""
        for name in names:
            if name not in self._state:
                self._state[name] = [torch.zeros_like(flat) for flat in self._parameters]
            for flat in self._state[name]:
                flat.zero_()

    def sgd(self, rate: float, momentum: float, weight_decay: float) -> None:
        """One step of SGD with heavy-ball momentum, then gradients of zero."""
        for number, (flat, gradient) in enumerate(zip(self._parameters, self._gradients, strict=True)):
            if weight_decay:
                gradient.add_(flat, alpha=weight_decay)
            if momentum:
                velocity = self._state["velocity"][number]
                velocity.mul_(momentum).add_(gradient)
                flat.add_(velocity, alpha=-rate)
            else:
                flat.add_(gradient, alpha=-rate)
            gradient.zero_()

    def adam(self, rate: float, weight_decay: float, number_of_step: int) -> None:
        """Step `number_of_step` (from 1) of Adam (Kingma and Ba 2015, Algorithm 1), then gradients of zero."""
        first_scale = 1 - BETA1**number_of_step
        second_scale = math.sqrt(1 - BETA2**number_of_step)
        for number, (flat, gradient) in enumerate(zip(self._parameters, self._gradients, strict=True)):
            if weight_decay:
                gradient.add_(flat, alpha=weight_decay)
            first, second, root = (self._state[name][number] for name in ("first", "second", "root"))
            first.lerp_(gradient, 1 - BETA1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            torch.sqrt(second, out=root).div_(second_scale).add_(EPSILON)
            flat.addcdiv_(first, root, value=-rate / first_scale)
            gradient.zero_()

    def _attach_gradients(self) -> None:
        """Let each parameter's gradient be a view of the flat ones, at the parameter's own place."""
        trainable = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        for flat, gradient in zip(self._parameters, self._gradients, strict=True):
            first, last = flat.data_ptr(), flat.data_ptr() + flat.numel() * flat.element_size()
            for parameter in trainable:
                if first <= parameter.data_ptr() < last and parameter.dtype == flat.dtype and parameter.numel():
                    offset = (parameter.data_ptr() - first) // flat.element_size()
                    parameter.grad = gradient[offset:offset + parameter.numel()].view_as(parameter)


class TorchSession:
    """One client's training; optimiser state begins at zero."""

    def __init__(self, steps: TorchSteps, data: ClientData, settings: StepSettings) -> None:
        self._steps = steps
        self._x = steps.inputs(data.x)
        self._y = torch.from_numpy(data.y)
        self._settings = settings
        self._kind = settings.loss_for(data.num_classes)
        self._losses: list[torch.Tensor] = []
        self._counts: list[int] = []
        if settings.optimizer == "adam":
            steps.zero_state("first", "second", "root")
        elif settings.momentum:
            steps.zero_state("velocity")

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        chosen = torch.from_numpy(batch)
        scores = self._steps.scores(self._x.index_select(0, chosen))
        loss = loss_of(scores, self._y.index_select(0, chosen), self._kind, "mean")
        loss.backward()
        self._losses.append(loss.detach())
        self._counts.append(len(batch))
        settings = self._settings
        if settings.optimizer == "adam":
            self._steps.adam(settings.client_lr, settings.weight_decay, len(self._counts))
        else:
            self._steps.sgd(settings.client_lr, settings.momentum, settings.weight_decay)

    def mean_loss(self) -> float:
        """See Session."""
        losses = torch.stack(self._losses).double().numpy()
        counts = np.array(self._counts)
        return float((losses * counts).sum() / counts.sum())


def loss_of(scores: torch.Tensor, y: torch.Tensor, kind: str, reduction: str) -> torch.Tensor:
    """The loss of a batch: "mean", or "none" for one value a sample; for mse, scores are (n, 1) or (n,)."""
    if kind == "mse":
        return functional.mse_loss(scores.reshape(y.shape), y.to(scores.dtype), reduction=reduction)
    return functional.cross_entropy(scores, y, reduction=reduction)
