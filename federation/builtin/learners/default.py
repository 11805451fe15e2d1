"""Local training by plain gradient steps."""

from __future__ import annotations

from typing import final

from federation.builtin.learners.stepped import SteppedLearner, Task
from federation.core.types import TrainResult


@final
class DefaultLearner(SteppedLearner):
    """Minimises the loss of the client's data, as in FedAvg (McMahan et al. 2017, Algorithm 1).

    Trains for `local_epochs` passes over the client's data or, where given, for `local_steps` steps. Each pass is a new
    order of the samples, drawn from (seed, round, client), as is dropout. A step takes `batch_size` samples. The last
    batch of a pass is smaller, or left out with `drop_last`; a client with less than one batch trains on what it has all
    the same. Where BatchNorm needs two samples, a last batch of one joins the one before, and a client with one sample is
    left out. Optimiser state starts at zero in every `fit`; with `keep_momentum`, SGD's momentum goes on from where it was
    when the client trained the last time.

    `loss`: "auto" is cross_entropy for class labels (integers), mse for float targets. `client_lr` follows the schedule
    of the `lr_*` settings over rounds (see federation.core.schedule). `clip_norm`: the gradient of a batch's loss is
    scaled down to this norm, over all trainable parameters together; weight decay, momentum and what an algorithm adds to
    the gradient come after it.

    Networks of nothing but linear layers and ReLU (model.torch.mlp) are trained in steps that are written out, where they are
    those of plain SGD: twice the pace of autograd, whose numbers they give but for rounding.

    `precision`: of the passes through a torch model in training, by torch.autocast; evaluation is in the model's own.
    `compile`: those passes as one function, by torch.compile: faster, from a first step on that takes seconds to minutes; the
    same bits on all ranks of like machines, but others than without. Small batches are filled up with samples of weight 0, so
    BatchNorm is refused. Needs a C++ compiler.
    `device`, for torch models: "cuda" is the GPU of this process's rank on its host, "auto" the same where there is one
    and else the CPU, "cuda:N" that one. The same bits everywhere are a promise of the CPU.

    `fit` and `evaluate` take `local_epochs` (or `epochs`), `local_steps`, `batch_size` and `client_lr` in their config; a
    `client_lr` given there is that of the call, whatever the schedule. The weights of a result are the model's live
    weights: who keeps them copies them.

    Raises ConfigError for settings that cannot be, and for a model that is not trained in steps.
    """

    def _train(self, task: Task) -> TrainResult:
        descent = self._descend(task)
        return TrainResult(self._model().weights, len(task.data.y), descent.metrics, state=descent.state or None)
