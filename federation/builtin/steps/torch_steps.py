"""Gradient steps for torch models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from federation.builtin.steps.contract import Loss, StepSettings, wrong_outputs
from federation.builtin.steps.optimizers import Adam, Optimizer, Sgd
from federation.builtin.steps.torch_random import private_randomness
from federation.data.client_data import ClientData

if TYPE_CHECKING:
    from federation.builtin.models.torch_model import TorchModel


class TorchSteps:
    """Trains a TorchModel in place. Optimiser state is allocated once and used for every client."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self._parameters: list[nn.Parameter] = []
        self._optimizers: dict[str, Optimizer] = {}
        self._normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.module.modules())
        self._smallest: dict[tuple[int, ...], int] = {}

    def smallest_batch(self, data: ClientData) -> int:
        """See Steps. Tried once for each shape of sample: BatchNorm2d, say, can do with one large enough image."""
        if not self._normalises:
            return 1
        shape = data.x.shape[1:]
        if shape not in self._smallest and len(data.x):
            self._smallest[shape] = 1 if self._trains_on_one(data.x[:1]) else 2
        return self._smallest.get(shape, 2)

    @contextmanager
    def training(self, data: ClientData, settings: StepSettings, seed: int) -> Iterator[TorchSession]:
        """See Steps. torch's CPU generator is seeded for the time of training, and put back."""
        module = self._model.module
        module.train()
        self._find_parameters()
        optimizer = self._optimizer(settings.optimizer)
        optimizer.begin(settings)
        kind = settings.loss_for(data.y)
        with private_randomness(seed), torch.enable_grad():
            yield TorchSession(module, self._parameters, optimizer, kind, self._inputs(data.x), _tensor(data.y))

    def evaluate(self, x: np.ndarray, y: np.ndarray, settings: StepSettings, batch_size: int,
                 seed: int) -> dict[str, float]:
        """See Steps."""
        module = self._model.module
        module.eval()
        kind = settings.loss_for(y)
        samples, targets = self._inputs(x), _tensor(y)
        loss, correct = 0.0, 0
        with private_randomness(seed), torch.no_grad():
            for first in range(0, len(y), batch_size):
                # A copy: a module may work in place on what it is given, and these are the client's own samples.
                scores = module(samples[first:first + batch_size].clone())
                wanted = targets[first:first + batch_size]
                wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
                loss += loss_of(wide, wanted, kind).item() * len(wanted)
                if kind == "cross_entropy":
                    correct += int((scores.argmax(1) == wanted).sum())
        means = {"loss": loss / len(y)}
        return means if kind == "mse" else {**means, "accuracy": correct / len(y)}

    def _inputs(self, x: np.ndarray) -> torch.Tensor:
        """Samples in the model's floating-point dtype; float32 ones share the array's memory."""
        samples = _tensor(x)
        dtype = next((parameter.dtype for parameter in self._model.module.parameters()), samples.dtype)
        return samples.to(dtype) if samples.is_floating_point() and dtype.is_floating_point else samples

    def _optimizer(self, name: str) -> Optimizer:
        """The one of this name, made once."""
        if name not in self._optimizers:
            parameters = [parameter.detach() for parameter in self._parameters]
            self._optimizers[name] = Adam(parameters) if name == "adam" else Sgd(parameters)
        return self._optimizers[name]

    def _find_parameters(self) -> None:
        """The trainable parameters as of now: a user may freeze some between rounds."""
        parameters = [parameter for parameter in self._model.module.parameters() if parameter.requires_grad]
        if [id(parameter) for parameter in parameters] != [id(parameter) for parameter in self._parameters]:
            self._parameters = parameters
            self._optimizers.clear()

    def _trains_on_one(self, x: np.ndarray) -> bool:
        module, before = self._model.module, self._model.get_weights()
        module.train()
        try:
            with private_randomness(0), torch.no_grad():
                module(self._inputs(x).clone())
        except ValueError:  # what torch raises for "more than 1 value per channel"; any other will be met in training
            return False
        finally:
            self._model.set_weights(before)
        return True


class TorchSession:
    """One client's training."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter], optimizer: Optimizer, kind: Loss,
                 x: torch.Tensor, y: torch.Tensor) -> None:
        self._module = module
        self._parameters = parameters
        self._optimizer = optimizer
        self._kind: Loss = kind
        self._x, self._y = x, y
        self._loss = 0.0
        self._count = 0

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        chosen = torch.from_numpy(batch)
        loss = loss_of(self._module(self._x.index_select(0, chosen)), self._y.index_select(0, chosen), self._kind)
        if self._parameters:
            self._optimizer.step(torch.autograd.grad(loss, self._parameters, allow_unused=True))
        self._loss += loss.item() * len(batch)
        self._count += len(batch)

    def mean_loss(self) -> float:
        """See Session."""
        return self._loss / self._count


def loss_of(scores: torch.Tensor, y: torch.Tensor, kind: Loss) -> torch.Tensor:
    """The mean loss of a batch. For mse, scores have as many values as `y`, in whatever shape.

    Raises ConfigError where the model has too few or too many outputs for the loss.
    """
    if kind == "mse":
        if scores.numel() != y.numel():
            raise wrong_outputs(kind, scores.shape[1:].numel())
        return functional.mse_loss(scores.reshape(y.shape), y.to(scores.dtype))
    if scores.ndim < 2 or scores.shape[1] < 2:
        raise wrong_outputs(kind, scores.shape[1:].numel())
    return functional.cross_entropy(scores, y)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory; a copy of a read-only one, which torch has no notion of."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
