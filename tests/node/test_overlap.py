"""A round is concluded while the next one trains: what is sent when, and that nothing else has changed."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from federation.builtin import DefaultTrainer, FedAvgAggregator
from federation.core.aggregator import MeanAggregator
from federation.core.types import EvalResult
from federation.errors import RoundError
from federation.infra import checkpoint
from federation.infra.checkpoint import Checkpoints
from federation.infra.logger import round_number
from federation.infra.recorder import Recorder
from federation.infra.walltime import MARGIN, RESERVE, OutOfTime, WallTime
from federation.node.compute import compute
from federation.node.orders import Orders
from federation.node.protocol import MESSAGES, Evaluate, EvaluateReport, Fit, Moved
from node_comm.memory import MemoryTransport
from node_comm.message import Codec
from tests.node.test_client_state import CLIENTS, MODEL, Diary, plain
from tests.node.test_client_state import in_world as in_diaries
from tests.node.worlds import Answers, Arrays, constant, f32, in_world, names

ROUNDS = 4
CODEC = Codec(MESSAGES)


class Watched:
    """Rank 0's transport, whose orders and reports are kept in `seen`: the names of the messages' types, with the round of orders.

    No report of an evaluation comes through before all `ranks` have the order to train in the next round, where there is one.
    """

    def __init__(self, ranks: int, last: int, held: bool = True) -> None:
        self.seen: list[tuple[str, int]] = []
        self.sent = 0
        self._ranks, self._last, self._held = ranks, last, held
        self._training: dict[int, int] = {}
        self._sent = asyncio.Event()

    def wrap(self, transport: Any) -> Any:
        if transport.rank == 0:
            send, recv = transport.send, transport.recv
            self.round = 0

            async def watched_send(dest, header, buffer=None):
                message = CODEC.body(CODEC.open(header))
                self.sent += 1
                if isinstance(message, Evaluate | Fit):
                    self.seen.append((type(message).__name__, message.round))
                    if isinstance(message, Fit):
                        self._training[message.round] = self._training.get(message.round, 0) + 1
                        self._sent.set()
                    else:
                        self.round = message.round
                await send(dest, header, buffer)

            async def watched_recv(*args, **kwargs):
                received = await recv(*args, **kwargs)
                message = CODEC.body(CODEC.open(received.header))
                if isinstance(message, EvaluateReport):
                    wanted = self.round + 1
                    while self._held and wanted <= self._last and self._training.get(wanted, 0) < self._ranks:
                        self._sent.clear()
                        await asyncio.wait_for(self._sent.wait(), 10)
                    self.seen.append(("report", 0))
                return received

            transport.send, transport.recv = watched_send, watched_recv
        return transport

    @property
    def trips(self) -> int:
        """How often orders went out after reports had come."""
        kinds = ["report" if kind == "report" else "order" for kind, _ in self.seen]
        return sum(kind == "order" and before == "report" for kind, before in zip(kinds, ["report", *kinds], strict=False))


class Kept(Recorder):
    """Remembers rows and checkpoints; one is due after every round, where `every`."""

    def __init__(self, every: bool = True, **more: Any) -> None:
        super().__init__(**more)
        self.every = every
        self.rows: list[dict[str, Any]] = []
        self.saved: list[tuple[int, dict[str, Any], dict[str, Any]]] = []

    def record(self, row):
        super().record(row)
        self.rows.append(dict(row))

    def is_due(self, number, *, last=False):
        return self.every or super().is_due(number, last=last)

    def checkpoint(self, snapshot, lends_weights=False):
        self.saved.append((snapshot.round, {name: array.tolist() for name, array in snapshot.weights.items()},
                           plain(snapshot.clients)))


async def trained(server, recorder=None, arrays=None, moving=None, **config):
    """A trainer that has run. With `moving`, where clients live is collected there, and placement is another in each round."""
    trainer = DefaultTrainer(server, Arrays(arrays or {"w": f32(0)}), FedAvgAggregator(),
                             {"max_rounds": ROUNDS, "min_clients": 1, "evaluate": "clients"} | config, recorder=recorder)
    plan = trainer.plan

    def elsewhere(number):
        moving.add(tuple(sorted(server.states.homes.items())))
        server.placement.policy = ("balanced", "last_rank")[number % 2]
        return plan(number)

    if moving is not None:
        trainer.plan = elsewhere
    await trainer.run()
    return trainer


def test_orders_to_train_do_not_wait_for_evaluations():
    """A trip to the ranks and back for each round and one for the last evaluation, with no message more than one by one."""
    watched = Watched(3, ROUNDS)
    in_world({"w": f32(0)}, {name: constant([f32(1)]) for name in names(3)}, trained, wrap=watched.wrap)
    orders = [order for order in watched.seen if order[0] != "report"]
    wanted = [("Fit", 1)] * 3
    for number in range(1, ROUNDS):
        wanted += [("Evaluate", number)] * 3 + [("Fit", number + 1)] * 3
    assert orders == [*wanted, *[("Evaluate", ROUNDS)] * 3]
    assert watched.trips == ROUNDS
    # To each of three ranks: that weights follow, at first and in each round, whom to train, whom to evaluate, that sums are
    # wanted, an answer to its greeting, and the end.
    assert watched.sent == 3 * (ROUNDS * 4 + 1 + 2)


def test_rounds_without_an_evaluation_are_recorded_before_the_next_is_trained_or_meanwhile():
    """Nothing is waited for then."""
    rows: list[int] = []

    class Rows(Recorder):
        def record(self, row):
            super().record(row)
            rows.append(row["round"])

    def answer(start, context):
        assert len(rows) >= context.round - 2
        return [f32(1)], 1

    in_world({"w": f32(0)}, {"a": answer}, lambda server: trained(server, Rows(), evaluate="none"))
    assert rows == list(range(1, ROUNDS + 1))


@pytest.mark.parametrize("evaluate", ["none", "server"])
def test_every_round_is_recorded_once(evaluate):
    """Alone, where nobody is to be kept busy meanwhile, as well; and not again by a run that finds nothing left to do."""
    recorder = Kept()

    async def program(server):
        trainer = await trained(server, recorder, MODEL, evaluate=evaluate)
        await trainer.run()

    in_diaries(0, program)
    assert [row["round"] for row in recorder.rows] == list(range(1, ROUNDS + 1))


def test_orders_to_train_go_out_before_a_round_without_an_evaluation_is_recorded():
    """Writing a record blocks the server, and nobody else is to wait for that, however long it takes to send them."""
    watched, orders = Watched(3, ROUNDS), []

    def slowly(transport):
        transport = watched.wrap(transport)
        send = transport.send

        async def slow(*args):
            for _ in range(20):
                await asyncio.sleep(0)
            await send(*args)

        transport.send = slow
        return transport

    class Rows(Recorder):
        def record(self, row):
            orders.append(len(watched.seen))

    in_world({"w": f32(0)}, {name: constant([f32(1)]) for name in names(3)},
             lambda server: trained(server, Rows(), evaluate="none"), wrap=slowly)
    assert orders == [3 * min(number + 1, ROUNDS) for number in range(1, ROUNDS + 1)]


def test_a_slow_disk_gets_the_weights_of_the_round_that_is_saved(tmp_path, monkeypatch):
    """They are written from where they are: a round that would overwrite them waits, and only that."""
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda path, snapshot: (time.sleep(0.3), write(path, snapshot)))
    answers = {"a": lambda start, context: ([start["w"] + 1], 1)}

    with Checkpoints(tmp_path, keep=9, every=2) as checkpoints:
        in_world({"w": f32(0)}, answers, lambda server: trained(server, Recorder(checkpoints=checkpoints), max_rounds=8))
    for number in (2, 4, 6, 8):
        assert checkpoint.read(tmp_path / f"round_{number:06d}.h5").weights["w"].tolist() == [number]


@pytest.mark.parametrize(("ranks", "hosts"), [(0, True), (1, False), (1, True), (2, True), (3, False)])
def test_rows_and_checkpoints_are_those_of_their_rounds(ranks, hosts):
    """Clients move in every round, with what they keep and are evaluated with: all of it by formula.

    Client k keeps head = k * n after n rounds, and its diary; body grows by (n, mean of k) in round n, which overlaps with
    the evaluation of the one before.
    """
    recorder, homes = Kept(), set()

    async def program(server):
        server.members.hosts_clients = hosts
        await trained(server, recorder, MODEL, moving=homes, evaluate="both", cohort_size=CLIENTS)

    in_diaries(ranks, program, local_parameters=["he*"])
    assert len(homes) == 1 + min(2, ranks + hosts), "clients did not move"
    mean = sum(range(CLIENTS)) / CLIENTS
    assert [(row["round"], row["client_head"], row["personal_head"]) for row in recorder.rows] == [
        (number, 0, mean * number) for number in range(1, ROUNDS + 1)]
    assert [(number, weights["body"]) for number, weights, _ in recorder.saved] == [
        (number, [number * (number + 1) / 2, mean * number]) for number in range(1, ROUNDS + 1)]
    for number, _, states in recorder.saved:
        assert states == {f"client_{index}": {"turns": number, "who": index, "round": number, "local.head": [number * index]}
                          for index in range(CLIENTS)}


@pytest.mark.parametrize(("ranks", "every", "is_known"), [(0, False, True), (2, False, False), (2, True, True)])
def test_a_trainer_can_go_on_from_its_last_commit_where_it_knows_what_clients_keep(ranks, every, is_known):
    """All of it lives here, or has been fetched for a checkpoint; else the last checkpoint has to stand."""
    async def program(server):
        trainer = await trained(server, Kept(every), MODEL)
        snapshot = trainer.snapshot()
        assert (snapshot is not None, trainer.recover()) == (is_known, is_known)
        if is_known:
            turns = {name: state["turns"] for name, state in plain(snapshot.clients).items()}
            assert turns == dict.fromkeys(names(CLIENTS), ROUNDS)
            assert server.states.homes == dict.fromkeys(names(CLIENTS), 0)
            assert plain(server.states.whole()) == plain(snapshot.clients)

    in_diaries(ranks, program)


@pytest.mark.parametrize("ranks", [0, 2])
def test_an_error_in_training_leaves_the_round_before_recorded_and_saved(ranks):
    """Too few clients succeed in round 3, whose training overlaps with the evaluation of round 2."""
    class Fails(Diary):
        def fit(self, config=None):
            if self.context.round == 3:
                raise ValueError("deliberate")
            return super().fit(config)

    recorder = Kept()

    async def program(server):
        with pytest.raises(RoundError, match=r"round 3: 0 of 5 clients succeeded"):
            await trained(server, recorder, MODEL, evaluate="both")

    in_diaries(ranks, program, learner=Fails)
    assert [row["round"] for row in recorder.rows] == [1, 2]
    assert [number for number, *_ in recorder.saved] == [1, 2]
    assert {state["round"] for state in recorder.saved[-1][2].values()} == {2}


def test_an_error_in_an_evaluation_comes_before_what_follows():
    """It ends the run although the round after is in training, and would fail, too."""
    class Fails(Diary):
        def fit(self, config=None):
            if self.context.round == 3:
                raise ValueError("deliberate: training")
            return super().fit(config)

        def evaluate(self, config=None):
            if self.context.round == 2:
                raise ValueError("deliberate: evaluation")
            return super().evaluate(config)

    recorder = Kept()

    async def program(server):
        before = asyncio.all_tasks()
        with pytest.raises(ValueError, match="deliberate: evaluation"):
            await trained(server, recorder, MODEL, evaluate="server")
        assert asyncio.all_tasks() <= before, "the round after is given up"

    in_diaries(0, program, learner=Fails)
    assert [row["round"] for row in recorder.rows] == [1]


def test_a_round_that_cannot_be_planned_leaves_the_round_before_recorded_and_saved():
    """It is concluded while the next one begins, and waits for orders that never go out."""
    class Fails(DefaultTrainer):  # type: ignore[misc,unused-ignore]
        def plan(self, number):
            if number == 3:
                raise RoundError("round 3: deliberate")
            return super().plan(number)

    recorder = Kept()

    async def program(server):
        trainer = Fails(server, Arrays(MODEL), FedAvgAggregator(), {"max_rounds": ROUNDS, "evaluate": "server"}, recorder=recorder)
        with pytest.raises(RoundError, match="round 3: deliberate"):
            await asyncio.wait_for(trainer.run(), 20)

    in_diaries(0, program)
    assert [row["round"] for row in recorder.rows] == [number for number, *_ in recorder.saved] == [1, 2]


def test_what_is_logged_of_a_round_has_its_number():
    """Of two that are under way at once, each has its own."""
    found: list[tuple[str, int, int | None]] = []

    class Mean(MeanAggregator):
        def step(self, start, mean, stats):
            found.append(("step", stats.round, round_number.get()))

    class Rows(Recorder):
        def record(self, row):
            found.append(("record", row["round"], round_number.get()))

    async def program(server):
        trainer = DefaultTrainer(server, Arrays({"w": f32(0)}), Mean(), {"max_rounds": ROUNDS, "min_clients": 1}, recorder=Rows())
        plan = trainer.plan
        trainer.plan = lambda number: found.append(("plan", number, round_number.get())) or plan(number)
        await trainer.run()

    in_world({"w": f32(0)}, {name: constant([f32(1)]) for name in names(2)}, program)
    assert sorted(found) == sorted((what, number, number) for what in ("plan", "step", "record") for number in range(1, ROUNDS + 1))


def test_a_run_is_over_when_its_last_weights_have_arrived_and_are_the_models(monkeypatch):
    monkeypatch.setattr(MemoryTransport, "direct_bytes", 0)
    broadcast, arrived = MemoryTransport.broadcast, []

    async def slow(self, *args, **kwargs):
        await broadcast(self, *args, **kwargs)
        if self.rank == 0:
            await asyncio.sleep(0.02)  # the buffer is borrowed for as long
            arrived.append(1)

    monkeypatch.setattr(MemoryTransport, "broadcast", slow)

    async def program(server):
        trainer = await trained(server, evaluate="none")
        assert len(arrived) == 1 + ROUNDS
        assert trainer.model.get_weights()["w"].tolist() == trainer.weights["w"].tolist() == [1.0]

    in_world({"w": f32(0)}, {name: constant([f32(1)]) for name in names(2)}, program)


class Clock:
    """A clock that only moves when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize(("left", "rounds"), [(MARGIN * 2 + RESERVE - 1, 1), (MARGIN * 2 + RESERVE + 1, 2)])
