"""Gradient steps for torch models."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from federation.builtin.steps.compiled import CompiledGradients
from federation.builtin.steps.contract import Correction, Loss, Session, StepSettings
from federation.builtin.steps.dense import DenseSteps
from federation.builtin.steps.device import choose_device
from federation.builtin.steps.device_copy import DeviceCopy
from federation.builtin.steps.loss_scale import LossScale
from federation.builtin.steps.optimizers import Adam, Optimizer, Sgd
from federation.builtin.steps.torch_arrays import as_array, as_inputs, as_tensor
from federation.builtin.steps.torch_gradients import Adjustment
from federation.builtin.steps.torch_losses import loss_of
from federation.builtin.steps.torch_random import private_randomness
from federation.data.client_data import ClientData
from federation.errors import ConfigError

if TYPE_CHECKING:
    from federation.builtin.models.torch_model import TorchModel


_CPU = torch.device("cpu")
_LOW_PRECISION = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchSteps:
    """Trains a TorchModel in place. Optimiser state is allocated once and used for every client.

    On the CPU it is the model's own module that is trained. On another device it is a copy of it (see DeviceCopy), and so
    for evaluation.
    """

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self._copies: dict[torch.device, DeviceCopy] = {}
        self._named: dict[nn.Module, list[tuple[str, nn.Parameter]]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._compiled: dict[tuple[int, Loss, int, str], CompiledGradients] = {}
        self._dense: dict[tuple[int, Loss], DenseSteps | None] = {}
        self._normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.module.modules())
        self._smallest: dict[tuple[int, ...], int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchSteps:
        """Those of the model's copy: what is kept here works on the memory of this one."""
        return TorchSteps(copy.deepcopy(self._model, memo))

    def smallest_batch(self, data: ClientData) -> int:
        """See Steps. Tried once for each shape of sample: BatchNorm2d, say, can do with one large enough image."""
        if not self._normalises:
            return 1
        shape = _stored(data)[0].shape[1:]
        if shape not in self._smallest and len(data.y):
            self._smallest[shape] = 1 if self._trains_on_one(data.x[:1]) else 2
        return self._smallest.get(shape, 2)

    def problems(self, settings: StepSettings) -> list[str]:
        """See Steps."""
        try:
            device = self._device(settings)
        except ConfigError as error:
            return [problem.removeprefix("learner_config: ") for problem in error.problems]
        found = []
        if settings.precision == "float16" and device.type == "cpu":
            found.append("precision='float16' is for GPUs, and this trains on the cpu: use bfloat16 or float32")
        if settings.compiled_for is not None and settings.precision == "float16":
            found.append("compile=True works in float32 and bfloat16")
        if settings.compiled_for is not None and self._normalises:
            found.append("compile=True fills up small batches, which BatchNorm would average over; use a model without it "
                         "(GroupNorm), or leave compile out")
        return found

    @contextmanager
    def training(self, data: ClientData, settings: StepSettings, seed: int, correction: Correction | None = None,
                 momentum: Mapping[str, np.ndarray] | None = None) -> Iterator[Session]:
        """See Steps. torch's generators are seeded for the time of training, and put back."""
        device = self._device(settings)
        if self._is_home(device):
            with self._session(self._model.module, device, data, settings, seed, correction, momentum) as session:
                yield session
        else:
            with (self._copy(device).trained() as module,
                  self._session(module, device, data, settings, seed, correction, momentum) as session):
                yield session

    def evaluate(self, x: np.ndarray, y: np.ndarray, settings: StepSettings, batch_size: int,
                 seed: int) -> dict[str, float]:
        """See Steps."""
        device = self._device(settings)
        module = self._model.module if self._is_home(device) else self._copy(device).filled()
        module.eval()
        kind = settings.loss_for(y)
        samples, targets = self._inputs(x).to(device), as_tensor(y).to(device)
        loss, correct = 0.0, 0
        with private_randomness(seed, device), torch.no_grad():
            for first in range(0, len(y), batch_size):
                # A copy: a module may work in place on what it is given, and these are the client's own samples.
                scores = module(_laid_out(samples[first:first + batch_size].clone()))
                wanted = targets[first:first + batch_size]
                wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
                loss += loss_of(wide, wanted, kind).item() * len(wanted)
                if kind == "cross_entropy":
                    correct += int((scores.argmax(1) == wanted).sum())
        means = {"loss": loss / len(y)}
        return means if kind == "mse" else {**means, "accuracy": correct / y.size}

    @contextmanager
    def _session(self, module: nn.Module, device: torch.device, data: ClientData, settings: StepSettings, seed: int,
                 correction: Correction | None, momentum: Mapping[str, np.ndarray] | None) -> Iterator[Session]:
        self._find_parameters(module)
        kind = settings.loss_for(data.y)
        dense = self._dense_steps(module, settings, kind) if correction is None and device.type == "cpu" else None
        if dense is not None:
            x, rows = _stored(data)
            quick = dense.session(x, data.y, settings.client_lr, rows)
            if quick is not None:  # in training or not, such a network does the same, and nothing at random
                yield quick
                return
        samples, targets = self._inputs(data.x).to(device), as_tensor(data.y).to(device)
        module.train()  # also where it is in training itself: a part of it may not be
        optimizer = self._optimizer(settings.optimizer)
        optimizer.begin(settings)
        if momentum and isinstance(optimizer, Sgd):
            for name, velocity in zip(self._parameters, optimizer.velocities, strict=True):
                if name in momentum:
                    velocity.copy_(as_tensor(momentum[name]))
        compiled = None
        if settings.compiled_for is not None and self._parameters:
            compiled = self._compiled_gradients(module, settings, settings.compiled_for, kind)
        with private_randomness(seed, device), torch.enable_grad():
            yield TorchSession(module, self._parameters, optimizer, settings, kind, correction, samples, targets, compiled)

    def _device(self, settings: StepSettings) -> torch.device:
        """Where to train; a launcher's variables say which GPU is this rank's."""
        return _CPU if settings.device == "cpu" else choose_device(settings.device, os.environ)

    def _is_home(self, device: torch.device) -> bool:
        """Whether the model's own module can be trained there."""
        return device.type == "cpu"

    def _copy(self, device: torch.device) -> DeviceCopy:
        """The module on `device`, made once."""
        if device not in self._copies:
            self._copies[device] = DeviceCopy(self._model, device)
        return self._copies[device]

    def _inputs(self, x: np.ndarray) -> torch.Tensor:
        """Samples in the model's floating-point dtype; float32 ones share the array's memory."""
        named = self._all_parameters(self._model.module)
        return as_inputs(x, named[0][1].dtype if named else None)

    def _optimizer(self, name: str) -> Optimizer:
        """The one of this name, made once."""
        if name not in self._optimizers:
            parameters = [parameter.detach() for parameter in self._parameters.values()]
            self._optimizers[name] = Adam(parameters) if name == "adam" else Sgd(parameters)
        return self._optimizers[name]

    def _dense_steps(self, module: nn.Module, settings: StepSettings, kind: Loss) -> DenseSteps | None:
        """Steps that are written out, where there are any for this network and these settings; looked for once."""
        is_plain = settings.optimizer == "sgd" and settings.momentum == settings.weight_decay == 0
        if not is_plain or settings.clip_norm is not None or settings.precision != "float32":
            return None
        key = id(module), kind
        if key not in self._dense:
            self._dense[key] = DenseSteps.find(module, list(self._parameters.values()), kind)
        return self._dense[key]

    def _compiled_gradients(self, module: nn.Module, settings: StepSettings, largest: int, kind: Loss) -> CompiledGradients:
        """Those of this module, kind of loss and size of batch, made once."""
        key = id(module), kind, largest, settings.precision
        if key not in self._compiled:
            detached = {name: parameter.detach() for name, parameter in self._parameters.items()}
            self._compiled[key] = CompiledGradients(module, detached, kind, largest, _LOW_PRECISION.get(settings.precision))
        return self._compiled[key]

    def _find_parameters(self, module: nn.Module) -> None:
        """The trainable parameters as of now: a user may freeze some between rounds."""
        named = {name: parameter for name, parameter in self._all_parameters(module) if parameter.requires_grad}
        if list(map(id, named.values())) != list(map(id, self._parameters.values())):
            self._parameters = named
            self._optimizers.clear()
            self._compiled.clear()
            self._dense.clear()

    def _all_parameters(self, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Those of a module, looked for once: a TorchModel's do not change."""
        if module not in self._named:
            self._named[module] = list(module.named_parameters())
        return self._named[module]

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


def _stored(data: ClientData) -> tuple[np.ndarray, np.ndarray | None]:
    """Where x lies, and in which rows; data of a user's own class need have no more than an x."""
    return data.stored if hasattr(data, "stored") else (data.x, None)


class TorchSession:
    """One client's training."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer,
                 settings: StepSettings, kind: Loss, correction: Correction | None, x: torch.Tensor,
                 y: torch.Tensor, compiled: CompiledGradients | None = None) -> None:
        self._module = module
        self._compiled = compiled
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._optimizer = optimizer
        self._kind: Loss = kind
        self._x, self._y = x, y
        self._low_precision = _LOW_PRECISION.get(settings.precision)
        self._scale = LossScale() if settings.precision == "float16" else None
        self._adjust = None
        if settings.clip_norm is not None or correction is not None:
            detached = {name: parameter.detach() for name, parameter in parameters.items()}
            self._adjust = Adjustment(detached, settings.clip_norm, correction)
        self.num_steps = 0
        self._loss = 0.0
        self._count = 0

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        chosen = torch.from_numpy(batch if self._compiled is None else self._compiled.filled(batch)).to(self._x.device)
        x, y = _laid_out(self._x.index_select(0, chosen)), self._y.index_select(0, chosen)
        self._loss += len(batch) * self._step(x, y, len(batch))
        self._count += len(batch)

    def mean_loss(self) -> float:
        """See Session."""
        return self._loss / self._count

    def momentum(self) -> dict[str, np.ndarray]:
        """See Session."""
        velocities = self._optimizer.velocities if isinstance(self._optimizer, Sgd) else []
        return {name: as_array(velocity) for name, velocity in zip(self._names, velocities, strict=bool(velocities))}

    def _step(self, x: torch.Tensor, y: torch.Tensor, count: int) -> float:
        """Down the gradient of the first `count` samples' loss, which is returned."""
        gradients: Sequence[torch.Tensor | None] | None
        if self._compiled is not None:
            gradients, loss = self._compiled(x, y, count)
        else:
            loss = loss_of(self._scores(x), y, self._kind)
            gradients = self._gradients(loss) if self._parameters else []
        if gradients is not None:
            self._optimizer.step(gradients if self._adjust is None else self._adjust(gradients))
            self.num_steps += 1
        return loss.item()

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        if self._low_precision is None:
            scores: torch.Tensor = self._module(x)
            return scores
        with torch.autocast(x.device.type, self._low_precision):
            scores = self._module(x)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def _gradients(self, loss: torch.Tensor) -> Sequence[torch.Tensor | None] | None:
        """Of the loss; None where the step is to be left out."""
        if self._scale is None:
            return torch.autograd.grad(loss, self._parameters, allow_unused=True)
        scaled = loss * self._scale.factor
        return self._scale.unscaled(torch.autograd.grad(scaled, self._parameters, allow_unused=True))


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """Images with the channels of a pixel side by side, as convolutions like them best; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
