"""The clients of one rank: they are trained here one after the other, and added up as they finish.

Plain synchronous code: it runs on the process's computing thread and knows nothing of messages.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from federation import kernels
from federation.core.learner import Context, Learner
from federation.core.metrics import MetricSum
from federation.core.types import EvalResult, TrainResult
from federation.core.updates import UpdateSum, check_num_samples, make_sum
from federation.core.weights import Layout, Weights
from federation.data.manager import DataManager
from federation.errors import ClientError, Diverged, FederationError, UpdateError
from federation.node.protocol import Evaluate, EvaluateReport, Fit, FitReport, Outcome, Problem
from federation.node.proxy import partition_index

Allocate = Callable[[int], np.ndarray]


class ClientHost:
    """Trains and evaluates clients, from the weights in `weights`.

    With `learner` and `data` it can host any client of the shared partition; `own` holds learners of clients that
    live here with their own data. `allocate(nbytes)` gives the uint8 memory for sums (a transport's, say).
    """

    def __init__(self, learner: Learner | None = None, data: DataManager | None = None, *, seed: int = 0,
                 allocate: Allocate | None = None) -> None:
        self.learner = learner
        self.data = data
        self.own: dict[str, Learner] = {}
        self.weights: Weights | None = None
        self.stopping = threading.Event()
        self._seed = seed
        self._allocate = allocate
        self._sum: UpdateSum | None = None
        self._sum_kind: tuple[str, Layout] | None = None
        self._rows: dict[str, tuple[Weights, Mapping[str, Any]]] = {}

    def expect(self, layout: Layout) -> Weights:
        """The buffer that the next broadcast is to be written into; reused while the layout stays."""
        if self.weights is None or self.weights.layout != layout:
            self.weights = Weights.zeros(layout)
        return self.weights

    def fit(self, order: Fit) -> FitReport:
        """Train the clients of `order`, adding up (needs "mean") or keeping (needs "rows") their updates.

        A client whose code raises, or whose update is not finite, contributes nothing and is reported. An update
        that does not fit the model is a fault of the program: the rest is left, and the report says so.
        """
        began = time.perf_counter()
        total = self._begin(order)
        metrics, outcomes, problems, refused = MetricSum(), [], [], ""
        for client_id in order.clients:
            if self.stopping.is_set():
                break
            started = time.perf_counter()
            try:
                result = self._fit_one(client_id, order.round, order.config)
            except Exception as error:
                problems.append(_problem(client_id, "failed", error))
                continue
            try:
                check_num_samples(client_id, result.num_samples)
                count = result.num_samples if order.weighting == "samples" else 1
                divisor = float(count)
                if total is None:
                    self._rows[client_id] = self._row(client_id, result)
                else:
                    total.add(client_id, result.weights, count)
            except Diverged as error:
                problems.append(_problem(client_id, "diverged", error))
                continue
            except UpdateError as error:
                refused = str(error)
                break
            metrics.add(result.metrics, result.num_samples)
            outcomes.append(Outcome(client_id, result.num_samples, time.perf_counter() - started, divisor))
        limbs = 0 if total is None else len(total.limbs)
        return FitReport(outcomes=outcomes, problems=problems, metrics=metrics.to_dict(), limbs=limbs, refused=refused,
                         seconds=time.perf_counter() - began)

    @property
    def sum(self) -> UpdateSum:
        """The sum of the updates of the last `fit` with needs "mean"."""
        assert self._sum is not None, "no fit with needs='mean' yet"
        return self._sum

    def row(self, client_id: str) -> tuple[Weights, Mapping[str, Any]]:
        """The update (owned here, until the next fit) and metrics of one client of the last `fit` with needs "rows"."""
        return self._rows[client_id]

    def evaluate(self, order: Evaluate) -> EvaluateReport:
        """Evaluate shards of the test set (an error there is the program's, and raised) and clients (reported)."""
        began = time.perf_counter()
        shards, clients, problems = MetricSum(), MetricSum(), []
        if order.shards:
            learner, data = self.learner, self.data
            assert learner is not None, "the server gives shards to ranks with a learner"
            assert data is not None, "the server gives shards to ranks with data"
            learner.set_weights(self._start())
            for shard in order.shards:
                learner.bind(data.test_shard(shard), Context("server", order.round, self._seed))
                result = _checked(learner.evaluate({"round": order.round}), EvalResult)
                shards.add(result.metrics, result.num_samples)
        for client_id in order.clients:
            if self.stopping.is_set():
                break
            try:
                with self._turn(client_id, order.round) as learner:
                    result = _checked(learner.evaluate({"round": order.round}), EvalResult)
            except Exception as error:
                problems.append(_problem(client_id, "failed", error))
            else:
                clients.add(result.metrics, result.num_samples)
        return EvaluateReport(shards=shards.to_dict(), clients=clients.to_dict(), problems=problems,
                              seconds=time.perf_counter() - began)

    def call(self, client_id: str, method: str, config: Mapping[str, Any], round: int) -> TrainResult | EvalResult:
        """Call `fit` or `evaluate` of one client's learner; a TrainResult owns its weights, in the layout's order.

        Raises ClientError with the traceback of the client's code, UpdateError for weights that do not fit.
        """
        try:
            if method == "evaluate":
                with self._turn(client_id, round) as learner:
                    return _checked(learner.evaluate(dict(config)), EvalResult)
            result = self._fit_one(client_id, round, config, note_round=False)
        except Exception as error:
            raise ClientError(client_id, "".join(traceback.format_exception(error))) from error
        weights = Weights.zeros(self._start().layout)
        weights.copy_from(result.weights, who=client_id)
        return TrainResult(weights, result.num_samples, result.metrics)

    def _begin(self, order: Fit) -> UpdateSum | None:
        self._rows.clear()
        if order.needs == "rows":
            return None
        start = self._start()
        kind = (order.reduction, start.layout)
        if self._sum is None or self._sum_kind != kind:
            self._sum = make_sum(order.reduction, start.layout, start, total_samples=order.total_samples,
                                 cohort_size=order.cohort_size, allocate=self._allocate)
            self._sum_kind = kind
        else:
            self._sum.reset(start, total_samples=order.total_samples, cohort_size=order.cohort_size)
        return self._sum

    def _fit_one(self, client_id: str, round: int, config: Mapping[str, Any], note_round: bool = True) -> TrainResult:
        with self._turn(client_id, round) as learner:
            settings = {**config, "round": round} if note_round else dict(config)
            return _checked(learner.fit(settings), TrainResult)

    @contextmanager
    def _turn(self, client_id: str, round: int) -> Iterator[Learner]:
        """The learner, turned to `client_id` and set to the global weights."""
        learner = self.own.get(client_id)
        context = Context(client_id, round, self._seed)
        if learner is not None:
            learner.bind(learner.data, context)
        else:
            if self.learner is None or self.data is None:
                raise FederationError(f"this rank hosts {sorted(self.own)}, not {client_id}")
            learner = self.learner
            learner.bind(self.data.client(partition_index(client_id)), context)
        learner.set_weights(self._start())
        yield learner

    def _row(self, client_id: str, result: TrainResult) -> tuple[Weights, Mapping[str, Any]]:
        weights = Weights.zeros(self._start().layout)
        weights.copy_from(result.weights, who=client_id)
        for name, array in weights.items():
            if not kernels.all_finite(array):
                raise Diverged(client_id, name)
        return weights, result.metrics

    def _start(self) -> Weights:
        if self.weights is None:
            raise FederationError("no weights yet: broadcast_weights comes before fit and evaluate")
        return self.weights


def _checked(result: Any, wanted: type[Any]) -> Any:
    if not isinstance(result, wanted):
        raise TypeError(f"the learner returned {type(result).__name__}; wanted {wanted.__name__}")
    return result


def _problem(client_id: str, kind: Any, error: Exception) -> Problem:
    details = "".join(traceback.format_exception(error)) if kind == "failed" else str(error)
    return Problem(client_id, kind, f"{type(error).__name__}: {error}", details)
