"""Any torch module as a model: its parameters and buffers are views into one flat buffer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from federation.builtin.steps.group_steps import TorchGroupSteps
from federation.builtin.steps.torch_arrays import as_tensor
from federation.builtin.steps.torch_steps import TorchSteps
from federation.core.model import Model
from federation.core.types import WeightsLike
from federation.core.weights import Layout, Weights
from federation.errors import ConfigError
from federation.kernels import BFLOAT16


@dataclass(frozen=True)
class _Slot:
    """One array of the layout in the module: `home[key]` is `tensor`, whose memory is `view`.

    Of a buffer beside the layout, `view` are the values to begin with."""

    name: str
    home: dict[str, Any]
    key: str
    tensor: torch.Tensor
    view: torch.Tensor


class TorchModel(Model):
    """Wraps `module`, whose tensors are moved into one buffer: setting weights is one copy, reading them is free.

    The layout's order is that of the module, in three groups: trainable parameters (by dtype), frozen parameters,
    buffers (BatchNorm's statistics and counters). Names are those of `state_dict`; a tensor with two names stands once,
    under the first. Buffers that the module keeps out of its state_dict are no part of the weights: setting weights puts
    them back to what they were at first, so that no client trains with what another has left in them.

    `input_shape` (of one sample) and `num_classes` (None for regression) let a learner without data make some up.

    Raises ConfigError for a module whose tensors cannot be moved: not on the CPU, without a shape yet (lazy modules),
    or overlapping in memory while they have different names.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...] | None = None,
                 num_classes: int | None = None) -> None:
        self.module = module
        self.input_shape = input_shape
        self.num_classes = num_classes
        self._attach()

    def _attach(self) -> None:
        """Move the module's tensors into a buffer of this model's own."""
        tensors = dict(_tensors(self.module))
        _check(tensors)
        buffers = [name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)]
        self._weights = Weights.zeros(Layout(list(tensors), [tuple(tensor.shape) for tensor in tensors.values()],
                                             [_numpy_dtype(tensor.dtype) for tensor in tensors.values()], buffers))
        self._weights.borrowed = True
        self._slots = []
        for name, tensor in tensors.items():
            view = as_tensor(self._weights[name])
            view.copy_(tensor.detach())
            tensor.data = view
            path, _, key = name.rpartition(".")
            owner = self.module.get_submodule(path)
            home = owner._parameters if key in owner._parameters else owner._buffers
            self._slots.append(_Slot(name, home, key, tensor, view))
        self._beside = [_Slot(name, owner._buffers, key, buffer, buffer.detach().clone())
                        for name, owner, key, buffer in _buffers_beside(self.module)]

    def _reattach(self) -> None:
        """Bring tensors back that the module has put in place of its own, as in `self.mean = 0.9 * self.mean + ...`."""
        for slot in self._slots:
            current = slot.home.get(slot.key)
            if current is slot.tensor and current.data_ptr() == slot.view.data_ptr():
                continue
            if current is None or current.shape != slot.view.shape:
                by = "nothing" if current is None else f"one of shape {tuple(current.shape)}"
                raise ValueError(f"{type(self.module).__name__} has replaced {slot.name}, of shape "
                                 f"{tuple(slot.view.shape)}, by {by}; the shapes of a model's weights are fixed")
            slot.view.copy_(current.detach())
            slot.tensor.data = slot.view
            slot.home[slot.key] = slot.tensor

    @property
    def weights(self) -> Weights:
        """The live weights: they change as the module trains."""
        self._reattach()
        return self._weights

    def get_weights(self) -> Weights:
        """A copy of all weights."""
        return self.weights.copy()

    def set_weights(self, weights: WeightsLike) -> None:
        """Overwrite all weights; raises UpdateError unless names, shapes and dtypes fit."""
        self._reattach()
        self._weights.copy_from(weights, who=f"the weights for {type(self).__name__}")
        for slot in self._beside:
            slot.home[slot.key] = slot.tensor
            slot.tensor.detach().copy_(slot.view)

    def make_steps(self) -> TorchSteps:
        """How a learner trains this model."""
        return TorchSteps(self)

    def make_group_steps(self, size: int) -> TorchGroupSteps:
        """How a learner trains this model for up to `size` clients at once."""
        return TorchGroupSteps(self, size)

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchModel:
        """A model of its own: a module's tensors, copied one by one, would no longer lie in one buffer."""
        self._reattach()
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.module = copy.deepcopy(self.module, memo)
        clone._attach()
        at_first = {slot.name: slot.view for slot in self._beside}
        clone._beside = [replace(slot, view=at_first.get(slot.name, slot.view)) for slot in clone._beside]
        return clone


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `state_dict`, each once, in the order of the layout."""
    named = list(module.named_parameters())
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    dtypes = list(dict.fromkeys(parameter.dtype for _, parameter in trainable))
    yield from sorted(trainable, key=lambda pair: dtypes.index(pair[1].dtype))
    yield from ((name, parameter) for name, parameter in named if not parameter.requires_grad)
    kept = module.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def _buffers_beside(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    """The buffers that are not in `state_dict`: name, the module that each belongs to, its key there, the tensor."""
    kept = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if name not in kept:
            path, _, key = name.rpartition(".")
            yield name, module.get_submodule(path), key, buffer


def _check(tensors: dict[str, torch.Tensor]) -> None:
    """Raise ConfigError unless every tensor has memory of its own on the CPU."""
    taken: list[tuple[int, int, str]] = []
    for name, tensor in tensors.items():
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(f"{name} has no shape yet: run the module once on a sample before wrapping it")
        if tensor.device.type != "cpu":
            raise ConfigError(f"{name} is on {tensor.device}: a model's weights live on the CPU (module.to('cpu')), wherever "
                              "it is trained (learner_config.device)")
        if tensor.numel():
            start = tensor.data_ptr()
            extent = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            taken.append((start, start + extent * tensor.element_size(), name))
    taken.sort()
    for (_, end, name), (start, _, other) in itertools.pairwise(taken):
        if start < end:
            raise ConfigError(f"{name} and {other} are different tensors in the same memory; tie weights by giving "
                              "both places the same nn.Parameter")


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    found: np.dtype = BFLOAT16 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    return found