def test_a_job_that_runs_out_of_time(tmp_path, ranks, left, rounds):
    """Evaluations take 10 s, the rest of the first round 2. Seen before its evaluation, the shortage stops the run after it; else
    the next round, which trains by then, is brought to its end. A checkpoint has what was recorded last, states and all."""
    clock = Clock()
    recorder = Kept(every=False, checkpoints=Checkpoints(tmp_path, every=0, asynchronous=False),
                    wall_time=WallTime(1002 - 1000 + left, clock))

    class Slow(Diary):
        def fit(self, config=None):
            clock.now += 2 * (self.context.round == 1 and self.context.client_id == "client_0")
            return super().fit(config)

        def evaluate(self, config=None):
            clock.now += 10
            return EvalResult(1, {})

    async def program(server):
        with pytest.raises(OutOfTime):
            await trained(server, recorder, MODEL, moving=set(), evaluate="server", cohort_size=CLIENTS)

    in_diaries(ranks, program, learner=Slow)
    assert [row["round"] for row in recorder.rows] == list(range(1, rounds + 1))
    # Ranks that train are asked for nothing, so that round 1 is saved meanwhile only where all that clients keep is here.
    assert [number for number, *_ in recorder.saved] == ([1, 2] if (ranks, rounds) == (0, 2) else [rounds])
    assert {state["round"] for state in recorder.saved[-1][2].values()} == {rounds}


