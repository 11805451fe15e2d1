"""SGD and Adam on lists of tensors: the steps of torch.optim.SGD and torch.optim.Adam, with less around them.

Each operation is one call for all parameters where torch has such a call, and works in memory that is kept from client
to client. Gradients stay
autograd's own: they are read once and never written, so none is zeroed, copied or added up first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from federation.builtin.steps.contract import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, StepSettings

Tensors = list[torch.Tensor]


class Optimizer(Protocol):
    """Updates the parameters that it was made for, in place."""

    def begin(self, settings: StepSettings) -> None:
        """Start afresh, as a new client does: state of zero, and these settings."""
        ...

    def step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """One step. Parameters without a gradient are left alone, and so is their state, as in torch.optim."""
        ...


class Sgd:
    """p -= client_lr * v, where v = momentum * v + g, and g is the gradient plus weight_decay * p."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = list(parameters)
        #: Momentum, in the order of the parameters; empty where there is none.
        self.velocities: Tensors = []
        self._settings = StepSettings()

    def begin(self, settings: StepSettings) -> None:
        """See Optimizer."""
        self._settings = settings
        self.velocities = _zeros(self.velocities, self._parameters) if settings.momentum else []

    def step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """See Optimizer."""
        settings = self._settings
        present, given = _present(gradients)
        if not given:
            return
        parameters = _chosen(self._parameters, present)
        if settings.weight_decay:
            given = list(torch._foreach_add(given, parameters, alpha=settings.weight_decay))
        if settings.momentum:
            velocities = _chosen(self.velocities, present)
            _scale(velocities, settings.momentum)
            torch._foreach_add_(velocities, given)
            given = velocities
        torch._foreach_add_(parameters, given, alpha=-settings.client_lr)


class Adam:
    """Kingma and Ba 2015, Algorithm 1; weight_decay * p is added to the gradient."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = list(parameters)
        self._means: Tensors = []
        self._squares: Tensors = []
        self._roots: Tensors = []
        self._steps: list[int] = []
        self._settings = StepSettings()

    def begin(self, settings: StepSettings) -> None:
        """See Optimizer."""
        self._settings = settings
        self._means = _zeros(self._means, self._parameters)
        self._squares = _zeros(self._squares, self._parameters)
        self._roots = self._roots or [torch.empty_like(parameter) for parameter in self._parameters]
        self._steps = [0] * len(self._parameters)

    def step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """See Optimizer."""
        settings = self._settings
        present, given = _present(gradients)
        if not given:
            return
        for index in present:
            self._steps[index] += 1
        counts = [self._steps[index] for index in present]
        parameters, means, squares, roots = (_chosen(tensors, present) for tensors in (
            self._parameters, self._means, self._squares, self._roots))
        if settings.weight_decay:
            given = list(torch._foreach_add(given, parameters, alpha=settings.weight_decay))
        torch._foreach_lerp_(means, given, 1 - ADAM_BETA1)
        _scale(squares, ADAM_BETA2)
        torch._foreach_addcmul_(squares, given, given, 1 - ADAM_BETA2)
        torch._foreach_copy_(roots, squares)
        torch._foreach_sqrt_(roots)
        torch._foreach_div_(roots, [math.sqrt(1 - ADAM_BETA2**count) for count in counts])
        torch._foreach_add_(roots, ADAM_EPSILON)
        torch._foreach_addcdiv_(parameters, means, roots,
                                [-settings.client_lr / (1 - ADAM_BETA1**count) for count in counts])


def _zeros(tensors: Tensors, like: Tensors) -> Tensors:
    """`tensors`, all zero; new ones where there are none yet."""
    if len(tensors) != len(like):
        return [torch.zeros_like(tensor) for tensor in like]
    if tensors:
        torch._foreach_zero_(tensors)
    return tensors


def _scale(tensors: Tensors, factor: float) -> None:
    # Not _foreach_mul_, which rounds the factor to the tensors' dtype: 0.999 is 1 in bfloat16.
    for tensor in tensors:
        tensor.mul_(factor)


def _present(gradients: Sequence[torch.Tensor | None]) -> tuple[Sequence[int], Tensors]:
    """The gradients that are there, and their indices."""
    present = [index for index, gradient in enumerate(gradients) if gradient is not None]
    return present, [gradient for gradient in gradients if gradient is not None]


def _chosen(tensors: Tensors, present: Sequence[int]) -> Tensors:
    return tensors if len(present) == len(tensors) else [tensors[index] for index in present]
