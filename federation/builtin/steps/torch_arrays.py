"""Arrays as tensors and back, without a change of bits."""

from __future__ import annotations

import numpy as np
import torch

from federation.kernels import BFLOAT16


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory; a copy of a read-only one, which torch has no notion of.

    bfloat16 included, which NumPy and torch share no name for.
    """
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_inputs(x: np.ndarray, dtype: torch.dtype | None) -> torch.Tensor:
    """Samples for a model of parameters of `dtype` (None: it has none): in that dtype, where both are floating-point."""
    samples = as_tensor(x)
    return samples.to(dtype) if dtype is not None and dtype.is_floating_point and samples.is_floating_point() else samples


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A copy of the tensor's values, whatever device it is on."""
    here = tensor.detach().cpu().contiguous()
    if here.dtype == torch.bfloat16:
        return here.view(torch.int16).numpy().copy().view(BFLOAT16)
    return here.numpy().copy()
