"""The clients of one rank: they are trained here, one after the other or some at once, and added up as they finish.

Plain synchronous code: it runs on the process's computing thread and knows nothing of messages.
"""

from __future__ import annotations

import dataclasses
import reprlib
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from federation.core.aggregator import Aggregator
from federation.core.learner import Context, Learner, Turn
from federation.core.matrix import checked_row
from federation.core.metrics import MetricSum
from federation.core.personal import LocalParameters
from federation.core.types import EvalResult, TrainResult, WeightsLike
from federation.core.updates import check_num_samples
from federation.core.weights import Allocate, Layout, Weights
from federation.data.client_data import ClientData
from federation.data.manager import DataManager, Part
from federation.errors import FAULTS, ClientError, Diverged, FederationError, UpdateError
from federation.infra.trace import Spans
from federation.node.client_state import ClientStates
from federation.node.protocol import (
    Evaluate,
    EvaluateReport,
    Fit,
    FitReport,
    Outcome,
    Problem,
    Train,
    Trained,
)
from federation.node.proxy import partition_index
from federation.node.updates import Updates
from node_comm import Transport

#: In a client's state: what compression has left out of its updates so far.
REST = "compression.rest"


def allocator(transport: Transport) -> Allocate:
    """Memory that `transport` moves with fewest copies."""
    return lambda nbytes: transport.allocate((nbytes,), np.dtype(np.uint8))


