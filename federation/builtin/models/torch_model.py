"""Any torch module as a model: its parameters and buffers are views into one flat buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import torch
from torch import nn

from federation.builtin.learners.torch_steps import TorchSteps
from federation.core.model import Model
from federation.core.types import WeightsLike
from federation.core.weights import Layout, Weights


class TorchModel(Model):
    """Wraps `module`, whose tensors are moved into one buffer: setting weights is one copy, reading them is free.

    The layout's order is that of the module, in three groups: trainable parameters (by dtype, so that those of one
    dtype are one flat vector), frozen parameters, buffers (BatchNorm's statistics and counters). Names are those of
    `state_dict`; a tensor with two names stands once, under the first.

    `input_shape` (of one sample) and `num_classes` (None for regression) let a learner without data make some up.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...] | None = None,
                 num_classes: int | None = None) -> None:
        self.module = module
        self.input_shape = input_shape
        self.num_classes = num_classes
        tensors = dict(_tensors(module))
        self._weights = Weights.zeros(Layout(list(tensors), [tuple(tensor.shape) for tensor in tensors.values()],
                                             [_numpy_dtype(tensor.dtype) for tensor in tensors.values()]))
        self._weights.borrowed = True
        views = {}
        for name, tensor in tensors.items():
            view = as_tensor(self._weights[name])
            view.copy_(tensor.detach())
            views[id(tensor)] = view
        for owner in module.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and id(buffer) in views:
                    owner._buffers[name] = views[id(buffer)]
        for parameter in module.parameters():
            parameter.data = views[id(parameter)]

    @property
    def weights(self) -> Weights:
        """The live weights: they change as the module trains."""
        return self._weights

    def get_weights(self) -> Weights:
        """A copy of all weights."""
        return self._weights.copy()

    def set_weights(self, weights: WeightsLike) -> None:
        """Overwrite all weights; raises UpdateError unless names, shapes and dtypes fit."""
        self._weights.copy_from(weights, who=f"the weights for {type(self).__name__}")

    def trainable(self) -> list[torch.Tensor]:
        """Flat views of all trainable parameters, one for each dtype; padding between arrays is zero and must stay so."""
        layout, runs = self._weights.layout, []
        count = sum(parameter.requires_grad for parameter in self.module.parameters())
        ends = (*layout.offsets[1:], layout.nbytes)
        first = 0
        for index in range(count):
            if index + 1 == count or layout.dtypes[index + 1] != layout.dtypes[first]:
                raw = self._weights.buffer[layout.offsets[first]:ends[index]]
                runs.append(as_tensor(raw.view(layout.dtypes[first])))
                first = index + 1
        return runs

    def make_steps(self) -> TorchSteps:
        """How a learner trains this model."""
        return TorchSteps(self)


@contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """torch's own generator (CPU), seeded for the block and put back after it."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory; bfloat16 included, which NumPy and torch share no name for."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `state_dict`, each once, in the order of the layout."""
    named = list(module.named_parameters())
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    dtypes = list(dict.fromkeys(parameter.dtype for _, parameter in trainable))
    yield from sorted(trainable, key=lambda pair: dtypes.index(pair[1].dtype))
    yield from ((name, parameter) for name, parameter in named if not parameter.requires_grad)
    kept = module.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    if dtype == torch.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    return torch.empty(0, dtype=dtype).numpy().dtype
