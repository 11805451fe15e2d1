"""Plain SGD on networks of nothing but linear layers and ReLU, with the gradients written out.

The update goes into the products: no gradient of a weight matrix is ever made, which saves autograd's pass over memory of
the model's size, and its own time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from federation.builtin.steps.contract import Loss, wrong_outputs

# Called as they are: torch's functions around them take as long again as these do on a batch.
_nll_loss = torch.ops.aten.nll_loss_forward.default
_nll_loss_slope = torch.ops.aten.nll_loss_backward.default
_log_softmax_slope = torch._log_softmax_backward_data
_relu_slope = torch.ops.aten.threshold_backward.default
_MEAN, _NO_LABEL = 1, -100


class _Layer(NamedTuple):
    """A linear layer's parameters, detached; `transposed` is the weight's own memory."""

    weight: torch.Tensor
    transposed: torch.Tensor
    bias: torch.Tensor


class DenseSteps:
    """Steps of one network, whose parameters it moves in place. Made by `find`."""

    def __init__(self, layers: list[_Layer], flattens: bool, kind: Loss) -> None:
        """ReLU is between the layers."""
        self._layers = layers
        self._flattens = flattens
        self._kind = kind
        device = layers[0].weight.device
        self._one = torch.ones((), device=device)
        self._ones = torch.ones(0, device=device)

    @classmethod
    def find(cls, module: nn.Module, trainable: Collection[nn.Parameter], kind: Loss) -> DenseSteps | None:
        """Those of `module`, if it is such a network: a Sequential of float32 Linears with a bias and ReLU in turn, all of it
        trainable, with a Flatten ahead or not, and no hooks; None for any other."""
        if type(module) is not nn.Sequential or any(_has_hooks(part) for part in module.modules()):
            return None
        parts = list(module)
        flattens = bool(parts) and type(parts[0]) is nn.Flatten and parts[0].start_dim == 1 and parts[0].end_dim == -1
        parts = parts[1:] if flattens else parts
        linears, between = parts[::2], parts[1::2]
        if len(parts) % 2 == 0 or any(type(part) is not nn.ReLU for part in between):
            return None
        layers = []
        for part in linears:
            if type(part) is not nn.Linear or part.bias is None or part.weight.dtype != torch.float32:
                return None
            layers.append(_Layer(part.weight.detach(), part.weight.detach().t(), part.bias.detach()))
        own = {id(tensor) for part in linears for tensor in part.parameters()}
        if own != {id(parameter) for parameter in trainable} or len(own) != 2 * len(layers):
            return None
        return cls(layers, flattens, kind)

    def step(self, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
        """One step down the mean loss of these samples; returns the loss before it."""
        if len(self._ones) != len(y):
            self._ones = self._ones.new_ones(len(y))
        inputs = [x.flatten(1) if self._flattens else x]
        for _, transposed, bias in self._layers:
            if len(inputs) > 1:
                inputs[-1].relu_()
            inputs.append(torch.addmm(bias, inputs[-1], transposed))
        loss, slope = self._loss_and_slope(inputs.pop(), y)
        for index in range(len(self._layers) - 1, -1, -1):
            weight, _, bias = self._layers[index]
            values, above = inputs[index], slope.t()
            if index:
                slope = _relu_slope(slope.mm(weight), values, 0)
            weight.addmm_(above, values, alpha=-rate)
            bias.addmv_(above, self._ones, alpha=-rate)
        return loss

    def _loss_and_slope(self, scores: torch.Tensor, y: torch.Tensor) -> tuple[float, torch.Tensor]:
        if self._kind == "mse":
            if scores.numel() != y.numel():
                raise wrong_outputs(self._kind, scores.shape[1])
            error = scores.reshape(y.shape) - y.to(scores.dtype)
            return error.square().mean().item(), (error * (2 / y.numel())).reshape(scores.shape)
        if scores.shape[1] < 2:
            raise wrong_outputs(self._kind, scores.shape[1])
        logarithms = torch.log_softmax(scores, 1)
        loss, weight = _nll_loss(logarithms, y, None, _MEAN, _NO_LABEL)
        slope = _nll_loss_slope(self._one, logarithms, y, None, _MEAN, _NO_LABEL, weight)
        return loss.item(), _log_softmax_slope(slope, logarithms, 1, torch.float32)


class DenseSession:
    """One client's training by DenseSteps; see Session."""

    def __init__(self, steps: DenseSteps, x: torch.Tensor, y: torch.Tensor, rate: float) -> None:
        self._steps = steps
        self._x, self._y = x, y
        self._rate = rate
        self.num_steps = 0
        self._loss = 0.0
        self._count = 0

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        chosen = torch.from_numpy(batch).to(self._x.device)
        loss = self._steps.step(self._x.index_select(0, chosen), self._y.index_select(0, chosen), self._rate)
        self.num_steps += 1
        self._loss += len(batch) * loss
        self._count += len(batch)

    def mean_loss(self) -> float:
        """See Session."""
        return self._loss / self._count

    def momentum(self) -> dict[str, np.ndarray]:
        """See Session."""
        return {}


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