class ClientHost:
    """Trains and evaluates clients, from the global weights of the last broadcast.

    With `learner` and `data` it can host any client of the shared partition; `own` holds learners of clients that
    live here with their own data. `states` are those of the clients that live here at present. `aggregator` weighs
    updates, where it has a rule of its own for that; arrays that match `local_parameters` stay with their clients.
    `allocate(nbytes)` gives the uint8 memory for sums (a transport's, say; None: ordinary memory). `spans` keep what takes
    time here.
    """

    def __init__(self, learner: Learner | None = None, data: DataManager | None = None, *, seed: int = 0,
                 allocate: Allocate | None = None, aggregator: Aggregator | None = None,
                 local_parameters: Sequence[str] = (), spans: Spans | None = None) -> None:
        self.learner = learner
        self.spans = spans or Spans()
        self.data = data
        self.own: dict[str, Learner] = {}
        self.states = ClientStates()
        self.updates = Updates(aggregator, seed, allocate)
        self.weights: Weights | None = None
        self.stopping = threading.Event()
        self._model: Weights | None = None
        self._shared: Weights | None = None
        self._local: LocalParameters | None = None
        self._local_patterns = tuple(local_parameters)
        self._seed = seed
        self.allocate = allocate

    def expect(self, layout: Layout, num_model: int) -> Weights:
        """The buffer that the next broadcast is to be written into; reused while the layout stays."""
        weights = self.weights
        if weights is None or weights.layout != layout or not weights.buffer.flags.writeable:
            weights = Weights.zeros(layout)
        self.start_from(weights, num_model)
        return weights

    def start_from(self, weights: Weights, num_model: int) -> None:
        """Take `weights` (borrowed) for the global ones: `num_model` arrays of the model, then what is shared beside it."""
        if self._local is None or weights is not self.weights:
            shares = len(weights) > num_model
            self._model = (weights.head(num_model) if shares else weights).read_only()
            self._shared = weights.tail(num_model).read_only() if shares else None
            self._local = LocalParameters(self._local_patterns, self._model.layout)
        self.weights = weights

    def forget(self, allocate: Allocate | None = None) -> None:
        """As before the first round: no sums, no updates, and no state of any client. `allocate` gives memory from now on."""
        self.states.clear()
        self.allocate = allocate or self.allocate
        self.updates.forget(self.allocate)

    def fit(self, order: Fit) -> FitReport:
        """Train the clients of `order`, adding up (needs "mean") or keeping their `updates`.

        A client whose code raises, or whose update is not finite, contributes nothing and is reported. An update
        that does not fit the model is a fault of the program: the rest is left, and the report says so. Clients that
        are not begun by the deadline of `order` are left without a word. Those that the learner trains at once begin
        together, and share the seconds that it takes.
        """
        began = time.perf_counter()
        if not order.goes_on:
            self.states.forget_proposals()
            self.updates.begin(order, self._start(), self._local.indices if self._local else ())
        metrics, outcomes, problems, refused = MetricSum(), [], [], ""
        for group in self._groups(order.clients):
            is_late = order.deadline is not None and time.perf_counter() - began >= order.deadline
            if is_late or self.stopping.is_set():
                break
            started, taken = time.perf_counter(), []
            for client_id, result in self._results(group, order):
                if isinstance(result, BaseException):
                    problems.append(_problem(client_id, "failed", result))
                    continue
                try:
                    with self.spans.span("add", client_id):
                        divisor, rest = self._take(client_id, result)
                except Diverged as error:
                    problems.append(_problem(client_id, "diverged", error))
                    continue
                except UpdateError as error:
                    refused = str(error)
                    break
                metrics.add(result.metrics, result.num_samples)
                taken.append((client_id, result.num_samples, divisor, self._keep(client_id, result, rest)))
            seconds = (time.perf_counter() - started) / len(group)
            outcomes += [Outcome(name, count, seconds, divisor, keeps) for name, count, divisor, keeps in taken]
            if refused:
                break
        return FitReport(outcomes=outcomes, problems=problems, metrics=metrics.to_dict(), limbs=self.updates.limbs,
                         refused=refused, seconds=time.perf_counter() - began, spans=self.spans.take())

    def train(self, order: Train, start: Weights, out: Weights) -> Trained:
        """Train one client from `start`, and write its weights into `out`; both are borrowed.

        The client's draws are keyed by `order.number`. A client whose code raises, or whose update is not finite, is
        reported, and `out` means nothing then.
        """
        began = time.perf_counter()
        try:
            with self._turn(order.client_id, order.number) as learner:
                learner.set_weights(start)
                result = _checked(learner.fit({**order.config, "round": order.number}), TrainResult)
        except FAULTS as error:
            return Trained(problem=_problem(order.client_id, "failed", error))
        try:
            check_num_samples(order.client_id, result.num_samples)
            if result.state is not None or self._local_patterns:
                raise UpdateError(f"{order.client_id}: {type(learner).__name__} keeps something for each client, which "
                                  "asynchronous training does not support; use federated.trainer.default")
            out.copy_from(checked_row(order.client_id, result.weights, start))
        except Diverged as error:
            return Trained(problem=_problem(order.client_id, "diverged", error))
        except UpdateError as error:
            return Trained(refused=str(error))
        return Trained(num_samples=result.num_samples, metrics=dict(result.metrics), seconds=time.perf_counter() - began)

    @property
    def layout(self) -> Layout:
        """That of the weights of the last broadcast."""
        return self._start().layout

    @property
    def model_layout(self) -> Layout:
        """That of the model's part of them."""
        return self._start_model().layout

    def evaluate(self, order: Evaluate) -> EvaluateReport:
        """Evaluate shards of the test set (an error there is the program's, and raised) and clients (reported)."""
        began = time.perf_counter()
        shards, clients, personal, problems = MetricSum(), MetricSum(), MetricSum(), []
        if order.shards:
            learner, data = self.learner, self.data
            assert learner is not None, "the server gives shards to ranks with a learner"
            assert data is not None, "the server gives shards to ranks with data"
            learner.client_state, learner.shared = {}, self._shared  # not those of the client that came before
            learner.set_weights(self._start_model())
            for shard in order.shards:
                learner.bind(data.shard(order.part, shard), Context("server", order.round, self._seed))
                result = _checked(learner.evaluate({"round": order.round}), EvalResult, is_summed=True)
                shards.add(result.metrics, result.num_samples)
        for client_id in order.clients:
            if self.stopping.is_set():
                break
            if client_id in self.own and order.part != "test":
                continue  # what it brought is its own affair: the learner measures it on what it calls test samples
            try:
                self._evaluate_one(client_id, order, clients, personal)
            except FAULTS as error:
                problems.append(_problem(client_id, "failed", error))
        return EvaluateReport(shards=shards.to_dict(), clients=clients.to_dict(), personal=personal.to_dict(),
                              problems=problems, seconds=time.perf_counter() - began, spans=self.spans.take())

    def _evaluate_one(self, client_id: str, order: Evaluate, clients: MetricSum, personal: MetricSum) -> None:
        """Evaluate the global model on one client's data, and the client's own model, where it has one."""
        start, round = self._start_model(), order.round
        with self._turn(client_id, round, order.part) as learner:
            learner.set_weights(start)
            result = _checked(learner.evaluate({"round": round}), EvalResult, is_summed=True)
            own = self._personal_start(client_id) if self._local else learner.personal_weights(start)
            if own is not None:
                learner.set_weights(own)
                mine = _checked(learner.evaluate({"round": round}), EvalResult, is_summed=True)
                personal.add(mine.metrics, mine.num_samples)
        clients.add(result.metrics, result.num_samples)

    def call(self, client_id: str, method: str, config: Mapping[str, Any], round: int) -> TrainResult | EvalResult:
        """Call `fit` or `evaluate` of one client's learner; a TrainResult owns its weights, in the layout's order.

        Raises ClientError with the traceback of the client's code, UpdateError for weights that do not fit.
        """
        try:
            if method == "evaluate":
                with self._turn(client_id, round) as learner:
                    learner.set_weights(self._personal_start(client_id))
                    return _checked(learner.evaluate(dict(config)), EvalResult)
            result = self._fit_one(client_id, round, config, note_round=False)
        except FAULTS as error:
            raise ClientError(client_id, "".join(traceback.format_exception(error))) from error
        weights = Weights.zeros(self._start_model().layout)
        weights.copy_from(result.weights, who=client_id)
        if self._keep(client_id, result):
            self.states.commit()
        return TrainResult(weights, result.num_samples, result.metrics)

    @property
    def at_once(self) -> int:
        """How many clients the learner trains together; those with learners of their own are trained by these."""
        return 1 if self.own or self.learner is None else self.learner.clients_at_once

    def _groups(self, clients: Sequence[str]) -> Iterator[Sequence[str]]:
        """The clients in the order in which they are trained, those together that the learner trains at once."""
        size = self.at_once
        return (clients[first:first + size] for first in range(0, len(clients), size))

    def _results(self, group: Sequence[str], order: Fit) -> Iterator[tuple[str, TrainResult | BaseException]]:
        """What comes of these clients, each result as soon as it is there, and valid until the next; or why one failed."""
        if self.learner is None or self.at_once == 1:
            yield from ((client_id, self._result_of(client_id, order)) for client_id in group)
            return
        turns: dict[str, Turn] = {}
        for client_id in group:
            try:
                data = self._data_of(client_id, order.round)
                turns[client_id] = Turn(data, Context(client_id, order.round, self._seed), self._personal_start(client_id))
            except FAULTS as error:
                yield client_id, error
        names, left = list(turns), set(turns)
        self.learner.client_state, self.learner.shared = {}, self._shared  # not those of the client that came before
        try:
            with self.spans.span("fit", ", ".join(names)):
                for index, result in self.learner.fit_many(list(turns.values()), {**order.config, "round": order.round}):
                    client_id = names[index]
                    left.remove(client_id)
                    try:
                        checked = result if isinstance(result, BaseException) else _checked(result, TrainResult)
                    except TypeError as error:  # not those that are trained together with it
                        checked = error
                    yield client_id, checked
        except FAULTS as error:
            yield from ((client_id, error) for client_id in names if client_id in left)

    def _result_of(self, client_id: str, order: Fit) -> TrainResult | BaseException:
        """What comes of one client that is trained by itself."""
        try:
            with self.spans.span("fit", client_id):
                return self._fit_one(client_id, order.round, order.config)
        except FAULTS as error:
            return error

    def _fit_one(self, client_id: str, round: int, config: Mapping[str, Any], note_round: bool = True) -> TrainResult:
        with self._turn(client_id, round) as learner:
            learner.set_weights(self._personal_start(client_id))
            settings = {**config, "round": round} if note_round else dict(config)
            return _checked(learner.fit(settings), TrainResult)

    def _take(self, client_id: str, result: TrainResult) -> tuple[float, np.ndarray | None]:
        """Add `result` to the updates; returns what it counts for in the divisor, and what compression has left out."""
        check_num_samples(client_id, result.num_samples)
        return self.updates.take(client_id, self._contributed(client_id, result), result.num_samples, result.metrics,
                                 self.states.of(client_id).get(REST))

    def _contributed(self, client_id: str, result: TrainResult) -> WeightsLike:
        """The arrays of `result` that others see: those of the model, then those shared beside it, in order."""
        assert self._model is not None
        if not self._local and self._shared is None:
            return result.weights
        arrays = self._model.layout.conform(result.weights, client_id)
        if self._local:
            for index in self._local.indices:
                arrays[index] = self._model[index]
        if self._shared is not None:
            if result.shared is None:
                raise UpdateError(f"{client_id}: the aggregator shares arrays beside the model, but the learner's result "
                                  f"has none (TrainResult.shared): use the learner that goes with the aggregator")
            arrays += self._shared.layout.conform(result.shared, client_id)
        return arrays

    def _keep(self, client_id: str, result: TrainResult, rest: np.ndarray | None = None) -> bool:
        """Propose the client's new state, if it has one; whether it has."""
        state = result.state
        if rest is not None:
            state = {**(self.states.of(client_id) if state is None else state), REST: rest}
        if self._local:
            assert self._model is not None
            trained = self._model.layout.conform(result.weights, client_id)
            state = {**(state or self.states.of(client_id)), **self._local.kept(trained)}
        if state is None:
            return False
        self.states.propose(client_id, state)
        return True

    @contextmanager
    def _turn(self, client_id: str, round: int, part: Part = "test") -> Iterator[Learner]:
        """The learner, turned to `client_id`: its data, its state, and what is shared. It is measured on `part`."""
        learner = self.own.get(client_id, self.learner)
        if learner is None:
            raise self._not_here(client_id)
        self._start()
        learner.client_state, learner.shared = self.states.of(client_id), self._shared
        context = Context(client_id, round, self._seed)
        if client_id in self.own:
            learner.bind(learner.data, context)
        else:
            data = self._data_of(client_id, round)
            learner.bind(data.measured_on_validation() if part == "validation" else data, context)
        yield learner

    def _data_of(self, client_id: str, round: int) -> ClientData:
        """The samples of a client of the partition."""
        if self.data is None:
            raise self._not_here(client_id)
        with self.spans.span("load", client_id):
            return self.data.client(partition_index(client_id), round)

    def _not_here(self, client_id: str) -> FederationError:
        return FederationError(f"this rank hosts {sorted(self.own)}, not {client_id}")

    def _personal_start(self, client_id: str) -> Weights:
        """What `client_id` starts from: the global model, with its own values where it has local ones."""
        model = self._start_model()
        return self._local.personal(model, self.states.of(client_id)) if self._local else model

    def _start_model(self) -> Weights:
        self._start()
        assert self._model is not None
        return self._model

    def _start(self) -> Weights:
        if self.weights is None:
            raise FederationError("no weights yet: broadcast_weights comes before fit and evaluate")
        return self.weights


