"""Local training by gradient steps, for torch models and for the linear model in NumPy."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, final

import numpy as np

from federation.builtin.learners.steps import SteppedModel, Steps, StepSettings
from federation.core.learner import Learner
from federation.core.model import Model
from federation.core.types import EvalResult, TrainResult
from federation.data.client_data import ClientData, builtin_sample
from federation.data.draws import shuffled
from federation.errors import ConfigError

logger = logging.getLogger(__name__)

#: What `config` may override for one call; `epochs` is another word for `local_epochs`.
OVERRIDES = ("local_epochs", "epochs", "local_steps", "batch_size", "client_lr")
#: What the engine adds to every `config`.
CONTEXT = ("round",)


@final
class DefaultLearner(Learner):
    """Trains for `local_epochs` passes over the client's data, or for `local_steps` steps, in batches of `batch_size`.

    Each pass is a new order of the samples, drawn from (seed, round, client). The last batch of a pass is smaller unless
    `drop_last`; a client with less than one batch trains on what it has. Where BatchNorm needs two samples, a last
    batch of one joins the one before. Optimiser state starts at zero in every `fit`.

    `weights` of the result are the model's live weights: who keeps them copies them.
    """

    def __init__(self, model: Model, data: Any = None, *, local_epochs: int = 1, local_steps: int | None = None,
                 batch_size: int = 32, client_lr: float = 0.1, optimizer: Literal["sgd", "adam"] = "sgd",
                 momentum: float = 0.0, weight_decay: float = 0.0, drop_last: bool = False, eval_batch_size: int = 1024,
                 loss: Literal["auto", "cross_entropy", "mse"] = "auto") -> None:
        super().__init__(model, data)
        if not hasattr(model, "make_steps"):
            raise ConfigError(f"DefaultLearner trains models with make_steps (model.torch.*, model.numpy.linear), not "
                              f"{type(model).__name__}; model.sklearn.* goes with federated.learner.sklearn")
        self._stepped = cast(SteppedModel, model)
        self._steps: Steps = self._stepped.make_steps()
        self._settings = StepSettings(optimizer, client_lr, momentum, weight_decay, loss)
        self._local_epochs = local_epochs
        self._local_steps = local_steps
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._eval_batch_size = eval_batch_size
        self._said: set[str] = set()
        for name, value, least in (("local_epochs", local_epochs, 1), ("local_steps", local_steps, 1),
                                   ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1),
                                   ("client_lr", client_lr, 0), ("momentum", momentum, 0), ("weight_decay", weight_decay, 0)):
            if value is not None and value < least:
                raise ConfigError(f"learner_config.{name}: {value} is too small; at least {least}")

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """Train; metrics: `train_loss`, the mean over all samples of all steps."""
        given = self._overrides(config)
        data = self._client_data()
        count = data.get_num_samples()
        if count < self._steps.smallest_batch:
            if count:
                self._say_once(f"clients with {count} sample are left out: BatchNorm needs two")
            return TrainResult(self._model().weights, 0)
        settings = self._settings
        if "client_lr" in given:
            settings = StepSettings(settings.optimizer, given["client_lr"], settings.momentum, settings.weight_decay,
                                    settings.loss)
        with self._steps.training(data, settings, self.random_seed("training")) as session:
            for batch in self._batches(count, given):
                session.step(batch)
        return TrainResult(self._model().weights, count, {"train_loss": session.mean_loss()})

    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """Evaluate on the evaluation samples, or on the training samples where there are no others.

        Metrics: `loss`, and for classes `accuracy`.
        """
        self._overrides(config)
        data = self._client_data()
        x, y = (data.x_test, data.y_test) if data.get_num_test_samples() else (data.x, data.y)
        if len(y) == 0:
            return EvalResult(0)
        return EvalResult(len(y), self._steps.evaluate(x, y, data.num_classes, self._settings, self._eval_batch_size))

    def _batches(self, count: int, given: Mapping[str, Any]) -> Iterator[np.ndarray]:
        """Indices of the samples of each step, int64."""
        size = given.get("batch_size", self._batch_size)
        steps = given.get("local_steps", None if "local_epochs" in given else self._local_steps)
        epochs = given.get("local_epochs", self._local_epochs)
        generator = self.random("shuffle")
        taken = 0
        epoch = 0
        while steps is not None or epoch < epochs:
            epoch += 1
            for batch in self._one_pass(shuffled(generator, count), size):
                yield batch
                taken += 1
                if taken == steps:
                    return

    def _one_pass(self, order: np.ndarray, size: int) -> list[np.ndarray]:
        batches = [order[first:first + size] for first in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < size and self._drop_last:
            batches.pop()
        elif len(batches) > 1 and len(batches[-1]) < self._steps.smallest_batch:
            self._say_once("a last batch of one sample joins the one before: BatchNorm needs two")
            batches[-2:] = [order[(len(batches) - 2) * size:]]
        return batches

    def _client_data(self) -> ClientData:
        if self.data is None:
            if self._stepped.input_shape is None:
                raise ConfigError(f"{type(self).__name__} has no data: bind some, or give the model an input_shape")
            self._say_once("no data bound: training on a small built-in sample shaped like the model")
            self.data = builtin_sample(self._stepped.input_shape, self._stepped.num_classes)
        data: ClientData = self.data
        return data

    def _overrides(self, config: Mapping[str, Any] | None) -> dict[str, Any]:
        given = dict(config or {})
        for name in given:
            if name not in (*OVERRIDES, *CONTEXT):
                near = difflib.get_close_matches(name, OVERRIDES, n=1)
                raise ValueError(f"fit config: unknown key {name!r}{f'; did you mean {near[0]}?' if near else ''} "
                                 f"(known: {', '.join(OVERRIDES)})")
        if "epochs" in given:
            given["local_epochs"] = given.pop("epochs")
        for name in ("local_epochs", "local_steps", "batch_size"):
            value = given.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"fit config: {name}={value!r}; wanted a whole number of at least 1")
        return given

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)
