"""Local training by gradient steps, for torch models and for the linear model in NumPy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, final

import numpy as np

from federation.builtin.learners.settings import choice_problem, number_problem, overrides, whole_number_problem
from federation.builtin.steps.contract import SteppedModel, StepSettings
from federation.core.learner import Learner
from federation.core.model import Model
from federation.core.types import EvalResult, TrainResult
from federation.data.client_data import ClientData, builtin_sample
from federation.data.draws import shuffled
from federation.errors import ConfigError

logger = logging.getLogger(__name__)

@dataclass(frozen=True)
class FitSettings:
    """What `config` may override for one call."""

    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    client_lr: float = 0.1

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        steps = [] if self.local_steps is None else whole_number_problem("local_steps", self.local_steps)
        return [*whole_number_problem("local_epochs", self.local_epochs), *steps,
                *whole_number_problem("batch_size", self.batch_size), *number_problem("client_lr", self.client_lr)]

    def overridden(self, config: Mapping[str, Any] | None) -> FitSettings:
        """These settings with those of `config`; passes given there replace steps that were set here.

        Raises ValueError for an unknown key and for a value that cannot be.
        """
        given = overrides(config, tuple(self.__dataclass_fields__))
        if not given:
            return self
        if "local_epochs" in given:
            given.setdefault("local_steps", None)
        settings = replace(self, **given)
        if problems := settings.problems():
            raise ValueError(f"config: {'; '.join(problems)}")
        return settings


@final
class DefaultLearner(Learner):
    """Trains for `local_epochs` passes over the client's data or, where given, for `local_steps` steps.

    Each pass is a new order of the samples, drawn from (seed, round, client), as is dropout. A step takes `batch_size`
    samples. The last batch of a pass is smaller, or left out with `drop_last`; a client with less than one batch trains
    on what it has all the same. Where BatchNorm needs two samples, a last batch of one joins the one before, and a
    client with one sample is left out. Optimiser state starts at zero in every `fit`.

    `loss`: "auto" is cross_entropy for class labels (integers), mse for float targets.

    `fit` and `evaluate` take `local_epochs` (or `epochs`), `local_steps`, `batch_size` and `client_lr` in their config.
    The weights of a result are the model's live weights: who keeps them copies them.

    Raises ConfigError for settings that cannot be, and for a model that is not trained in steps.
    """

    def __init__(self, model: Model, data: Any = None, *, local_epochs: int = 1, local_steps: int | None = None,
                 batch_size: int = 32, client_lr: float = 0.1, optimizer: Literal["sgd", "adam"] = "sgd",
                 momentum: float = 0.0, weight_decay: float = 0.0, drop_last: bool = False, eval_batch_size: int = 1024,
                 loss: Literal["auto", "cross_entropy", "mse"] = "auto") -> None:
        super().__init__(model, data)
        if not hasattr(model, "make_steps"):
            raise ConfigError(f"DefaultLearner trains models with make_steps (model.torch.*, model.numpy.linear), not "
                              f"{type(model).__name__}; model.sklearn.* goes with federated.learner.sklearn")
        self._fit_settings = FitSettings(local_epochs, local_steps, batch_size, client_lr)
        problems = [*self._fit_settings.problems(),
                    *choice_problem("optimizer", optimizer, ("sgd", "adam")),
                    *choice_problem("loss", loss, ("auto", "cross_entropy", "mse")),
                    *number_problem("momentum", momentum), *number_problem("weight_decay", weight_decay),
                    *whole_number_problem("eval_batch_size", eval_batch_size)]
        if momentum and optimizer == "adam":
            problems.append(f"momentum={momentum!r} is for the optimizer sgd; adam has its own")
        if problems:
            raise ConfigError([f"learner_config: {problem}" for problem in problems])
        self._stepped = cast(SteppedModel, model)
        self._steps = self._stepped.make_steps()
        self._step_settings = StepSettings(optimizer, client_lr, momentum, weight_decay, loss)
        self._drop_last = drop_last
        self._eval_batch_size = eval_batch_size
        self._sample: ClientData | None = None
        self._said: set[str] = set()

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """Train. `num_samples` are the client's training samples, 0 (and unchanged weights) if there was no step.

        Metrics: `train_loss`, the mean over all samples of all steps, each under the weights that its step began with.
        """
        settings = self._fit_settings.overridden(config)
        data = self._client_data()
        count = len(data.y)
        least = self._steps.smallest_batch(data) if count else 1
        if count < least:
            if count:
                self._say_once("clients with one sample are left out: BatchNorm needs two")
            return TrainResult(self._model().weights, 0)
        step_settings = self._step_settings
        if settings.client_lr != step_settings.client_lr:
            step_settings = replace(step_settings, client_lr=settings.client_lr)
        with self._steps.training(data, step_settings, self.random_seed("training")) as session:
            for batch in self._batches(count, least, settings):
                session.step(batch)
        return TrainResult(self._model().weights, count, {"train_loss": session.mean_loss()})

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

    def _batches(self, count: int, least: int, settings: FitSettings) -> Iterator[np.ndarray]:
        """The samples of each step, as indices (int64)."""
        size = max(settings.batch_size, least)
        if size > settings.batch_size:
            self._say_once(f"batches are of {size} samples instead of one: BatchNorm needs two")
        generator = self.random("shuffle")
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
                raise ConfigError("DefaultLearner has no data: bind some, or give the model an input_shape and "
                                  "num_classes for a built-in sample")
            logger.warning("no data bound: training on a small built-in sample shaped like the model")
            self._sample = builtin_sample(self._stepped.input_shape, self._stepped.num_classes)
        return self._sample

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)