def _checked(result: Any, wanted: type[Any], is_summed: bool = False) -> Any:
    """`result`, with plain numbers. Its metrics, by text, must be such as messages carry, in every mode and whether they are sent
    or not; unless they are only summed, which leaves out what is no number. Raises TypeError, which is the client's."""
    if not isinstance(result, wanted):
        raise TypeError(f"the learner returned {type(result).__name__}; wanted {wanted.__name__}")
    given = {field.name: getattr(result, field.name) for field in dataclasses.fields(wanted)}
    metrics = {key: _plain(value) for key, value in result.metrics.items()}
    if not is_summed:
        metrics = dict(_carried(str(name), value) for name, value in metrics.items())
    return wanted(**given | {"num_samples": _plain(result.num_samples), "metrics": metrics})


def _plain(value: Any) -> Any:
    """NumPy's scalars, arrays and tensors as Python's numbers and lists of them, which messages between ranks carry."""
    return value.tolist() if hasattr(value, "tolist") else value


def _carried(name: str, value: Any) -> tuple[str, Any]:
    """A metric as it arrives on another rank."""
    try:
        name, value = msgspec.msgpack.decode(msgspec.msgpack.encode((name, value)))
    except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
        raise TypeError(f"the learner reports {reprlib.repr(value)} as its metric {name!r}: a metric is a number (an integer from "
                        f"-2**63 to 2**64 - 1; give a larger one as a float), text, None, or a list of these ({error})") from error
    return name, value


def _problem(client_id: str, kind: Any, error: BaseException) -> Problem:
    details = "".join(traceback.format_exception(error)) if kind == "failed" else str(error)
    parameter = error.parameter if isinstance(error, Diverged) else ""
    return Problem(client_id, kind, f"{type(error).__name__}: {error}", details, parameter)
