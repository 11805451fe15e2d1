"""A server whose clients come and go: whom a round counts, and what hostile, late or broken clients can do (nothing but leave).

Real clients answer with constants, so that the mean is known; one more is a puppet that says what the test wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from federation import ClientNode, TrainResult
from federation.builtin import DefaultTrainer, FedAvgAggregator
from federation.builtin.aggregators.centred_clipping import CentredClippingAggregator
from federation.builtin.aggregators.feddyn import FedDynAggregator
from federation.builtin.aggregators.fednova import FedNovaAggregator
from federation.builtin.aggregators.fltrust import FLTrustAggregator
from federation.builtin.aggregators.geometric_median import GeometricMedianAggregator
from federation.builtin.aggregators.median import MedianAggregator
from federation.core.aggregator import Aggregator, MeanAggregator
from federation.core.compression import Compression, Packing
from federation.core.metrics import MetricSum
from federation.core.updates import MAX_LIMBS, Contribution
from federation.core.weights import Weights
from federation.errors import RoundError
from federation.infra.recorder import Recorder
from federation.node.host import ClientHost
from federation.node.open_members import MOST_SAMPLES
from federation.node.open_server import OpenServerNode
from federation.node.protocol import (
    MESSAGES,
    ClientRecord,
    ClientState,
    Evaluate,
    EvaluateReport,
    FetchState,
    FetchSum,
    FetchUpdate,
    Fit,
    FitReport,
    Hello,
    Leave,
    Move,
    Moved,
    Outcome,
    Shutdown,
    Sum,
    Update,
    WeightsFollow,
    Welcome,
)
from federation.survival import ATTEMPTS, Survival
from node_comm import CommError, Disconnected
from node_comm.grpc_client import GrpcClient, Way, connect
from node_comm.grpc_server import Door, GrpcServer
from node_comm.link import WINDOW
from node_comm.message import Failure
from node_comm.node import Incoming, Node, RemoteFailure
from node_comm.wire import PIECE
from tests.node.worlds import Answers, Arrays, constant, f32, in_world
from tests.node_comm.test_star import free_port

ARRAYS = {"w": f32(0, 0)}
#: name: (what it answers, its samples); the mean of all three is (2.75, 5.5).
HONEST = {"a": (f32(1, 2), 1), "b": (f32(2, 4), 1), "c": (f32(4, 8), 2)}
MEAN = f32(2.75, 5.5)


class Rows(Recorder):
    """Keeps what is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def record(self, row):
        super().record(row)
        self.rows.append(dict(row))


class Puppet:
    """A client without a learner: `on` says what it does with each order."""

    def __init__(self, name: str = "p", samples: int = 4) -> None:
        self.name, self.samples = name, samples
        self.orders: list[Any] = []
        self.ended = ""

    async def join(self, address: str, on: Callable[[Node, Incoming], Awaitable[None]], records: Any = None) -> None:
        transport = await connect(Way(address=address, name=self.name, patience=5))
        self.node = Node(transport, MESSAGES, heartbeat=0.5, beat_to=[0])
        await self.node.start()
        records = [ClientRecord(self.name, self.samples)] if records is None else records
        await self.node.request(0, Hello(node_id=self.name, clients=records, setup={}))
        self.task = asyncio.create_task(self._obey(on))

    async def _obey(self, on: Callable[[Node, Incoming], Awaitable[None]]) -> None:
        try:
            while True:
                incoming = await self.node.recv()
                self.orders.append(incoming.message)
                if isinstance(incoming.message, Shutdown):
                    await self.node.reply(incoming, Leave())
                await on(self.node, incoming)
        except CommError as error:
            self.ended = str(error)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.node.stop()


def buffer(*values: float) -> np.ndarray:
    """The bytes of an update."""
    return Weights.of({"w": f32(*values)}).buffer


def report(client_id: str = "p", num_samples: Any = 4, **more: Any) -> FitReport:
    outcome = Outcome(client_id, num_samples, 0.1, float(num_samples) if isinstance(num_samples, int) else 1.0, False)
    return FitReport(**{"outcomes": [outcome], "problems": [], "metrics": MetricSum().to_dict(), "limbs": 1, "seconds": 0.1} | more)


def reporting(**metrics: float) -> type[Answers]:
    """A learner that reports these metrics."""
    class Reporting(Answers):
        def fit(self, config=None):
            result = super().fit(config)
            return TrainResult(result.weights, result.num_samples, metrics)

    return Reporting


class Run:
    """A server on a port, its trainer, and honest clients."""

    def __init__(self, aggregator: Aggregator | None = None, **config: Any) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.rows = Rows()
        self._aggregator = aggregator or FedAvgAggregator()
        self._config = {"max_rounds": 3, "min_clients": 2, "round_timeout": 2.0, "evaluate": "none",
                        "connect_timeout": 20.0} | config
        self.clients: list[ClientNode] = []

    async def __aenter__(self) -> Run:
        transport = await GrpcServer.open(Door(address=self.address))
        host = ClientHost(aggregator=self._aggregator)
        self.server = OpenServerNode(transport=transport, host=host, round_timeout=self._config["round_timeout"])
        self.trainer = DefaultTrainer(self.server, Arrays(ARRAYS), self._aggregator, self._config, recorder=self.rows)
        self.survival = Survival(self.trainer, lambda: self.trainer)
        await self.server.start()
        return self

    async def join(self, *names: str, learner: type[Answers] = Answers, aggregator: Aggregator | None = None) -> None:
        for name in names:
            client = ClientNode({"node_id": name}, transport=await connect(Way(address=self.address, name=name, patience=5)))
            client.bind(learner(Arrays(ARRAYS), constant([HONEST[name][0]], HONEST[name][1])), aggregator=aggregator)
            await client.connect_and_register()
            self.clients.append(client)

    async def __aexit__(self, *_: Any) -> None:
        for client in self.clients:
            with contextlib.suppress(Disconnected):
                await client.stop()
        await self.server.stop()
        await self.server._transport.close()


