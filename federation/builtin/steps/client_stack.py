"""The parameters of several clients, one client after another in each tensor, and steps of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import grad_and_value, vmap

from federation.builtin.steps import places
from federation.builtin.steps.contract import Loss, StepSettings
from federation.builtin.steps.optimizers import Adam, Optimizer, Sgd
from federation.builtin.steps.torch_arrays import as_tensor
from federation.builtin.steps.torch_gradients import clipped_each
from federation.builtin.steps.torch_losses import weighted_loss
from federation.core.weights import Weights
from federation.errors import ConfigError


class ClientStack:
    """For each trainable parameter of a module one tensor [size, *its shape], and as much again for an optimiser's state.

    Each of the `size` places is trained as a module of its own would be: by its own samples, with an optimiser of its own.
    """

    def __init__(self, module: nn.Module, size: int, kind: Loss, optimizer: str) -> None:
        self.key = stack_key(module, kind, optimizer)
        self._values = {name: parameter.detach().new_empty((size, *parameter.shape))
                        for name, parameter in trainable(module).items()}
        stacked = list(self._values.values())
        self._optimizer: Optimizer = Adam(stacked) if optimizer == "adam" else Sgd(stacked)
        self._call = vmap(grad_and_value(weighted_loss(module, list(self._values), kind)))
        self._loss = torch.zeros(size, dtype=torch.float64, device=stacked[0].device)
        self._clip_norm: float | None = None

    def begin(self, starts: Sequence[Weights], settings: StepSettings) -> None:
        """Every place afresh: from the weights `starts` of the first ones, and from the first of those at all others."""
        self._optimizer.begin(settings)
        self._clip_norm = settings.clip_norm
        self._loss.zero_()
        for name, values in self._values.items():
            values.copy_(as_tensor(starts[0][name]))
            for place, start in enumerate(starts):
                if start is not starts[0]:
                    values[place].copy_(as_tensor(start[name]))

    def step(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> None:
        """One step at each place, on x[size, n, ...] and y[size, n]; the samples' weights, float32[size, n], are 1 or 0."""
        gradients, losses = self._call(list(self._values.values()), x, y, weights)
        if self._clip_norm is not None:
            gradients = clipped_each(gradients, self._clip_norm)
        self._optimizer.step(gradients)
        self._loss += losses.double() * weights.sum(1)

    def take(self, place: int, module: nn.Module) -> float:
        """Give a place's parameters to `module`, and return its loss: the sum over the samples of all its steps."""
        for name, parameter in trainable(module).items():
            parameter.detach().copy_(self._values[name][place])
        return self._loss[place].item()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, by name, as of now: a user may freeze some between rounds."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def stack_key(module: nn.Module, kind: Loss, optimizer: str) -> tuple[object, ...]:
    """What a stack depends on but for its size; another one is needed where this has changed."""
    return id(module), tuple(trainable(module)), kind, optimizer


def try_out(module: nn.Module, kind: Loss, x: torch.Tensor, y: torch.Tensor, trains_on_cpu: bool) -> None:
    """Compute gradients at as many places as there are samples for, x[places, n, ...] and y[places, n].

    Raises ConfigError with the reason for a module that cannot be trained so: vmap does not take it, it changes its buffers,
    nothing of it is trainable, or its numbers might depend on the place where it `trains_on_cpu`.
    """
    parameters = trainable(module)
    if not parameters:
        raise ConfigError("learner_config.client_batch: nothing of this model is trainable; leave it out")
    values = [torch.stack([parameter.detach()] * len(x)) for parameter in parameters.values()]
    weights = torch.ones(y.shape[:2], device=x.device)
    call = vmap(grad_and_value(weighted_loss(module, list(parameters), kind)))
    buffers = [(name, buffer, buffer.clone()) for name, buffer in module.named_buffers()]
    try:
        met = places.operations(lambda: call(values, x, y, weights))
    except ConfigError:
        raise
    except Exception as error:  # whatever a module raises; most often vmap's own, for what it has no rule for
        raise ConfigError("learner_config.client_batch: this model cannot be trained for several clients at once "
                          f"({type(error).__name__}: {str(error)[:500]}); leave it out") from error
    changed = [name for name, buffer, before in buffers if _put_back(module, name, buffer, before)]
    if changed:
        raise ConfigError(f"learner_config.client_batch: this model changes {', '.join(changed)} in training, of which each "
                          "client would need one of its own; leave it out")
    if trains_on_cpu and (doubtful := sorted(met - places.SAME_AT_EVERY_PLACE)):
        raise ConfigError(f"learner_config.client_batch: on a CPU, the last bits of {', '.join(doubtful)} in this model may "
                          "depend on the place of a client in its group, so a run would not be repeatable; use other layers "
                          "(ReLU, tanh), or leave it out")


def _put_back(module: nn.Module, name: str, buffer: torch.Tensor, values: torch.Tensor) -> bool:
    """Undo what training has done to a buffer; whether that was anything."""
    path, _, key = name.rpartition(".")
    home = module.get_submodule(path)._buffers
    if home.get(key) is buffer and torch.equal(buffer, values):
        return False
    home[key] = buffer.copy_(values)
    return True
