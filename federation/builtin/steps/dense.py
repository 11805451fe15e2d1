"""Plain SGD on networks of nothing but linear layers and ReLU, with the gradients written out.

The update goes into the products: no gradient of a weight matrix is ever made, which saves autograd's pass over memory of
the model's size, and its own time.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional

from federation.builtin.steps.contract import Loss, wrong_outputs


class DenseSteps:
    """Steps of one network, whose parameters it moves in place. Made by `find`."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], flattens: bool, kind: Loss) -> None:
        """`layers`: (weight, bias) of each, detached; ReLU is between them."""
        self._layers = layers
        self._flattens = flattens
        self._kind = kind

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
            layers.append((part.weight.detach(), part.bias.detach()))
        own = {id(tensor) for part in linears for tensor in part.parameters()}
        if own != {id(parameter) for parameter in trainable} or len(own) != 2 * len(layers):
            return None
        return cls(layers, flattens, kind)

    def step(self, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
        """One step down the mean loss of these samples; returns the loss before it."""
        with torch.no_grad():
            inputs = [x.flatten(1) if self._flattens else x]
            scores = inputs[0]
            for weight, bias in self._layers:
                scores = torch.addmm(bias, inputs[-1], weight.t())
                inputs.append(scores.relu() if len(inputs) < len(self._layers) else scores)
            loss, slope = self._loss_and_slope(scores, y)
            for index in range(len(self._layers) - 1, -1, -1):
                weight, bias = self._layers[index]
                above, values = slope, inputs[index]
                if index:
                    slope = torch.ops.aten.threshold_backward(above.mm(weight), values, 0)
                weight.addmm_(above.t(), values, alpha=-rate)
                bias.sub_(above.sum(0), alpha=rate)
            return loss

    def _loss_and_slope(self, scores: torch.Tensor, y: torch.Tensor) -> tuple[float, torch.Tensor]:
        if self._kind == "mse":
            if scores.numel() != y.numel():
                raise wrong_outputs(self._kind, scores.shape[1])
            error = scores.reshape(y.shape) - y.to(scores.dtype)
            return error.square().mean().item(), (error * (2 / y.numel())).reshape(scores.shape)
        if scores.shape[1] < 2:
            raise wrong_outputs(self._kind, scores.shape[1])
        logarithms = scores.log_softmax(1)
        slope = logarithms.exp()
        slope[torch.arange(len(y)), y] -= 1
        return functional.nll_loss(logarithms, y).item(), slope.div_(len(y))


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