async def nothing(node: Node, incoming: Incoming) -> None:
    """The puppet that hears, and says nothing."""


def play(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 90))


@contextlib.asynccontextmanager
async def with_puppet(on: Callable[[Node, Incoming], Awaitable[None]], **config: Any) -> AsyncIterator[tuple[Run, Puppet]]:
    async with Run(**config) as run:
        await run.join("a", "b", "c")
        puppet = Puppet()
        await puppet.join(run.address, on)
        yield run, puppet
        await puppet.leave()


def test_a_mean_over_the_network():
    async def test() -> None:
        async with Run() as run:
            await run.join("a", "b", "c")
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert [row["num_samples"] for row in run.rows.rows] == [4, 4, 4]
            assert not any("failures" in row for row in run.rows.rows)

    play(test)


def test_rows_and_a_matrix_come_to_the_server():
    """A rule of the user's, and one that works on all rows."""
    class Largest(Aggregator):
        def aggregate(self, updates, global_model=None):
            return [np.max([update.weights[0] for update in updates], axis=0)]

    async def test() -> None:
        for aggregator, wanted in ((Largest(), f32(4, 8)), (MedianAggregator(), f32(2, 4))):
            async with Run(aggregator, max_rounds=1) as run:
                await run.join("a", "b", "c")
                await run.survival.run()
                assert (run.trainer.weights[0] == wanted).all()

    play(test)


async def hangs_up(node: Node, incoming: Incoming) -> None:
    if isinstance(incoming.message, Fit):
        await node.transport.close()


async def answers_with_more(node: Node, incoming: Incoming) -> None:
    if isinstance(incoming.message, Fit):
        node.send_with_next(0, Leave())
        await node.reply(incoming, report())


async def answers_with(node: Node, incoming: Incoming, answer: FitReport) -> None:
    if isinstance(incoming.message, Fit):
        await node.reply(incoming, answer)


def means(weights: dict[Any, int]) -> dict[str, Any]:
    """Metrics, all 0, over so many samples."""
    return {"sums": dict.fromkeys(weights, "0x0"), "weights": {key: hex(count) for key, count in weights.items()},
            "not_finite": [], "left_out": []}


@pytest.mark.parametrize(("on", "why"), [
    (hangs_up, "is lost"),
    (answers_with_more, "several messages have come in one frame"),
    (lambda node, incoming: answers_with(node, incoming, report("a")), "it reports 'a', and was asked for p"),
    (lambda node, incoming: answers_with(node, incoming, report("stranger")), "it reports 'stranger'"),
    (lambda node, incoming: answers_with(node, incoming, report(num_samples=-5)), "-5 samples"),
    (lambda node, incoming: answers_with(node, incoming, report(num_samples=10**18)), "1000000000000000000 samples"),
    (lambda node, incoming: answers_with(node, incoming, report(num_samples=0.5)), "malformed"),
    (lambda node, incoming: answers_with(node, incoming, report(num_samples="10")), "malformed"),
    (lambda node, incoming: answers_with(node, incoming, report(num_samples=float("nan"))), "malformed"),
    (lambda node, incoming: answers_with(node, incoming, report(limbs=MAX_LIMBS + 1)), "a sum of 6 words; 5 are allowed"),
    (lambda node, incoming: answers_with(node, incoming, report(outcomes=[], refused="p: no such shape")), "p: no such shape"),
    (lambda node, incoming: answers_with(node, incoming, report(metrics={"loss": "much"})), "metrics"),
    (lambda node, incoming: answers_with(node, incoming, report(metrics=means({1: 1}))), "metrics cannot be used"),
    (lambda node, incoming: answers_with(node, incoming, report(metrics=means({"loss": 5}))), "means over more than 4 samples"),
    (lambda node, incoming: answers_with(node, incoming, report(metrics=means(dict.fromkeys(map(str, range(10_001)), 1)))),
     "it reports 10001 metrics; 10000 are allowed"),
    (lambda node, incoming: answers_with(node, incoming, report(metrics=means({"x" * 401: 1}))), "with names of 400 characters"),
    (lambda node, incoming: answers_with(node, incoming, report(outcomes=[Outcome("p", 4, 0.1, 1e308, False)])), "counted as 1e"),
    (lambda node, incoming: answers_with(node, incoming, report(outcomes=[Outcome("p", 4, 0.1, 0.0, False)])), "counted as 0.0"),
    (lambda node, incoming: answers_with(node, incoming, report(outcomes=[Outcome("p", 4, -1.0, 4.0, False)])), "took -1.0 s"),
    (lambda node, incoming: answers_with(node, incoming, report(seconds=float("nan"))), "took nan s"),
], ids=["hangs up", "several in a frame", "another's result", "a stranger's result", "-5", "1e18", "0.5", "text", "nan",
        "limbs", "refused", "metrics", "metrics without names", "metrics over too many", "too many metrics", "a long name",
        "a huge divisor", "no divisor", "negative seconds", "NaN seconds"])
def test_who_breaks_a_rule_is_left_out(on, why):
    """S-SEC-02, S-SEC-03: of that round, with the reason in the record; the others count, and the run goes on."""
    async def test() -> None:
        async with with_puppet(on) as (run, _):
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            first = run.rows.rows[0]
            assert why in first["failures"]["p"]
            assert (first["cohort_size"], first["num_samples"]) == (4, 4)

    play(test)


@pytest.mark.parametrize("evaluate", ["clients", "both"])
def test_who_is_lost_in_a_round_is_not_evaluated_after_it(evaluate):
    async def test() -> None:
        async with with_puppet(hangs_up, max_rounds=2, evaluate=evaluate) as (run, _):
            for client, loss in zip(run.clients, (1.0, 2.0, 6.0), strict=True):
                client.host.own[client.node_id].evaluation = 1, {"loss": loss}
            await run.survival.run()
            assert [row["client_loss"] for row in run.rows.rows] == [3.0, 3.0]

    play(test)


