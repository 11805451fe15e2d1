"""Local training by plain gradient steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, final

from federation.builtin.learners.stepped import SteppedLearner, SteppedSettings, Task
from federation.builtin.steps.contract import GroupedModel, GroupSteps, Member
from federation.core.learner import Turn
from federation.core.model import Model
from federation.core.problems import whole_number_problem
from federation.core.types import TrainResult
from federation.errors import ConfigError


@dataclass(frozen=True)
class _Job:
    """What one client of a group does. metrics: those of the weights that it starts from."""

    task: Task
    member: Member
    metrics: dict[str, float]


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

    Networks of nothing but linear layers and ReLU (model.torch.mlp) are trained on the CPU in native steps, with and without
    `compile`, where they are those of plain SGD: twice the pace of autograd, whose numbers they give but for rounding.

    `precision`: of the passes through a torch model in training, by torch.autocast; evaluation is in the model's own.
    `compile`: those passes as one function, by torch.compile: faster, from a first step on that takes seconds to minutes; the
    same bits on all ranks of like machines, but others than without. Small batches are filled up with samples of weight 0, so
    BatchNorm is refused. Needs a C++ compiler.
    `client_batch`: so many clients of a rank are trained at once, for torch models: one call of each operation for all of
    them, by torch.func.vmap, which is meant for GPUs and brings nothing on a CPU. Each takes the batches that it takes by
    itself, and its numbers do not depend on who is trained beside it, on the number of ranks or on placement, but they do
    on `client_batch`: a group is filled up to it with a client that does not count, and a small batch to `batch_size`, so
    choose no more than a rank has clients in a round. A rank holds so many models, as many gradients and, with momentum or
    Adam, states of the optimiser. Refused are dropout, BatchNorm and others that change buffers in training, what vmap does
    not take, `precision`, `compile` and `keep_momentum`; on a CPU also layers whose last bits differ from place to place,
    such as sigmoid, SiLU, GELU and LSTM.
    `device`, for torch models: "cuda" is the GPU of this process's rank on its host, "auto" the same where there is one
    and else the CPU, "cuda:N" that one. The same bits everywhere are a promise of the CPU.

    `fit` and `evaluate` take `local_epochs` (or `epochs`), `local_steps`, `batch_size` and `client_lr` in their config; a
    `client_lr` given there is that of the call, whatever the schedule. The weights of a result are the model's live
    weights: who keeps them copies them.

    Raises ConfigError for settings that cannot be, and for a model that is not trained in steps.
    """

    def __init__(self, model: Model, data: Any = None, *, client_batch: int = 1, **settings: Unpack[SteppedSettings]) -> None:
        super().__init__(model, data, **settings)
        self._group: GroupSteps | None = None
        problems = whole_number_problem("client_batch", client_batch)
        if not problems and client_batch > 1:
            problems = self._join(model, client_batch)
        if problems:
            raise ConfigError([f"learner_config: {problem}" for problem in problems])
        self.clients_at_once = client_batch

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """See SteppedLearner. With a `client_batch`, the numbers are those of a client in any group."""
        if self._group is None:
            return super().fit(config)
        [(_, result)] = self.fit_many([Turn(self.data, self.context, self._model().weights.copy())], config)
        if isinstance(result, Exception):
            raise result
        return result

    def fit_many(self, turns: Sequence[Turn],
                 config: Mapping[str, Any] | None = None) -> Iterator[tuple[int, TrainResult | Exception]]:
        """See Learner; for a `client_batch` above 1. Results are like those of `fit`."""
        jobs: dict[int, _Job] = {}
        for index, turn in enumerate(turns):
            try:
                job = self._job(turn, config)
            except Exception as error:
                yield index, error
                continue
            if job is None:
                yield index, self._skip()
            else:
                jobs[index] = job
        if jobs:
            yield from self._fit_group(jobs)

    def _join(self, model: Model, client_batch: int) -> list[str]:
        """Prepare to train so many clients at once; what speaks against it."""
        if not isinstance(model, GroupedModel):
            return [f"client_batch={client_batch} is for torch models, not for {type(model).__name__}; leave it out"]
        if self._keep_momentum:
            return [f"client_batch={client_batch} does not go with keep_momentum=True; leave one of them out"]
        self._group = model.make_group_steps(client_batch)
        return self._group.problems(self._step_settings)

    def _job(self, turn: Turn, config: Mapping[str, Any] | None) -> _Job | None:
        """Turn to a client, and see what it has to do; None where that makes no step."""
        self.bind(turn.data, turn.context)
        self.set_weights(turn.start)
        task = self._task(config)
        if task is None:
            return None
        batches = list(self._batches(len(task.data.y), task.smallest_batch, task.settings))
        return _Job(task, Member(task.data, batches, turn.start), self._start_metrics(task))

    def _fit_group(self, jobs: Mapping[int, _Job]) -> Iterator[tuple[int, TrainResult | Exception]]:
        """Train these clients together; where that fails, each that is left by itself, which shows whose fault it is."""
        left = dict(jobs)
        try:
            for index, result in self._descend_together(jobs):
                del left[index]
                yield index, result
        except Exception as error:
            for index, job in left.items():
                if len(jobs) == 1:
                    yield index, error
                else:
                    yield from self._fit_group({index: job})

    def _descend_together(self, jobs: Mapping[int, _Job]) -> Iterator[tuple[int, TrainResult]]:
        """Take the steps of all these clients, which have the settings in common; each one's result when it has its steps."""
        assert self._group is not None, "client_batch is 1: fit trains one client after the other"
        indices, task = list(jobs), next(iter(jobs.values())).task
        members = [job.member for job in jobs.values()]
        for place, loss in self._group.train(members, task.step_settings, task.settings.batch_size):
            job = jobs[indices[place]]
            metrics = {**job.metrics, **self._end_metrics(job.task, len(job.member.batches), loss)}
            yield indices[place], TrainResult(self._model().weights, len(job.task.data.y), metrics)

    def _train(self, task: Task) -> TrainResult:
        descent = self._descend(task)
        return TrainResult(self._model().weights, descent.num_samples, descent.metrics, state=descent.state or None)