def test_time_to_train_begins_when_evaluations_are_in():
    """round_timeout is for each of the two: together they take longer."""
    class Slow(Answers):
        def fit(self, config=None):
            time.sleep(1.6 * (self.context.round > 1))
            return super().fit(config)

        def evaluate(self, config=None):
            time.sleep(1.6 * (self.context.round == 1))
            return EvalResult(1, {"metric": 1.0})

    async def program(server):
        server.orders.round_timeout = 3.0
        return (await trained(server, max_rounds=2)).round

    assert in_world({"w": f32(0)}, {"a": constant([f32(1)])}, program, learner=Slow) == 2


@pytest.mark.parametrize(("direct_bytes", "times"), [(1 << 20, 0), (0, 2 * ROUNDS)])
def test_the_server_of_a_small_model_leaves_its_event_loop_for_nothing(monkeypatch, direct_bytes, times):
    """The way to the computing thread and back is longer than to begin a round in which it trains nobody, or the mean of sums
    that come with the reports."""
    left: list[Any] = []

    def seen(function, *args):
        left.append(function)
        return compute(function, *args)

    monkeypatch.setattr("federation.node.compute.compute", seen)  # those who train have it under a name of their own
    monkeypatch.setattr(MemoryTransport, "direct_bytes", direct_bytes)
    trainer = in_world({"w": f32(0)}, {name: constant([f32(1)]) for name in names(3)}, trained)
    assert len(left) == times
    assert trainer.weights["w"].tolist() == [1.0]