def test_who_evaluates_cannot_speak_for_the_servers_samples(caplog):
    """S-SEC-02: it has been given none of them, and what it says of them is no part of the record."""
    async def says(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report())
        if isinstance(incoming.message, FetchSum):
            await node.reply(incoming, Sum(), np.zeros(8, np.int64))
        if isinstance(incoming.message, Evaluate):
            await node.reply(incoming, EvaluateReport(shards=means({"accuracy": 2**30}), clients=means({}), personal=means({}),
                                                      problems=[], seconds=0.1))

    async def test() -> None:
        async with with_puppet(says, max_rounds=1, evaluate="clients") as (run, _):
            await run.survival.run()
            assert "accuracy" not in run.rows.rows[0]
            assert "p is left out: its metrics are means over more than 0 samples" in caplog.text

    play(test)


def test_the_reason_of_many_clients_is_short():
    """What one connection says is recorded for each client behind it: a long text would be there thousands of times."""
    async def fails(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, Failure(reason="no", traceback="x" * 10**6))

    async def test() -> None:
        async with Run(max_rounds=1) as run:
            await run.join("a", "b", "c")
            puppet = Puppet()
            await puppet.join(run.address, fails, [ClientRecord(f"p/{number}", 1) for number in range(1000)])
            await run.survival.run()
            failures = run.rows.rows[0]["failures"]
            assert len(failures) == 1000
            assert sum(map(len, failures.values())) < 200_000
            await puppet.leave()

    play(test)


@pytest.mark.parametrize("reduction", ["float32", "float64"])
def test_a_sum_in_floating_point_has_one_word(reduction):
    """S-SEC-02: more are refused as too many are of an exact one."""
    async def test() -> None:
        async with with_puppet(lambda node, incoming: answers_with(node, incoming, report(limbs=2)), max_rounds=1) as (run, _):
            run.trainer.reduction = reduction
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert "a sum of 2 words; 1 are allowed" in run.rows.rows[0]["failures"]["p"]

    play(test)


@pytest.mark.parametrize(("answer", "why"), [
    (constant([f32(1, 2, 3)]), "the shape (3,)"), (lambda start, context: ([f32(1, 2)], -5), "not -5")],
    ids=["another shape", "-5"])
def test_a_learner_at_fault_costs_its_own_client_alone(answer, why):
    """Its own rank refuses what it returns; the others count, and the run goes on."""
    async def test() -> None:
        async with Run(max_rounds=2) as run:
            await run.join("a", "b", "c")
            client = ClientNode({"node_id": "p"}, transport=await connect(Way(address=run.address, name="p", patience=5)))
            client.bind(Answers(Arrays(ARRAYS), answer))
            await client.connect_and_register()
            run.clients.append(client)
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert [why in row["failures"]["p"] for row in run.rows.rows] == [True, True]

    play(test)


def test_who_claims_to_have_all_samples_takes_nothing_from_the_others():
    """It sends no update, so the mean is that of the others, to the last bit, whatever was planned with."""
    answers = [f32(0.1, 0.7), f32(0.2, -0.3)]

    async def test() -> None:
        async with Run(max_rounds=1) as run:
            for name, answer in zip("ab", answers, strict=True):
                client = ClientNode({"node_id": name}, transport=await connect(Way(address=run.address, name=name)))
                client.bind(Answers(Arrays(ARRAYS), constant([answer])))
                await client.connect_and_register()
                run.clients.append(client)
            puppet = Puppet()
            await puppet.join(run.address, hangs_up, [ClientRecord(f"p/{number}", MOST_SAMPLES) for number in range(1000)])
            await run.survival.run()
            assert (run.trainer.weights[0] == np.mean(answers, axis=0, dtype=np.float64).astype(np.float32)).all()
            await puppet.leave()

    play(test)


