"""The passes of a step, forward and backward, as one compiled function."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.func import grad_and_value

from federation.builtin.steps.contract import Loss
from federation.builtin.steps.torch_losses import weighted_loss
from federation.errors import ConfigError


class CompiledGradients:
    """The mean loss of a batch of up to `largest` samples, and its gradients, by torch.compile.

    It is compiled once, for `largest` samples: a smaller batch is filled up with samples of weight 0, so that a client's
    last batch costs no compilation of its own. Which numbers come out follows from the model, `largest` and the machine's
    compiler and instruction set: all ranks of a machine agree, but not with a step that is not compiled. A parameter that
    the loss does not reach has a gradient of 0.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, torch.Tensor], kind: Loss, largest: int,
                 low_precision: torch.dtype | None) -> None:
        """`parameters` are the trainable ones, detached; they are read at each call."""
        from torch._inductor import config

        config.compile_threads = 1  # its pool of processes would outlive the run, and MPI does not like forks
        self._parameters = list(parameters.values())
        self._largest = largest
        loss = weighted_loss(module, list(parameters), kind, low_precision)

        def gradients(values: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor,
                      weights: torch.Tensor) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
            found: tuple[Sequence[torch.Tensor], torch.Tensor] = grad_and_value(loss)(values, x, y, weights)
            return found

        # A code object of its own: torch counts compilations by those, and gives up after a few.
        gradients.__code__ = gradients.__code__.replace()
        self._call = torch.compile(gradients, dynamic=False, fullgraph=True)

    def filled(self, batch: np.ndarray) -> np.ndarray:
        """The indices `batch`, with more of the first one where they are fewer than `largest`."""
        return batch if len(batch) == self._largest else np.concatenate([batch, np.full(self._largest - len(batch), batch[0])])

    def __call__(self, x: torch.Tensor, y: torch.Tensor, count: int) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        """Gradients, in the order of the parameters, and the loss, of the first `count` of these `largest` samples.

        Raises ConfigError for a model that cannot be compiled, and where there is no compiler.
        """
        weights = torch.zeros(self._largest, device=x.device)
        weights[:count] = 1
        try:
            gradients, loss = self._call(self._parameters, x, y, weights)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            if shutil.which("g++") is None and shutil.which("clang++") is None:
                raise ConfigError("learner_config.compile needs a C++ compiler (g++), and there is none here") from error
            raise ConfigError(f"learner_config.compile: this model cannot be compiled as one function ({str(error)[:500]}); "
                              "leave it out") from error
        return gradients, loss
