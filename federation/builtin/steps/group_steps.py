"""Training several clients of a torch model at once: one call of each operation for all of them."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from federation.builtin.steps.client_stack import ClientStack, stack_key, trainable, try_out
from federation.builtin.steps.contract import Loss, Member, StepSettings
from federation.builtin.steps.device import choose_device
from federation.builtin.steps.device_copy import DeviceCopy
from federation.builtin.steps.torch_arrays import as_inputs, as_tensor
from federation.errors import ConfigError

if TYPE_CHECKING:
    from federation.builtin.models.torch_model import TorchModel


class TorchGroupSteps:
    """Trains a TorchModel for up to `size` clients at once, by torch.func.vmap; see GroupSteps.

    Kernels choose their way by the sizes of what they are given. So a group always has exactly `size` places, and a step
    exactly the samples of a full batch: the first client is repeated at places that are left, and samples of weight 0 fill
    up a batch. A client whose steps are over stays at its place, and nothing comes of what is computed there from then on.
    So a client's numbers follow from its own data, `size`, the size of a batch and the machine alone. They are close to
    those of a client that is trained by itself, but not the same bits; a parameter that the loss does not reach has a
    gradient of 0.
    """

    def __init__(self, model: TorchModel, size: int) -> None:
        self._model = model
        self._size = size
        self._copies: dict[torch.device, DeviceCopy] = {}
        self._stack: ClientStack | None = None
        self._tried: set[tuple[str, Loss]] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchGroupSteps:
        """Those of the model's copy: what is kept here works on the memory of this one."""
        return TorchGroupSteps(copy.deepcopy(self._model, memo), self._size)

    def problems(self, settings: StepSettings) -> list[str]:
        """See GroupSteps. The model is tried on zeros, where their shape and the loss are known; else on the first samples."""
        given = f"client_batch={self._size}"
        found = []
        if settings.compiled_for is not None:
            found.append(f"{given} and compile=True do not go together; leave one of them out")
        if settings.precision != "float32":
            found.append(f"{given} works in float32, not with precision={settings.precision!r}; leave one of them out")
        for name, part in self._model.module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                found.append(f"{given} fills up small batches, which BatchNorm ({name}) would average over; use a model "
                             "without it (GroupNorm), or leave client_batch out")
            if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
                found.append(f"{given}: what dropout ({name}) leaves out cannot be drawn by client where one call computes "
                             "for all of them; use a model without it, or leave client_batch out")
        shape = self._model.input_shape
        kind = "cross_entropy" if settings.loss == "auto" and self._model.num_classes is not None else settings.loss
        if found or shape is None or kind == "auto":
            return found
        targets = torch.zeros((2, 2), dtype=torch.float32 if kind == "mse" else torch.int64)
        try:
            samples = as_inputs(np.zeros((2, 2, *shape), np.float32), self._dtype())
            self._try(choose_device(settings.device, os.environ), self._model.module, kind, samples, targets)
        except ConfigError as error:
            return [problem.removeprefix("learner_config.") for problem in error.problems]
        return []

    def train(self, members: Sequence[Member], settings: StepSettings, batch_size: int) -> Iterator[tuple[int, float]]:
        """See GroupSteps. Raises ConfigError for a model that cannot be trained so."""
        kinds = {settings.loss_for(member.data.y) for member in members}
        if len(kinds) > 1:
            raise ConfigError(f"learner_config.loss: auto means {' and '.join(sorted(kinds))} here, by client; name one")
        kind = kinds.pop()
        for indices in self._alike(members):
            for place, loss in self._train_alike([members[index] for index in indices], kind, settings, batch_size):
                yield indices[place], loss

    def _alike(self, members: Sequence[Member]) -> list[list[int]]:
        """Which members can be trained with one module: those who have its frozen parameters and buffers in common."""
        if all(member.start is members[0].start for member in members):  # nobody has local parameters
            return [list(range(len(members)))]
        trained = trainable(self._model.module)
        found: dict[bytes, list[int]] = {}
        for index, member in enumerate(members):
            fixed = hashlib.sha256()
            for name, array in member.start.items():
                if name not in trained:
                    fixed.update(array.reshape(-1).view(np.uint8).data)
            found.setdefault(fixed.digest(), []).append(index)
        return list(found.values())

    def _train_alike(self, members: Sequence[Member], kind: Loss, settings: StepSettings,
                     batch_size: int) -> Iterator[tuple[int, float]]:
        device = choose_device(settings.device, os.environ)
        self._model.set_weights(members[0].start)  # whoever it had last may have other buffers
        module = self._module(device)
        module.train()
        batches = Batches(members, self._size, batch_size, self._dtype(), device)
        self._try(device, module, kind, *(given[:2] for given in batches.of(0)[:2]))
        stack = self._stack_of(module, kind, settings.optimizer)
        stack.begin([member.start for member in members], settings)
        for number in range(batches.num_steps):
            stack.step(*batches.of(number))
            for index, member in enumerate(members):
                if len(member.batches) == number + 1:
                    self._model.set_weights(member.start)
                    loss = stack.take(index, self._model.module)
                    yield index, loss / sum(map(len, member.batches))

    def _try(self, device: torch.device, module: nn.Module, kind: Loss, x: torch.Tensor, y: torch.Tensor) -> None:
        """Try what is to be trained on `device`, once for each kind of device that samples are on, and of loss."""
        if (x.device.type, kind) not in self._tried:
            module.train()
            try_out(module, kind, x, y, trains_on_cpu=device.type == "cpu")
            self._tried.add((x.device.type, kind))

    def _is_home(self, device: torch.device) -> bool:
        """Whether the model's own module can compute there."""
        return device.type == "cpu"

    def _module(self, device: torch.device) -> nn.Module:
        """What computes; of its parameters, only frozen ones are read."""
        if self._is_home(device):
            return self._model.module
        if device not in self._copies:
            self._copies[device] = DeviceCopy(self._model, device)
        return self._copies[device].filled()

    def _dtype(self) -> torch.dtype | None:
        return next((parameter.dtype for parameter in self._model.module.parameters()), None)

    def _stack_of(self, module: nn.Module, kind: Loss, optimizer: str) -> ClientStack:
        if self._stack is None or self._stack.key != stack_key(module, kind, optimizer):
            self._stack = None  # so that two are never there at once
            self._stack = ClientStack(module, self._size, kind, optimizer)
        return self._stack


