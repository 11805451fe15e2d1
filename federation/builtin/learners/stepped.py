"""Local training by gradient steps: what the learners have in common that do so."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, cast

import numpy as np

from federation.builtin.learners.settings import FitSettings, metrics_wanted
from federation.builtin.steps.contract import Correction, Precision, SteppedModel, StepSettings
from federation.core.learner import Learner
from federation.core.model import Model
from federation.core.problems import choice_problem, number_problem, whole_number_problem
from federation.core.schedule import Schedule
from federation.core.types import EvalResult, TrainResult
from federation.data.client_data import ClientData, builtin_sample
from federation.data.draws import shuffled
from federation.errors import ConfigError

logger = logging.getLogger(__name__)

#: What `config["metrics"]` may ask for.
METRICS = ("normaliser", "local_steps", "start_loss")
MOMENTUM = "momentum."


class SteppedSettings(TypedDict, total=False):
    """The settings of every SteppedLearner, for the signatures of its subclasses."""

    local_epochs: int
    local_steps: int | None
    batch_size: int
    client_lr: float
    optimizer: Literal["sgd", "adam"]
    momentum: float
    keep_momentum: bool
    weight_decay: float
    clip_norm: float | None
    drop_last: bool
    eval_batch_size: int
    loss: Literal["auto", "cross_entropy", "mse"]
    lr_schedule: Literal["constant", "step", "cosine"]
    lr_rounds: int | None
    lr_warmup_rounds: int
    lr_step_rounds: int | None
    lr_gamma: float
    lr_floor: float
    precision: Precision
    compile: bool
    device: str


@dataclass(frozen=True)
class Task:
    """One call of `fit` with enough samples for a step.

    settings, step_settings: with `config` and the schedule of this round applied. smallest_batch: the fewest samples that
    a step can take. metrics: names of those that were asked for.
    """

    data: ClientData
    settings: FitSettings
    step_settings: StepSettings
    smallest_batch: int
    metrics: Collection[str]


@dataclass(frozen=True)
class Descent:
    """What came of training: the number of steps, the metrics, and what the client is to keep of it.

    num_samples: what the client counts for: nothing where float16 has left out all steps.
    """

    num_steps: int
    num_samples: int
    metrics: Mapping[str, float]
    state: Mapping[str, np.ndarray] = field(default_factory=dict)


class SteppedLearner(Learner):
    """Trains in gradient steps; the settings are described at DefaultLearner.

    Subclasses say in `_train` what is added to the gradient of the loss, and what the client keeps. They add settings of
    their own to the constructor and hand on the others. Results follow from weights, shared arrays, client state, data,
    context and config alone.

    Raises ConfigError for settings that cannot be, and for a model that is not trained in steps.
    """

    def __init__(self, model: Model, data: Any = None, *, local_epochs: int = 1, local_steps: int | None = None,
                 batch_size: int = 32, client_lr: float = 0.1, optimizer: Literal["sgd", "adam"] = "sgd",
                 momentum: float = 0.0, keep_momentum: bool = False, weight_decay: float = 0.0,
                 clip_norm: float | None = None, drop_last: bool = False, eval_batch_size: int = 1024,
                 loss: Literal["auto", "cross_entropy", "mse"] = "auto",
                 lr_schedule: Literal["constant", "step", "cosine"] = "constant", lr_rounds: int | None = None,
                 lr_warmup_rounds: int = 0, lr_step_rounds: int | None = None, lr_gamma: float = 0.1,
                 lr_floor: float = 0.0, precision: Precision = "float32", compile: bool = False,
                 device: str = "cpu") -> None:
        super().__init__(model, data)
        if not hasattr(model, "make_steps"):
            raise ConfigError(f"{type(self).__name__} trains models with make_steps (model.torch.*, model.numpy.linear), "
                              f"not {type(model).__name__}; model.sklearn.* goes with federated.learner.sklearn")
        self._stepped = cast(SteppedModel, model)
        self._steps = self._stepped.make_steps()
        self._fit_settings = FitSettings(local_epochs, local_steps, batch_size, client_lr)
        self._step_settings = StepSettings(optimizer, client_lr, momentum, weight_decay, loss, clip_norm, precision, device,
                                           batch_size if compile else None)
        self._schedule = Schedule(lr_schedule, lr_rounds, lr_warmup_rounds, lr_step_rounds, lr_gamma, lr_floor)
        problems = [*self._fit_settings.problems(), *self._schedule.problems(),
                    *choice_problem("optimizer", optimizer, ("sgd", "adam")),
                    *choice_problem("loss", loss, ("auto", "cross_entropy", "mse")),
                    *choice_problem("precision", precision, ("float32", "bfloat16", "float16")),
                    *number_problem("momentum", momentum), *number_problem("weight_decay", weight_decay),
                    *whole_number_problem("eval_batch_size", eval_batch_size)]
        if clip_norm is not None and (number_problem("clip_norm", clip_norm) or clip_norm == 0):
            problems.append(f"clip_norm={clip_norm!r} is not a number above 0")
        if local_steps is not None and local_epochs != FitSettings.local_epochs:
            problems.append(f"local_epochs={local_epochs!r} and local_steps={local_steps!r} both say how long to train; keep one")
        if momentum and optimizer == "adam":
            problems.append(f"momentum={momentum!r} is for the optimizer sgd; adam has its own")
        if keep_momentum and (not momentum or optimizer == "adam"):
            problems.append("keep_momentum=True is for the optimizer sgd with a momentum above 0")
        if problems := problems or self._steps.problems(self._step_settings):
            raise ConfigError([f"learner_config: {problem}" for problem in problems])
        self._keep_momentum = keep_momentum
        self._drop_last = drop_last
        self._eval_batch_size = eval_batch_size
        self._sample: ClientData | None = None
        self._said: set[str] = set()

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """Train. `num_samples` are the client's training samples, 0 (and unchanged weights) if there was no step.

        Metrics: `train_loss`, the mean over all samples of all steps, each under the weights that its step began with.
        Where `config["metrics"]` asks for them, also `local_steps`; `start_loss`, the mean loss of the weights to begin
        with over the training samples; and `normaliser`, FedNova's a (see `normaliser`).
        """
        task = self._task(config)
        return self._skip() if task is None else self._train(task)

    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """Evaluate on the evaluation samples (`x_test`); a client without any has nothing to say: 0 samples.

        Metrics: `loss`, and for classes `accuracy`.
        """
        self._fit_settings.overridden(config)
        data = self._client_data()
        x, y = data.x_test, data.y_test
        if len(y) == 0:
            return EvalResult(0)
        return EvalResult(len(y), self._steps.evaluate(x, y, self._step_settings, self._eval_batch_size,
                                                       self.random_seed("evaluation")))

    @abstractmethod
    def _train(self, task: Task) -> TrainResult:
        """Train from the present weights."""

    def _skip(self) -> TrainResult:
        """The result of a client that takes no step, and keeps what it has."""
        return TrainResult(self._model().weights, 0)

    def _descend(self, task: Task, correction: Correction | None = None, purpose: str = "") -> Descent:
        """Take the task's steps, each gradient corrected. `purpose` keys the draws of training beside the usual one."""
        data, settings, step_settings = task.data, task.settings, task.step_settings
        started = self._start_metrics(task)
        kept = {name.removeprefix(MOMENTUM): array for name, array in self.client_state.items()
                if name.startswith(MOMENTUM)} if self._keep_momentum and not purpose else None
        with self._steps.training(data, step_settings, self.random_seed(f"{purpose}training"), correction,
                                  kept) as session:
            for batch in self._batches(len(data.y), task.smallest_batch, settings, purpose):
                session.step(batch)
            momentum = session.momentum() if self._keep_momentum else {}
        metrics = {**started, **self._end_metrics(task, session.num_steps, session.mean_loss(), correction)}
        return Descent(session.num_steps, len(data.y) if session.num_steps else 0, metrics,
                       {MOMENTUM + name: array for name, array in momentum.items()})

    def _start_metrics(self, task: Task) -> dict[str, float]:
        """What `task` asks for of the present weights, before training."""
        if "start_loss" not in task.metrics:
            return {}
        found = self._steps.evaluate(task.data.x, task.data.y, task.step_settings, self._eval_batch_size,
                                     self.random_seed("start_loss"))
        return {"start_loss": found["loss"]}

    def _end_metrics(self, task: Task, num_steps: int, loss: float, correction: Correction | None = None) -> dict[str, float]:
        """The metrics of `num_steps` steps with this mean loss."""
        metrics = {"train_loss": loss}
        if "local_steps" in task.metrics:
            metrics["local_steps"] = num_steps
        if "normaliser" in task.metrics:
            metrics["normaliser"] = normaliser(task.step_settings, num_steps, correction.proximal if correction else 0.0)
        return metrics

    def _task(self, config: Mapping[str, Any] | None) -> Task | None:
        """What `config` asks for, on the present client's data; None where they do not make a step."""
        settings = self._fit_settings.overridden(config)
        metrics = metrics_wanted(config, METRICS, type(self).__name__)
        data = self._client_data()
        count = len(data.y)
        smallest = self._steps.smallest_batch(data) if count else 1
        if count < smallest:
            if count:
                self._say_once("clients with one sample are left out: BatchNorm needs two")
            return None
        if not config or "client_lr" not in config:
            factor = self._schedule.factor(max(1, self.context.round))
            if factor != 1:
                settings = replace(settings, client_lr=settings.client_lr * factor)
        step_settings = self._step_settings
        if settings.client_lr != step_settings.client_lr:
            step_settings = replace(step_settings, client_lr=settings.client_lr)
        if step_settings.compiled_for is not None and step_settings.compiled_for != settings.batch_size:
            step_settings = replace(step_settings, compiled_for=settings.batch_size)
        return Task(data, settings, step_settings, smallest, metrics)

    def _batches(self, count: int, least: int, settings: FitSettings, purpose: str = "") -> Iterator[np.ndarray]:
        """The samples of each step, as indices (int64)."""
        size = max(settings.batch_size, least)
        if size > settings.batch_size:
            self._say_once(f"batches are of {size} samples instead of one: BatchNorm needs two")
        generator = self.random(f"{purpose}shuffle")
        steps = settings.local_steps
        passes = settings.local_epochs if steps is None else steps  # at least one step a pass
        taken = 0
        for _ in range(passes):
            for batch in self._one_pass(shuffled(generator, count), size, least):
                if taken == steps:
                    return
                yield batch
                taken += 1

    def _one_pass(self, order: np.ndarray, size: int, least: int) -> list[np.ndarray]:
        batches = [order[first:first + size] for first in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < size and self._drop_last:
            batches.pop()
        elif len(batches) > 1 and len(batches[-1]) < least:
            self._say_once("a last batch of one sample joins the one before: BatchNorm needs two")
            batches[-2:] = [order[(len(batches) - 2) * size:]]
        return batches

    def _client_data(self) -> ClientData:
        if self.data is not None:
            data: ClientData = self.data
            return data
        if self._sample is None:
            if self._stepped.input_shape is None:
                raise ConfigError(f"{type(self).__name__} has no data: bind some, or give the model an input_shape and "
                                  "num_classes for a built-in sample")
            logger.warning("no data bound: training on a small built-in sample shaped like the model")
            self._sample = builtin_sample(self._stepped.input_shape, self._stepped.num_classes)
        return self._sample

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)


def normaliser(settings: StepSettings, num_steps: int, proximal: float) -> float:
    """||a||_1 of Wang et al. 2020, section 4: how often the steps add up the gradient, in units of client_lr.

    That is minus the distance that SGD goes under a constant gradient of 1, divided by client_lr, from where it starts
    (without momentum), as it is drawn back there by `proximal`: the number of steps tau for plain SGD,
    (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho) with a momentum of rho, the sum of (1 - client_lr * proximal)^k
    over k < tau with a proximal term. Weight decay belongs to the gradient here.

    Raises ConfigError for Adam, whose steps are no fixed sum of gradients.
    """
    if settings.optimizer == "adam":
        raise ConfigError("learner_config: optimizer='adam' has no normaliser, which FedNova needs; use sgd")
    total = velocity = 0.0
    for _ in range(num_steps):
        velocity = settings.momentum * velocity + 1 - settings.client_lr * proximal * total
        total += velocity
    return total