def test_bytes_are_those_that_updates_take():
    """As they are packed, with nothing of what stays with the clients; one of five has failed."""
    class Fails(Diary):
        def fit(self, config=None):
            if self.context.client_id == "client_3":
                raise ValueError("deliberate")
            return super().fit(config)

    rows = {}
    for codec in ("none", "bfloat16"):
        recorder = Kept()
        in_diaries(1, lambda server, recorder=recorder, codec=codec: trained(
            server, recorder, MODEL, max_rounds=1, local_parameters=["he*"], compression={"codec": codec}),
            learner=Fails, local_parameters=["he*"])
        [rows[codec]] = recorder.rows
    assert [(row["bytes_down"], row["bytes_up"]) for row in rows.values()] == [(5 * 3 * 4, 4 * 3 * 4), (5 * 3 * 4, 4 * 2 * 2)]


def test_phases_keep_their_names():
    recorder = Kept()
    in_diaries(2, lambda server: trained(server, recorder, MODEL))
    first, *others = [row["seconds"] for row in recorder.rows]
    assert set(first) == {"fit", "reduce", "step", "broadcast", "evaluate", "fit_max", "fit_mean"}
    assert all(set(seconds) == {*first, "checkpoint"} for seconds in others)


def test_seconds_of_training_are_those_of_ranks_that_train():
    """One of two, in each round: the longest and the mean are its own."""
    recorder = Kept()
    in_diaries(2, lambda server: trained(server, recorder, MODEL, cohort_size=1))
    seconds = [row["seconds"] for row in recorder.rows]
    assert [each["fit_max"] for each in seconds] == [each["fit_mean"] for each in seconds]


def test_the_time_for_an_order_begins_when_the_weights_have_arrived():
    """Each step of a round has round_timeout seconds for itself."""
    node: Any = SimpleNamespace(transport=SimpleNamespace(recoverable=False), silence=lambda rank: 0.0)

    async def main() -> None:
        orders = Orders(node, round_timeout=0.05)
        orders.follow(asyncio.create_task(asyncio.sleep(0.3)))
        here, there, silent = (asyncio.get_running_loop().create_future() for _ in range(3))
        reporting = orders.await_reports({0: here, 1: there}, Moved, 1)
        await asyncio.sleep(0.15)
        for answer in (here, there):
            answer.set_result((Moved(), None))
        assert await reporting == {0: Moved(), 1: Moved()}
        with pytest.raises(RoundError, match=r"no report within round_timeout=0\.05 s from rank 1"):
            await orders.await_reports({0: here, 1: silent}, Moved, 2)

    asyncio.run(main())