class Batches:
    """The samples of a group's steps, out of one array with the samples of all its members."""

    def __init__(self, members: Sequence[Member], size: int, batch_size: int, dtype: torch.dtype | None,
                 device: torch.device) -> None:
        self._members = members
        self._x = torch.cat([as_inputs(member.data.x, dtype) for member in members]).to(device)
        self._y = torch.cat([as_tensor(member.data.y) for member in members]).to(device)
        self._first = np.cumsum([0, *(len(member.data.y) for member in members)])
        self._shape = size, batch_size
        self.num_steps = max(len(member.batches) for member in members)

    def of(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x[size, batch_size, ...], y[size, batch_size, ...] and the samples' weights, float32[size, batch_size], of a step.

        A member whose steps are over has those of its last.
        """
        indices, weights = np.empty(self._shape, np.int64), np.zeros(self._shape, np.float32)
        for place, member in enumerate(self._members):
            batch = member.batches[min(number, len(member.batches) - 1)]
            indices[place, :len(batch)] = batch
            indices[place, len(batch):] = batch[0]
            indices[place] += self._first[place]
            weights[place, :len(batch)] = 1
        indices[len(self._members):], weights[len(self._members):] = indices[0], weights[0]
        chosen = torch.from_numpy(indices.reshape(-1)).to(self._x.device)
        x, y = (values.index_select(0, chosen).reshape(*self._shape, *values.shape[1:]) for values in (self._x, self._y))
        return x, y, torch.from_numpy(weights).to(self._x.device)
