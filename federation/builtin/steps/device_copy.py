"""A model's module on another device than the CPU, where its weights live."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from federation.builtin.models.torch_model import TorchModel


class DeviceCopy:
    """A second module with the same tensors, on `device`; made once, and filled anew for every use."""

    def __init__(self, model: TorchModel, device: torch.device) -> None:
        self._model = model
        self._module = copy.deepcopy(model.module).to(device)

    def filled(self) -> nn.Module:
        """The copy, with the model's present weights, its frozen parameters frozen."""
        self._transfer(self._model.module, self._module)
        return self._module

    @contextmanager
    def trained(self) -> Iterator[nn.Module]:
        """The copy, filled; when the block ends without an error, the model has its weights."""
        yield self.filled()
        self._transfer(self._module, self._model.module)

    def _transfer(self, source: nn.Module, target: nn.Module) -> None:
        _ = self._model.weights  # has the model put back tensors that its module has replaced
        given = _tensors(source)
        with torch.no_grad():
            for name, tensor in _tensors(target).items():
                tensor.copy_(given[name])
                if isinstance(tensor, nn.Parameter):
                    tensor.requires_grad_(given[name].requires_grad)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, in place of those that the module has replaced as well."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
