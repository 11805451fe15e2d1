"""Components that go wrong on request, and are quick to load: for whole runs of a NumPy model."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from federation import EvalResult, Learner, TrainResult, register
from federation.core.aggregator import MeanAggregator


@register("test.learner.faulty")
class Faulty(Learner):
    """A step towards the mean of the client's data, and a fault: for one client, in one round, or all of them."""

    def __init__(self, model=None, data=None, fault: str = "none", client: str = "", round: int = 0,
                 delay: float = 0.0) -> None:
        super().__init__(model, data)
        self.fault, self.client, self.round, self.delay = fault, client, round, delay

    def _due(self) -> bool:
        return self.client in ("", self.context.client_id) and self.round in (0, self.context.round)

    def fit(self, config=None):
        time.sleep(self.delay)
        weights = [array.copy() for array in self.get_weights()]
        weights[0] += 0.5 * (self.data.x.mean(axis=0) - weights[0]) + 0.01 * self.random("noise").normal(
            size=weights[0].shape)
        count = self.data.get_num_samples()
        if self._due():
            match self.fault:
                case "raise":
                    raise ValueError(f"deliberate fault of {self.context.client_id}")
                case "nan":
                    weights[0][0, 0] = np.nan
                case "inf":
                    weights[0][0, 0] = np.inf
                case "shape":
                    weights[0] = weights[0][:, :-1]
                case "float64":
                    weights = [array.astype(np.float64) for array in weights]
                case "fortran":
                    weights = [np.asfortranarray(array) for array in weights]
                case "no_samples":
                    count = 0
                case "metric":
                    return TrainResult([array.astype(np.float32) for array in weights], count, {"size": 2**64})
                case "count":
                    count = -5
                case "nothing":
                    return None
                case "exit":
                    print("the process leaves", file=sys.stderr, flush=True)
                    os._exit(7)
                case "segfault":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "hang":
                    time.sleep(600)
        return TrainResult([array.astype(np.float32) if self.fault != "float64" else array for array in weights], count,
                           {"size": float(count)})

    def evaluate(self, config=None):
        if self.fault == "evaluate" and self._due():
            raise ValueError("deliberate fault of the evaluation")
        return EvalResult(len(self.data.y_test), {"accuracy": float(np.mean(self.get_weights()[0]))})


@register("test.aggregator.leaving")
class Leaving(MeanAggregator):
    """The mean; ends the program where it is told to, as a script does."""

    def __init__(self, where: str = "", text: str = "") -> None:
        self.where, self.text = where, text
        self._leave("construction")

    def _leave(self, place: str) -> None:
        if place == self.where:
            sys.exit(self.text or None)

    def weigh(self, update, start):
        self._leave("weigh")
        return super().weigh(update, start)

    def step(self, start, mean, stats):
        if stats.round == 2:
            self._leave("step")