def test_who_is_late_is_left_out():
    """S-LIFE-08: the round closes at round_timeout with those that are done; the late answer counts nowhere."""
    late: list[Incoming] = []

    async def dawdles(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            for held in late:
                await node.reply(held, report())  # that of the round before, once more
            late.append(incoming)

    async def test() -> None:
        async with with_puppet(dawdles, round_timeout=1.0) as (run, _):
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert [row["num_samples"] for row in run.rows.rows] == [4, 4, 4]
            assert [row["failures"] for row in run.rows.rows] == [
                {"p": "failed: it has not answered within round_timeout=1 s"}] * 3
            assert [row["clients_failed"] for row in run.rows.rows] == [1, 1, 1]

    play(test)


def test_a_result_that_comes_twice_counts_once():
    """S-SEC-03: the second one is nobody's."""
    async def twice(node: Node, incoming: Incoming) -> None:
        message = incoming.message
        if isinstance(message, Fit):
            await node.reply(incoming, report())
            await node.reply(incoming, report(num_samples=40))
        if isinstance(message, FetchUpdate):
            for _ in range(2):
                await node.reply(incoming, Update(metrics={}), buffer(8, 16))

    class Mean(Aggregator):
        def aggregate(self, updates, global_model=None):
            assert [update.num_samples for update in updates] == [1, 1, 2, 4]
            return [np.mean([update.weights[0] for update in updates], axis=0)]

    async def test() -> None:
        async with with_puppet(twice, aggregator=Mean()) as (run, _):
            await run.survival.run()
            assert (run.trainer.weights[0] == f32(3.75, 7.5)).all()

    play(test)


@pytest.mark.parametrize("what", ["NaN", "another shape", "nothing", "hangs up", "a failure", "another message"])
def test_an_update_that_is_no_good_has_the_round_done_again(what):
    """S-AGG-10, S-AGG-11 over the wire: without the guilty one, who is let go; the others do not notice."""
    async def spoils(node: Node, incoming: Incoming) -> None:
        message = incoming.message
        if isinstance(message, Fit):
            await node.reply(incoming, report())
        if isinstance(message, FetchUpdate | FetchSum):
            kind: Any = Update(metrics={}) if isinstance(message, FetchUpdate) else Sum()
            match what:
                case "NaN":
                    await node.reply(incoming, kind, buffer(np.nan, 1))
                case "another shape":
                    await node.reply(incoming, kind, np.zeros(500, np.uint8))
                case "hangs up":
                    await node.transport.close()
                case "a failure":
                    await node.reply(incoming, Failure(reason="no"))
                case "another message":
                    await node.reply(incoming, Leave())

    class Mean(Aggregator):
        def aggregate(self, updates, global_model=None):
            return [np.average([update.weights[0] for update in updates], axis=0,
                               weights=[update.num_samples for update in updates])]

    async def test() -> None:
        for aggregator in (Mean(), FedAvgAggregator()):
            if what == "NaN" and isinstance(aggregator, FedAvgAggregator):
                continue  # a sum is of integers
            async with with_puppet(spoils, aggregator=aggregator, round_timeout=1.0, max_rounds=2) as (run, puppet):
                attempts, fit = [], run.server.begin_fit

                async def counted(plan, attempts=attempts, fit=fit):
                    attempts.append(plan.round)
                    return await fit(plan)

                run.server.begin_fit = counted
                await run.survival.run()
                assert attempts == ([1, 1, 1, 2] if what == "nothing" else [1, 1, 2]), "who is late has another try"
                assert (run.trainer.weights[0] == MEAN).all()
                assert [row["round"] for row in run.rows.rows] == [1, 2]
                assert puppet.name not in [client.client_id for client in run.server.get_connected_clients()]

    play(test)


@pytest.mark.parametrize(("reduction", "word", "limbs"), [
    ("float32", np.float32(np.nan), 1), ("float32", np.float32(-np.inf), 1), ("float64", np.float64(np.inf), 1),
    ("exact", np.int64(2**62), MAX_LIMBS)])
@pytest.mark.parametrize("again", [False, True], ids=["", "not again"])
def test_a_sum_that_makes_no_numbers_has_the_round_done_again(reduction, word, limbs, again):
    """S-AGG-10, S-SEC-02: without the guilty one; who sends another sum when it is asked again counts with that."""
    asked: list[int] = []

    async def spoils(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            asked.clear()
            await node.reply(incoming, report(limbs=limbs))
        if isinstance(incoming.message, FetchSum):
            asked.append(incoming.message.word)
            is_good = again and asked.count(incoming.message.word) > 1
            await node.reply(incoming, Sum(), np.full(8, 0 if is_good else word, word.dtype))

    async def test() -> None:
        async with with_puppet(spoils, max_rounds=2) as (run, puppet):
            run.trainer.reduction = reduction
            await run.survival.run()
            assert (run.trainer.weights[0] == (MEAN * 3 / 4 if again else MEAN)).all()
            assert [row["round"] for row in run.rows.rows] == [1, 2]
            is_here = puppet.name in [client.client_id for client in run.server.get_connected_clients()]
            assert is_here == again

    play(test)


@pytest.mark.parametrize("aggregator", [GeometricMedianAggregator(), CentredClippingAggregator(1.0), FLTrustAggregator("a")],
                         ids=lambda aggregator: type(aggregator).__name__)
def test_a_row_that_is_too_far_for_its_distance_has_the_round_done_again(monkeypatch, aggregator):
    """S-SEC-02: float64 goes so far that rules which go by distances cannot tell them, and ended the run."""
    monkeypatch.setitem(ARRAYS, "w", np.zeros(2))

    async def spoils(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report(limbs=0))
        if isinstance(incoming.message, FetchUpdate):
            await node.reply(incoming, Update(metrics={}), Weights.of({"w": np.array([1e308, 1.0])}).buffer)

    async def test() -> None:
        async with with_puppet(spoils, aggregator=aggregator, max_rounds=2) as (run, puppet):
            await run.survival.run()
            assert [row["num_samples"] for row in run.rows.rows] == [4, 4]
            assert (run.trainer.weights[0] <= HONEST["c"][0]).all()
            assert puppet.name not in [client.client_id for client in run.server.get_connected_clients()]

    play(test)


@pytest.mark.parametrize(("metrics", "why"), [
    ({"normaliser": np.nan}, "normaliser is no number"), ({"normaliser": 1e308}, "divided by 4e-308; 3.64e-12 to"),
    ({"normaliser": 1e40}, "divided by 4e-40"), ({"normaliser": -3.0}, "divided by -1.33"), ({"normaliser": -1.0}, "divided by -4"),
    ({"normaliser": 0.0}, "ZeroDivisionError"), ({"normaliser": 1e-308}, "divided by inf"), ({}, "normaliser: None")],
    ids=["NaN", "1e308", "1e40", "-3", "-1", "0", "1e-308", "none"])
def test_a_metric_that_all_are_divided_by_has_nobody_else_let_go(metrics, why):
    """FedNova divides by the mean of what clients report: who spoils it is left out, and takes no attempt from the round."""
    attempts: list[int] = []

    async def spoils(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            attempts.append(incoming.message.round)
            reported = MetricSum()
            reported.add(metrics, 4)
            await node.reply(incoming, report(metrics=reported.to_dict()))
        if isinstance(incoming.message, FetchSum):
            await node.reply(incoming, Sum(), np.zeros(8, np.int64))

    async def test() -> None:
        async with Run(FedNovaAggregator(), max_rounds=1) as run:
            await run.join("a", "b", "c", learner=reporting(normaliser=1.0), aggregator=FedNovaAggregator())
            puppet = Puppet()
            await puppet.join(run.address, spoils)
            await run.survival.run()
            assert attempts == [1]
            assert why in run.rows.rows[0]["failures"]["p"]
            assert list(run.rows.rows[0]["failures"]) == ["p"]
            assert (run.trainer.weights[0] == MEAN).all()
            await puppet.leave()

    play(test)


def test_the_rest_of_a_late_sum_counts_nowhere(monkeypatch):
    """S-LIFE-08: a sum has begun to come when its time is over, and goes on when others are added up in the round's second try."""
    goes_on, has_come = asyncio.Event(), asyncio.Event()

    async def is_slow(node: Node, incoming: Incoming) -> None:
        message = incoming.message
        if isinstance(message, Fit) and not has_come.is_set():
            await node.reply(incoming, report())
        if isinstance(message, FetchSum):
            link = node.transport._server
            stream = link._stream

            async def write(frame: bytes) -> None:
                if frame[0] == PIECE:
                    await goes_on.wait()
                await stream(frame)

            link._stream = write
            await node.reply(incoming, Sum(), np.full(8, 2**40))
            with contextlib.suppress(CommError):  # its answer comes when what was sent before has been taken
                await node.request(0, Hello(node_id="p", clients=[], setup={}))
            has_come.set()

    async def test() -> None:
        async with with_puppet(is_slow, round_timeout=1.0, max_rounds=1) as (run, _):
            reduced, attempts = run.server.reduced, itertools.count(1)

            async def reduced_late(order):
                if next(attempts) == 2:
                    run.server.host.updates.sum.ensure_limbs(order.limbs)
                    assert not run.server.host.updates.sum.limbs[0].any()
                    goes_on.set()
                    await has_come.wait()
                return await reduced(order)

            monkeypatch.setattr(run.server, "reduced", reduced_late)
            await run.survival.run()
            assert has_come.is_set()
            assert (run.trainer.weights[0] == MEAN).all()

    play(test)


def compression(codec: str) -> dict[str, Any]:
    return {"codec": codec, "fraction": 0.5} if codec == "topk" else {"codec": codec}


def packed(values: list[float], codec: str) -> np.ndarray:
    """An update of `ARRAYS` as a client packs it."""
    start = Weights.of(ARRAYS)
    found = Packing(Compression(codec, 0.5), start).pack("p", [f32(*values)], np.random.default_rng(0))
    return found.data


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8", "topk"])
@pytest.mark.parametrize("aggregator", [FedAvgAggregator, MedianAggregator])
def test_packed_updates_count_as_in_one_process(codec, aggregator):
    """For a sum, and for a matrix of rows; the oracle is the same world in memory."""
    config = {"compression": compression(codec)}

    async def program(server):
        settings = {"max_rounds": 3, "min_clients": 3, "evaluate": "none"} | config
        trainer = DefaultTrainer(server, Arrays(ARRAYS), aggregator(), settings)
        await trainer.run()
        return trainer.weights.buffer.copy()

    async def test() -> None:
        async with Run(aggregator=aggregator(), min_clients=3, **config) as run:
            await run.join("a", "b", "c")
            await run.survival.run()
            found.append(run.trainer.weights.buffer.copy())
            assert len(run.rows.rows) == 3

    found: list[np.ndarray] = []
    play(test)
    expected = in_world(ARRAYS, {name: constant([arrays], samples) for name, (arrays, samples) in HONEST.items()}, program)
    assert (found[0] == expected).all()
    assert not (found[0] == 0).all()


@pytest.mark.parametrize(("codec", "data"), [
    ("float16", packed([1, 2], "float16")[:-1]), ("topk", np.frombuffer(b"\xff" * 8, np.uint8)),
    ("bfloat16", np.frombuffer(b"\xff" * 4, np.uint8)), ("int8", np.frombuffer(b"\xff" * 6, np.uint8))],
    ids=["too short", "places that are none", "NaN", "a scale that is NaN"])
@pytest.mark.parametrize("aggregator", [FedAvgAggregator, MedianAggregator])
def test_a_packed_update_that_is_no_good_has_the_round_done_again(codec, data, aggregator):
    """S-AGG-10, S-SEC-02: as for those that are not packed."""
    async def spoils(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report())
        if isinstance(incoming.message, FetchUpdate):
            await node.reply(incoming, Update(metrics={}), data)

    async def test() -> None:
        async with with_puppet(spoils, aggregator=aggregator(), compression=compression(codec),
                               max_rounds=2) as (run, puppet):
            await run.survival.run()
            assert [row["round"] for row in run.rows.rows] == [1, 2]
            assert puppet.name not in [client.client_id for client in run.server.get_connected_clients()]

    play(test)


@pytest.mark.parametrize("metrics", [{}, {"steps": None}, {"steps": 0}, {"steps": "many"}, {"steps": 1e-300}])
def test_metrics_that_a_packed_update_cannot_be_weighed_by_have_the_round_done_again(metrics):
    """Its weight is made on the server, by a rule that may be the user's, of what the client says."""
    class BySteps(MeanAggregator):
        def weigh(self, update, start):
            return Contribution(update.num_samples / update.metrics["steps"], update.num_samples)

        def step(self, start, mean, stats):
            pass

    async def spoils(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report())
        if isinstance(incoming.message, FetchUpdate):
            await node.reply(incoming, Update(metrics=metrics), packed([1, 2], "float16"))

    async def test() -> None:
        async with Run(BySteps(), compression={"codec": "float16"}, max_rounds=1) as run:
            await run.join("a", "b", "c", learner=reporting(steps=1.0), aggregator=BySteps())
            puppet = Puppet()
            await puppet.join(run.address, spoils)
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert puppet.name not in [client.client_id for client in run.server.get_connected_clients()]
            await puppet.leave()

    play(test)


@pytest.mark.parametrize("answer", [Failure(reason="no"), Leave()], ids=["a failure", "another message"])
def test_another_answer_than_a_packed_update_has_the_round_done_again(answer):
    async def spoils(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report())
        if isinstance(incoming.message, FetchUpdate):
            await node.reply(incoming, answer)

    async def test() -> None:
        for aggregator in (FedAvgAggregator(), MedianAggregator()):
            async with with_puppet(spoils, aggregator=aggregator, compression={"codec": "float16"}, max_rounds=2) as (run, puppet):
                await run.survival.run()
                assert [row["round"] for row in run.rows.rows] == [1, 2]
                assert puppet.name not in [client.client_id for client in run.server.get_connected_clients()]

    play(test)


def test_all_that_answer_wrongly_are_let_go_at_once():
    """However many there are, they cost one attempt."""
    async def fails(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report(client_id=incoming.message.clients[0]))
        if isinstance(incoming.message, FetchSum):
            await node.reply(incoming, Failure(reason="no"))

    async def test() -> None:
        async with Run(max_rounds=1) as run:
            await run.join("a", "b", "c")
            puppets = [Puppet(f"p{number}") for number in range(ATTEMPTS + 1)]
            for puppet in puppets:
                await puppet.join(run.address, fails)
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            for puppet in puppets:
                await puppet.leave()

    play(test)


def test_who_spoils_a_round_and_comes_back_does_not_spoil_it_again():
    """Under whatever name: it would end the run after three attempts. It takes part from the next round on, like any newcomer."""
    puppets: list[Puppet] = []

    async def test() -> None:
        async with Run(max_rounds=2) as run:
            async def spoils(node: Node, incoming: Incoming) -> None:
                if isinstance(incoming.message, Fit):
                    await node.reply(incoming, report(incoming.message.clients[0]))
                if isinstance(incoming.message, FetchSum):
                    await comes()
                    await node.reply(incoming, Failure(reason="no"))

            async def comes() -> None:
                puppets.append(Puppet(f"p{len(puppets)}"))
                await puppets[-1].join(run.address, spoils)

            await run.join("a", "b", "c")
            await comes()
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert [row["cohort_size"] for row in run.rows.rows] == [3, 3]
            assert len(puppets) == 3
            for puppet in puppets:
                await puppet.leave()

    play(test)


@pytest.mark.parametrize("what", ["hangs up", "a failure", "another message"])
def test_who_does_not_take_what_it_has_kept(what):
    """A client that was here before, and left something: it is let go, nothing is lost of what another has kept."""
    async def refuses(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Move):
            match what:
                case "hangs up":
                    await node.transport.close()
                case "a failure":
                    await node.reply(incoming, Failure(reason="no"))
                case "another message":
                    await node.reply(incoming, Update(metrics={}))

    async def test() -> None:
        async with with_puppet(refuses, max_rounds=2) as (run, puppet):
            run.server.states.adopt({name: Weights.of({"kept": f32(1)}) for name in ("a", "p")})
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert puppet.name not in [client.client_id for client in run.server.get_connected_clients()]
            assert run.clients[0].host.states.of("a")["kept"] == f32(1)
            assert run.server.states.homes == {"a": 1, "p": 0}

    play(test)


def test_who_leaves_once_its_update_is_in_counts_as_one_of_the_clients():
    """FedDyn goes by the share of the clients that took part: of 0 that were left, it was a ZeroDivisionError."""
    async def leaves(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit):
            await node.reply(incoming, report(outcomes=[Outcome("p", 4, 0.1, 1.0, False)]))
        if isinstance(incoming.message, FetchSum):
            await node.reply(incoming, Sum(), np.zeros(8, np.int64))
            await node.send(0, Leave())

    async def test() -> None:
        async with Run(FedDynAggregator(), max_rounds=1, min_clients=1) as run:
            puppet = Puppet()
            await puppet.join(run.address, leaves)
            mean = run.server.mean

            async def and_nobody_is_left(*arguments):
                await mean(*arguments)
                while len(run.server.clients):
                    await asyncio.sleep(0.001)

            run.server.mean = and_nobody_is_left
            await run.survival.run()
            assert [row["num_samples"] for row in run.rows.rows] == [4]
            await puppet.leave()

    play(test)


def test_newcomers_take_part_from_the_next_round_on():
    """S-LIFE-09: who comes in the middle of a round; and who left and comes back counts once."""
    async def test() -> None:
        async with Run(max_rounds=4) as run:
            await run.join("a", "b")
            arrived = asyncio.Event()

            async def comes(node: Node, incoming: Incoming) -> None:
                if isinstance(incoming.message, Fit):
                    if incoming.message.round == 1:
                        await run.join("c")
                    await node.reply(incoming, report(num_samples=0))
                    if incoming.message.round == 2:
                        arrived.set()
                        await node.transport.close()

            puppet = Puppet()
            await puppet.join(run.address, comes)
            running = asyncio.create_task(run.survival.run())
            await arrived.wait()
            await running
            assert [row["cohort_size"] for row in run.rows.rows][:2] == [3, 4]
            assert [row["num_samples"] for row in run.rows.rows] == [2, 4, 4, 4]
            assert (run.trainer.weights[0] == MEAN).all()
            await puppet.leave()

    play(test)


def test_too_few_clients_have_the_round_done_again():
    """One of two that are needed hangs up in the first round; when another comes, the round goes on."""
    async def test() -> None:
        async with Run(min_clients=2, max_rounds=2) as run:
            await run.join("a")
            puppet = Puppet()
            await puppet.join(run.address, hangs_up)
            running = asyncio.create_task(run.survival.run())
            while run.server.star.ranks != [1]:
                await asyncio.sleep(0.02)
            await run.join("c")
            await running
            assert [row["round"] for row in run.rows.rows] == [1, 2]
            assert (run.trainer.weights[0] == f32(3, 6)).all()
            await puppet.leave()

    play(test)


def test_what_clients_keep_goes_on_where_a_round_is_done_again():
    """No checkpoint is due before, so that nothing but the commits says what they keep; one leaves in round 3, another comes."""
    seen: list[tuple[int, float]] = []

    class Counts(Answers):
        def fit(self, config=None):
            count = self.client_state.get("count", np.zeros(1))
            if self.context.client_id == "a":
                seen.append((self.context.round, float(count[0])))
            return TrainResult([f32(0, 0)], 1, state={"count": count + 1})

    async def leaves(node: Node, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fit) and incoming.message.round == 3:
            await node.transport.close()
        elif isinstance(incoming.message, Fit):
            await node.reply(incoming, report(num_samples=0))

    async def test() -> None:
        async with Run(max_rounds=4, min_clients=2) as run:
            await run.join("a", learner=Counts)
            puppet = Puppet()
            await puppet.join(run.address, leaves)
            rewind = run.trainer.recover

            def recover() -> bool:
                joining.append(asyncio.create_task(run.join("c", learner=Counts)))
                return rewind()

            joining: list[asyncio.Task[None]] = []
            run.trainer.recover = recover
            await run.survival.run()
            await asyncio.gather(*joining)
            assert seen == [(1, 0), (2, 1), (3, 2), (3, 2), (4, 3)]
            assert [row["round"] for row in run.rows.rows] == [1, 2, 3, 4]
            await puppet.leave()

    play(test)


def test_what_was_fetched_for_a_round_that_is_done_again_is_void():
    """A client is lost after its new state was fetched, and then the round fails: what it keeps is that of the last commit."""
    async def keeps(node: Node, incoming: Incoming) -> None:
        message = incoming.message
        if isinstance(message, Move):
            await node.reply(incoming, Moved())
        if isinstance(message, Fit):
            await node.reply(incoming, report(outcomes=[Outcome("p", 0, 0.1, 0.0, keeps=True)]))
        if isinstance(message, FetchState):
            state = Weights.of({"kept": f32(message.proposed)})
            await node.reply(incoming, ClientState(client_id="p", layout=state.layout.to_dict()), state.buffer)

    async def test() -> None:
        async with with_puppet(keeps, max_rounds=2) as (run, _):
            server, collect_states = run.server, run.server.collect_states
            server.states.adopt({"p": Weights.of({"kept": f32(0)})})

            async def and_fails(coming: bool = False):
                states = await collect_states(coming)
                if coming and server.members.ranks == [1, 2, 3, 4]:
                    assert states["p"]["kept"] == f32(1)
                    server._let_go(4, "it is lost after all")
                    raise RoundError("and another one too")
                return states

            run.rows.is_due = lambda number, last: True
            server.collect_states = and_fails
            await run.survival.run()
            assert server.host.states.of("p")["kept"] == f32(0)

    play(test)


def test_nobody_comes():
    """S-LIFE-08: after connect_timeout, once, with how many are there."""
    async def test() -> None:
        async with Run(connect_timeout=0.5, min_clients=3) as run:
            await run.join("a")
            wait_for, waits = run.server.members.wait_for, []

            async def counted(*arguments):
                waits.append(arguments)
                await wait_for(*arguments)

            run.server.members.wait_for = counted
            with pytest.raises(RoundError, match=r"not enough clients after 0.5 s: 1 of 3 clients"):
                await run.survival.run()
            assert len(waits) == 1

    play(test)


@pytest.mark.parametrize(("records", "why"), [
    ([ClientRecord("a", 1)], "there is a client 'a' already"),
    ([ClientRecord("other", 1)], "the clients of 'p' are called 'p' or p/"),
    ([ClientRecord("p", -1)], "-1 samples"),
    ([ClientRecord("p", 2**50)], "samples"),
    ([ClientRecord("p", 1), ClientRecord("p", 1)], "already"),
    ([ClientRecord("p/" + "9" * 5000, 1)], "a name of 5002 characters"),
    ([ClientRecord("p/\n", 1)], "cannot be printed"),
])
def test_introductions_that_are_refused(records, why):
    """S-SEC-03: with the reason; the server stays."""
    async def test() -> None:
        async with Run(max_rounds=1) as run:
            await run.join("a", "b")
            with pytest.raises((RemoteFailure, Disconnected), match=why):
                await Puppet().join(run.address, nothing, records=records)
            await run.survival.run()
            assert run.rows.rows[0]["cohort_size"] == 2

    play(test)


def test_who_hangs_up_before_its_introduction_is_answered():
    """S-LIFE-10: it is lost alone."""
    async def test() -> None:
        async with Run(max_rounds=1) as run:
            heard = run.server._heard

            async def late(node: Node, incoming: Incoming) -> None:
                is_it = isinstance(incoming.message, Hello) and incoming.message.node_id == "x"
                while is_it and incoming.source in run.server.star.ranks:
                    await asyncio.sleep(0.001)
                await heard(node, incoming)

            run.server._heard = late
            await run.join("a", "b", "c")
            node = Node(await connect(Way(address=run.address, name="x")), MESSAGES)
            await node.start()
            await node.ask(0, Hello(node_id="x", clients=[ClientRecord("x", 1)], setup={}))
            await node.stop()
            await run.survival.run()
            assert run.rows.rows[0]["cohort_size"] == 3

    play(test)


def test_who_introduces_itself_again_and_again_and_reads_nothing(caplog):
    """The server would wait until its answers are read, and hear nobody meanwhile; it is let go, and others come."""
    async def test() -> None:
        async with Run(max_rounds=1) as run:
            transport = await connect(Way(address=run.address, name="x"))
            transport._server._told = 10**9  # it confirms nothing that it gets
            node = Node(transport, MESSAGES)
            await node.start()
            with contextlib.suppress(CommError):
                for _ in range(2 * WINDOW):
                    await node.ask(0, Hello(node_id="x", clients=[ClientRecord("x", 1)], setup={}))
                    await node.send(0, Leave())
            await asyncio.wait_for(run.join("a", "b", "c"), 20)
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            assert "x (rank 1) is let go: it introduces itself twice" in caplog.text
            await node.stop()

    play(test)


def tables(value: Any, path: str, seen: set[int]) -> dict[str, int]:
    """How many entries there are in each container of an object of this project, and in those of what it holds."""
    found: dict[str, int] = {}
    if id(value) not in seen and type(value).__module__.split(".")[0] in ("federation", "node_comm"):
        seen.add(id(value))
        for name, held in getattr(value, "__dict__", {}).items():
            if isinstance(held, (dict, set, list, deque)):
                found[f"{path}.{name}"] = len(held)
            found |= tables(held, f"{path}.{name}", seen)
    return found


def test_clients_that_have_gone_leave_nothing_behind(monkeypatch):
    """S-LIFE-07: clients come and go for as long as a server runs; of the last of them, the names are kept for its log."""
    monkeypatch.setattr("node_comm.grpc_server.NAMES_KEPT", 2)

    async def test() -> None:
        async with Run() as run:
            before = tables(run.server, "server", set())
            for number in range(12):
                puppet = Puppet(f"p{number % 3}")
                with contextlib.suppress(RemoteFailure, Disconnected):
                    await puppet.join(run.address, nothing, [ClientRecord("other", 1)] if number % 3 else None)
                    if number % 2:
                        await puppet.node.send(0, Leave())
                await puppet.node.stop()
            while run.server.star.ranks or 12 in run.server.members:
                await asyncio.sleep(0.01)
            await run.join("a")  # where the server hears of it, it has heard of all that came before
            after = tables(run.server, "server", set())
            grown = {path: count for path, count in after.items() if count > before[path] + 1}
            assert grown == {"server._transport._names": 3, "server._transport._gone": 2}
            assert [run.server.star.name(rank) for rank in (10, 11, 12, 13)] == ["rank 10", "p1", "p2", "a"]
            with pytest.raises(Disconnected, match="rank 12 is not there"):
                await run.server.star.recv(12)

    play(test)


def test_several_clients_behind_one_connection():
    async def test() -> None:
        async with Run(max_rounds=1) as run:
            client = ClientNode({"node_id": "site"}, transport=await connect(Way(address=run.address, name="site")))
            for name, (answer, samples) in HONEST.items():
                client.bind(Answers(Arrays(ARRAYS), constant([answer], samples)), client_id=f"site/{name}")
            await client.connect_and_register()
            run.clients.append(client)
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()

    play(test)


async def says_nonsense(transport: GrpcClient, what: str) -> None:
    match what:
        case "garbage":
            await transport.send(0, b"\xff\xfe garbage")
        case "bad text":
            await transport.send(0, b"\x93\x00\x00\x81\xa4type\xa3\xff\xff\xff")
        case "unknown message":
            await transport.send(0, b"\x93\x00\x00\x81\xa4type\xa4Nope")
        case "a payload":
            await transport.send(0, b"\x93\x00\x00\x81\xa4type\xa5Leave", np.zeros(10**6))
        case "a server's message":
            await transport.send(0, b"\x93\x00\x00\x82\xa4type\xa8Shutdown\xa6reason\xa0")


@pytest.mark.parametrize("what", ["garbage", "bad text", "unknown message", "a payload", "a server's message"])
def test_nonsense_costs_its_sender_the_connection(what):
    """S-SEC-01, S-SEC-02: and nobody else anything."""
    async def test() -> None:
        async with Run(max_rounds=1) as run:
            await run.join("a", "b", "c")
            stranger = await connect(Way(address=run.address, name="x"))
            with contextlib.suppress(Disconnected):
                await says_nonsense(stranger, what)
            with pytest.raises(Disconnected):
                await asyncio.wait_for(stranger.recv(), 20)
            await run.survival.run()
            assert (run.trainer.weights[0] == MEAN).all()
            await stranger.close()

    play(test)


def test_who_leaves_first_does_not_end_the_run_for_the_others():
    """The server waits for every answer to its farewell, and takes the end of a connection for no loss meanwhile."""

    class Leaving(Puppet):
        async def _obey(self, seconds):
            incoming = await self.node.recv()
            assert isinstance(incoming.message, Shutdown)
            await asyncio.sleep(seconds)
            await self.node.reply(incoming, Leave())
            await self.node.stop()

    async def main():
        async with Run() as run:
            quick, slow = Leaving("quick"), Leaving("slow")
            await quick.join(run.address, 0.0)
            await slow.join(run.address, 0.5)
            await run.server.stop()
            await asyncio.gather(quick.task, slow.task)

    asyncio.run(main())


LAYOUT = Weights.of(ARRAYS).layout.to_dict()


@pytest.mark.parametrize(("order", "beside", "why"), [
    (FetchSum(round=1, limbs=1, word=0), None, "FetchSum, .* cannot be obeyed"),
    (FetchUpdate(round=1, client_id="z"), None, r"FetchUpdate, .* cannot be obeyed here:(?s:.*)KeyError: 'z'"),
    (FetchState(client_id="z"), None, "FetchState, .* cannot be obeyed"),
    (WeightsFollow(layout={}, num_model=1), None, "WeightsFollow, .* cannot be obeyed"),
    (WeightsFollow(layout=LAYOUT, num_model=1), np.ones(1, np.uint8), r"weights of 64 bytes follow, .* uint8 \(1,\) has come"),
    (WeightsFollow(layout=LAYOUT, num_model=1), np.ones(64), r"weights of 64 bytes follow, .* float64 \(64,\) has come"),
    (None, None, "answered with Leave; wanted Welcome"),
], ids=["no sum", "no such client", "no such state", "no layout", "one byte for all", "another dtype", "no welcome"])
def test_a_server_that_says_what_cannot_be(order, beside, why):
    """Its client ends with an error that says what came: not with a bare KeyError, nor with weights that are none."""
    async def test() -> None:
        address = f"127.0.0.1:{free_port()}"
        server = Node(await GrpcServer.open(Door(address=address)), MESSAGES)
        await server.start()
        client = ClientNode({"node_id": "a"}, transport=await connect(Way(address=address, name="a")))
        client.bind(Answers(Arrays(ARRAYS), constant([f32(1, 2)])))
        registering = asyncio.create_task(client.connect_and_register())
        hello = await server.recv()
        await server.reply(hello, Leave() if order is None else Welcome(server_id="server"))
        with pytest.raises(CommError, match=why):
            await registering
            await server.send(1, order, beside)
            await asyncio.wait_for(client.wait(), 20)
        await client.stop()
        await server.stop()

    play(test)
