"""The loss of a batch, as torch computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from federation.builtin.steps.contract import Loss, wrong_outputs

#: (values of the trainable parameters, x, y, weights) -> the loss, a scalar.
WeightedLoss = Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def loss_of(scores: torch.Tensor, y: torch.Tensor, kind: Loss) -> torch.Tensor:
    """The mean loss of a batch. For mse, scores have as many values as `y`, in whatever shape.

    Raises ConfigError where the model has too few or too many outputs for the loss.
    """
    _check_outputs(scores, y, kind)
    if kind == "mse":
        return functional.mse_loss(scores.reshape(y.shape), y.to(scores.dtype))
    return functional.cross_entropy(scores, y)


def weighted_loss(module: nn.Module, names: Sequence[str], kind: Loss,
                  low_precision: torch.dtype | None = None) -> WeightedLoss:
    """The mean loss of `module` over a batch whose samples have weights, as a function of its parameters `names`.

    For torch.func and torch.compile: the module's own parameters of these names are not read. The weights are float32[n],
    not all 0; samples of weight 0 fill up a batch. `low_precision` is that of torch.autocast, None for none. The function
    raises ConfigError as `loss_of` does.
    """
    def loss(values: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, low_precision, enabled=low_precision is not None):
            scores = functional_call(module, dict(zip(names, values, strict=True)), (x,))
        _check_outputs(scores, y, kind)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if kind == "mse":
            error = (wide.reshape(y.shape) - y.to(wide.dtype)).reshape(len(y), -1)
            each = (error * error).mean(1)
        else:
            each = functional.cross_entropy(wide, y, reduction="none")
            each = each.flatten(1).mean(1) if each.ndim > 1 else each  # a label for each pixel
        mean: torch.Tensor = (each * weights).sum() / weights.sum()
        return mean

    return loss


def _check_outputs(scores: torch.Tensor, y: torch.Tensor, kind: Loss) -> None:
    fits = scores.numel() == y.numel() if kind == "mse" else scores.ndim >= 2 and scores.shape[1] >= 2
    if not fits:
        raise wrong_outputs(kind, scores.shape[1:].numel())
