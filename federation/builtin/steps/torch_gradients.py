"""What happens to gradients of torch models between the loss and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from federation.builtin.steps.contract import CLIP_EPSILON, Correction
from federation.builtin.steps.optimizers import Tensors
from federation.builtin.steps.torch_arrays import as_tensor


class Adjustment:
    """Clips the gradients of the loss, then adds a correction; in this order, see StepSettings.

    `parameters` are the trainable ones by name, detached, in the order of the gradients.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], clip_norm: float | None,
                 correction: Correction | None) -> None:
        self._parameters = list(parameters.values())
        self._clip_norm = clip_norm
        self._corrects = correction is not None
        self._proximal = correction.proximal if correction else 0.0
        self._anchor = _like(parameters, correction.anchor) if correction and correction.proximal else []
        self._linear = _like(parameters, correction.linear) if correction and correction.linear else []

    def __call__(self, gradients: Sequence[torch.Tensor | None]) -> Sequence[torch.Tensor | None]:
        """New tensors; autograd's own are left as they are, since two of them may be one."""
        # An Embedding's gradients may be sparse, which norms and sums of lists do not take.
        given = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients if gradient is not None]
        if self._clip_norm is not None and given:
            given = _clipped(given, self._clip_norm)
        if not self._corrects:
            present = iter(given)
            return [None if gradient is None else next(present) for gradient in gradients]
        if len(given) < len(gradients):
            present = iter(given)
            given = [torch.zeros_like(parameter) if gradient is None else next(present)
                     for gradient, parameter in zip(gradients, self._parameters, strict=True)]
        if self._anchor:
            given = list(torch._foreach_add(given, torch._foreach_sub(self._parameters, self._anchor),
                                            alpha=self._proximal))
        if self._linear:
            given = list(torch._foreach_add(given, self._linear))
        return given


def _clipped(gradients: Tensors, clip_norm: float) -> Tensors:
    """The bits of torch.nn.utils.clip_grad_norm_."""
    norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(gradients))))
    return list(torch._foreach_mul(gradients, torch.clamp(clip_norm / (norm + CLIP_EPSILON), max=1.0)))


def clipped_each(gradients: Tensors, clip_norm: float) -> Tensors:
    """The same for several clients: each gradient is [clients, *shape], and each client's are scaled by its own norm."""
    norms = [torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in gradients]
    factors = torch.clamp(clip_norm / (torch.linalg.vector_norm(torch.stack(norms, 1), dim=1) + CLIP_EPSILON), max=1.0)
    return [gradient * factors.reshape(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


def _like(parameters: Mapping[str, torch.Tensor], arrays: Mapping[str, np.ndarray]) -> Tensors:
    return [as_tensor(arrays[name]).to(parameter.device) for name, parameter in parameters.items()]
