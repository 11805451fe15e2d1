"""Plain SGD on networks of nothing but linear layers and ReLU: a step is one native call, with the gradients written out.

The update goes into the products: no gradient of a weight matrix is ever made, which saves autograd's pass over memory of
the model's size, and its own time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from federation import _native
from federation.builtin.steps.contract import Loss
from federation.builtin.steps.torch_blas import sgemm


class DenseSteps:
    """Steps of one network, whose parameters it moves in place, on the CPU. Made by `find`."""

    def __init__(self, layers: Sequence[nn.Linear], product: int, flattens: bool, kind: Loss) -> None:
        """ReLU is between the layers; `product` is the address of a BLAS's SGEMM."""
        weights, biases = ([tensor.detach().numpy() for tensor in each]
                           for each in ([part.weight for part in layers], [part.bias for part in layers]))
        network = _native.DenseNetwork(product, weights, biases)
        self._step = network.regress if kind == "mse" else network.classify
        self._target = np.float32 if kind == "mse" else np.int64
        self._inputs = layers[0].in_features
        self._flattens = flattens

    @classmethod
    def find(cls, module: nn.Module, trainable: Collection[nn.Parameter], kind: Loss) -> DenseSteps | None:
        """Those of `module`, if it is such a network, and this torch has a BLAS: a Sequential of float32 Linears with a bias and
        ReLU in turn, all of it trainable, with a Flatten ahead or not, no hooks, and outputs that fit the loss; None for any other.
        """
        if type(module) is not nn.Sequential or any(_has_hooks(part) for part in module.modules()):
            return None
        parts = list(module)
        flattens = bool(parts) and type(parts[0]) is nn.Flatten and parts[0].start_dim == 1 and parts[0].end_dim == -1
        parts = parts[1:] if flattens else parts
        if len(parts) % 2 == 0 or any(type(part) is not nn.ReLU for part in parts[1::2]):
            return None
        layers = []
        for part in parts[::2]:
            if type(part) is not nn.Linear or part.bias is None or not part.weight.numel():
                return None
            if any(tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in part.parameters()):
                return None
            layers.append(part)
        if any(below.out_features != above.in_features for below, above in pairwise(layers)):
            return None
        own = {id(tensor) for part in layers for tensor in part.parameters()}
        if own != {id(parameter) for parameter in trainable} or len(own) != 2 * len(layers):
            return None
        outputs, product = layers[-1].out_features, sgemm()
        if product is None or (outputs != 1 if kind == "mse" else outputs < 2):
            return None
        return cls(layers, product, flattens, kind)

    def session(self, x: np.ndarray, y: np.ndarray, rate: float, rows: np.ndarray | None = None) -> DenseSession | None:
        """Training on samples with the targets `y` that are the `rows` (int64; None: all) of `x`; None where they are not such as
        this network takes, which autograd then says."""
        rows = np.arange(len(x)) if rows is None else np.ascontiguousarray(rows, np.int64)
        is_flat = (x.ndim == 2 or self._flattens) and (y.ndim == 1 or self._target is np.float32)
        if not is_flat or x.dtype != np.float32 or len(x) == 0 or x[0].size != self._inputs or y.size != len(rows):
            return None
        torch.get_num_threads()  # so that this thread computes with as many as torch does
        samples = np.ascontiguousarray(x.reshape(len(x), self._inputs))
        return DenseSession(self, samples, rows, np.ascontiguousarray(y.reshape(-1), self._target), rate)

    def step(self, x: np.ndarray, rows: np.ndarray, y: np.ndarray, batch: np.ndarray, rate: float) -> float:
        """One step down the mean loss of the samples `batch` (int64, at least one); returns the loss before it.

        Samples are the `rows` (int64) of `x` (any number, inputs), in float32; `y` (samples) is int64, or float32 for the loss
        mse; all in C order. Raises IndexError, with nothing moved, where there is no such sample, or a label is no class.
        """
        loss: float = self._step(x, rows, y, batch, rate)
        return loss


class DenseSession:
    """One client's training by DenseSteps; see Session."""

    def __init__(self, steps: DenseSteps, x: np.ndarray, rows: np.ndarray, y: np.ndarray, rate: float) -> None:
        self._steps = steps
        self._x, self._rows, self._y = x, rows, y
        self._rate = rate
        self.num_steps = 0
        self._loss = 0.0
        self._count = 0

    def step(self, batch: np.ndarray) -> None:
        """See Session."""
        self._loss += len(batch) * self._steps.step(self._x, self._rows, self._y, batch, self._rate)
        self.num_steps += 1
        self._count += len(batch)

    def mean_loss(self) -> float:
        """See Session."""
        return self._loss / self._count

    def momentum(self) -> dict[str, np.ndarray]:
        """See Session."""
        return {}


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
