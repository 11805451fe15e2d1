"""Training in float16, whose smallest numbers are too large for many a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: Steps without an overflow after which a larger factor is tried.
PATIENCE = 2000


class LossScale:
    """The loss is multiplied by `factor`, its gradients are divided by it (Micikevicius et al. 2018, section 3.2).

    Where they overflow, the step is left out and the factor halved; with a factor of 1 it is not the factor's fault, and
    the gradients stand as they are. The factor doubles after PATIENCE steps in a row without an overflow.
    """

    def __init__(self, factor: float = 2.0**16) -> None:
        self.factor = factor
        self._good = 0

    def unscaled(self, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None] | None:
        """The gradients of the loss itself; None where the step is to be left out."""
        divided = [None if gradient is None else gradient / self.factor for gradient in gradients]
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in divided if gradient is not None)
        if not finite and self.factor > 1:
            self.factor /= 2
            self._good = 0
            return None
        self._good += finite
        if self._good == PATIENCE:
            self.factor *= 2
            self._good = 0
        return divided
