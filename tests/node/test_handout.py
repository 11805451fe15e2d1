"""Clients handed out bit by bit: each once, to whoever is done first; results, failures and short rounds are as without."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import ClientNode, Learner, ServerNode, TrainResult
from federation.core.metrics import MetricSum
from federation.core.types import EvalResult
from federation.core.weights import Weights
from federation.data.dataset import Dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.errors import RoundError, UpdateError
from federation.infra.trace import Span
from federation.node import client
from federation.node.handout import HELD, SHORTEST_PIECE, SHORTEST_SHARE, Handout, merged
from federation.node.host import ClientHost
from federation.node.orders import Orders
from federation.node.placement import SURPRISE, Costs, place
from federation.node.protocol import MESSAGES, Evaluate, Fit, FitReport, Moved, Outcome
from federation.node.round import Plan
from node_comm import CommError, memory
from node_comm.message import Codec
from node_comm.node import Incoming, RemoteFailure
from tests.node.worlds import Arrays, f32

ORDER = Fit(round=1, clients=[], config={}, needs="mean", weighting="samples", weighs=False, reduction="exact", total_samples=1,
            cohort_size=1)
CODEC = Codec(MESSAGES)
CLIENTS = 16
costs_of = st.dictionaries(st.integers(0, 30).map(lambda index: f"client_{index}"), st.floats(0.001, 10), min_size=1, max_size=20)


@given(costs_of, st.integers(1, 4), st.data())
def test_every_client_is_given_out_once_whoever_asks_when(costs, ranks, draws):
    fixed = draws.draw(st.sets(st.sampled_from(sorted(costs))))
    shares = place(costs, {}, range(1, ranks + 1))
    handout = Handout(ORDER, shares, costs, fixed)
    held = {rank: [name for name in share if name not in handout.first[rank]] for rank, share in shares.items()}
    for rank, share in shares.items():
        assert sum(costs[name] for name in held[rank]) <= HELD * sum(costs[name] for name in share)
        assert not fixed & set(held[rank])
        assert handout.first[rank] or not share, "a rank that has a share begins at once"
    given_out = list(itertools.chain(*handout.first.values()))
    busy = set(shares)
    while busy:
        rank = draws.draw(st.sampled_from(sorted(busy)))
        left = {name for share in held.values() for name in share}
        piece = handout.take(rank)
        assert bool(piece) == bool(left), "nobody idles while there is something to do"
        if not piece:
            busy.remove(rank)
        if held[rank]:
            assert piece == held[rank][:len(piece)], "its own share comes first, longest first"
        owner = next((owner for owner, share in held.items() if set(piece) & set(share)), rank)
        assert len(piece) <= 1 or sum(costs[name] for name in piece) <= max(
            SHORTEST_PIECE, sum(costs[name] for name in held[owner]) / 2) * (1 + 1e-9)
        held[owner] = [name for name in held[owner] if name not in piece]
        given_out += piece
    assert sorted(given_out) == sorted(costs)


def test_others_take_from_the_end_of_the_fullest_share():
    costs = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0, "e": 1.0, "f": 0.4, "g": 0.3}
    handout = Handout(ORDER, {1: ["a", "b", "c", "d"], 2: ["e", "f", "g"], 3: []}, costs)
    assert handout.first == {1: ["a", "b"], 2: ["e"], 3: []}
    assert [handout.take(3), handout.take(3)] == [["d"], ["c"]]
    assert [handout.take(3), handout.take(3), handout.take(3)] == [["g"], ["f"], []]


def test_the_fullest_share_is_the_one_of_which_most_is_left():
    costs = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.5, "e": 4.0, "f": 3.0, "g": 1.5, "h": 1.0}
    handout = Handout(ORDER, {1: list("abcd"), 2: list("efgh"), 3: []}, costs)
    assert handout.take(0) == [], "a rank that hosts no client gets none"
    assert [handout.take(3) for _ in range(5)] == [["d"], ["h"], ["c"], ["g"], []]
    handout = Handout(ORDER, {1: list("abcd"), 2: []}, {"a": 10.0, "b": 3.0, "c": 1.0, "d": 1.0})
    assert [handout.take(2), handout.take(2)] == [["d", "c"], ["b"]], "half of what is left, by what is taken"


def test_clients_that_take_no_time_are_given_out_as_well():
    """Rounding leaves a little of a share that is given out: more than the other holds."""
    costs = {"a": 1.0, "b": 0.1, "c": 0.1, "d": 0.1, "e": 0.0}
    handout = Handout(ORDER, {1: list("abcd"), 2: ["e"]}, costs)
    assert handout.first == {1: ["a"], 2: []}
    assert [handout.take(1) for _ in range(5)] == [["b"], ["c"], ["d"], ["e"], []]


def test_pieces_are_worth_a_message():
    costs = {f"client_{index}": SHORTEST_PIECE / 4.5 for index in range(33)}
    handout = Handout(ORDER, {1: list(costs)}, costs)
    pieces = list(itertools.takewhile(bool, iter(lambda: handout.take(1), None)))
    assert sum(map(len, pieces)) == 16
    assert [len(piece) for piece in pieces[:-1] if len(piece) < 4] == []


@pytest.mark.parametrize(("costs", "worth"), [
    ({"a": SHORTEST_SHARE / 2, "b": SHORTEST_SHARE / 2}, True),
    ({"a": SHORTEST_SHARE / 2, "b": SHORTEST_SHARE / 2.1}, False),
    ({"a": 100.0}, False),
])
def test_short_shares_and_single_clients_are_not_worth_it(costs, worth):
    assert Handout(ORDER, {1: list(costs), 2: []}, costs).is_worth_it == worth


def test_costs_are_doubtful_where_ranks_surprised():
    """Seconds by sample are not known before the first round; after it, ranks may differ, whatever the unit was."""
    costs = Costs()
    assert not costs.are_doubtful
    costs.compare({0: 0, 1: 100, 2: 50}, {0: 0, 1: 1.0, 2: 0.5 * (1 + 0.99 * SURPRISE)})
    assert not costs.are_doubtful
    costs.observe("a", 10, 2.0)
    assert not costs.are_doubtful, "by less than 10 %"
    costs.compare({1: 2, 2: 4}, {1: 2.0, 2: 4.0 * (1.01 + SURPRISE)})
    assert costs.are_doubtful
    costs.compare({1: 2}, {1: 20.0})
    assert not costs.are_doubtful, "there is only one rank"
    costs.compare({1: 2, 2: 4}, {1: 2.0, 2: 0.0})
    assert not costs.are_doubtful, "what took no time by the clock says nothing"
    costs.compare({1: 0}, {1: 0.0})
    assert costs.are_doubtful, "nothing is known of the last round"
    costs.compare({1: 1e300, 2: 4}, {1: 1e-300, 2: 4.0})
    assert costs.are_doubtful, "a part of what was expected that is too small for a number"


def test_reports_are_merged():
    def report(name, limbs, refused=""):
        return FitReport(outcomes=[Outcome(name, 1, 0.5, 1.0, False)], problems=[], limbs=limbs, seconds=0.75, refused=refused,
                         metrics={"sums": {"loss": hex(3 << 1074)}, "weights": {"loss": "0x1"}, "not_finite": [], "left_out": []},
                         spans=[Span("fit", 1.0, 2.0, name)])

    whole = merged([report("a", 1), report("b", 3, "no good"), report("c", 2)])
    assert [outcome.client_id for outcome in whole.outcomes] == ["a", "b", "c"]
    assert (whole.limbs, whole.seconds, whole.refused) == (3, 2.25, "no good")
    assert [span.who for span in whole.spans] == ["a", "b", "c"]
    assert whole.metrics["sums"]["loss"] == hex(9 << 1074)
    assert whole.metrics["weights"]["loss"] == "0x3"


# In a world


class Gate:
    """Holds rank 1 in its first client until the others have trained all that they can."""

    def __init__(self, others: int) -> None:
        self.trained: dict[int, list[str]] = {}
        self._others, self._open = others, threading.Event()
        self._lock = threading.Lock()
        if not others:
            self._open.set()

    def enter(self, rank: int, client_id: str) -> None:
        if rank == 1 and not self._open.wait(20):
            raise TimeoutError("the other ranks were never given what this one has not begun")
        with self._lock:
            self.trained.setdefault(rank, []).append(client_id)
            if sum(len(names) for other, names in self.trained.items() if other != 1) >= self._others:
                self._open.set()


class Steps(Learner):
    """Moves by its client's number; may go wrong."""

    def __init__(self, model, rank, gate, wrong):
        super().__init__(model)
        self.rank, self.gate, self.wrong = rank, gate, wrong
        self.clients_at_once = 2 if rank == 0 and "in groups" in wrong else 1  # rank 0 trains none: it has to know

    def fit(self, config=None):
        name = self.context.client_id
        self.gate.enter(self.rank, name)
        who = int(name.removeprefix("client_"))
        if name == self.wrong.get("raises"):
            raise ValueError("deliberate")
        if name == self.wrong.get("does not fit"):
            return TrainResult([f32(1, 2, 3)], 1)
        return TrainResult([self.get_weights()[0] + f32(0.1 * who, 10.0 ** who)], who + 1, {"who": float(who)},
                           state={"who": who} if self.wrong.get("keeps") else None)

    def evaluate(self, config=None):
        return EvalResult(0)


def data() -> DataManager:
    """A sample for each client."""
    x, y = np.zeros((CLIENTS, 1), np.float32), np.arange(CLIENTS) % 2
    return DataManager(Dataset(x, y, x, y, 2, "few"), Partition(np.arange(CLIENTS), np.arange(CLIENTS + 1)))


class Round(NamedTuple):
    """What came of the last one of a world: the mean's digest, or the updates'; the orders are those of all rounds, by rank."""

    digest: str
    metrics: dict[str, float]
    failed: list[str]
    ranks: dict[str, int]
    homes: dict[str, int]
    orders: dict[int, list[list[str]]]


def world(monkeypatch, ranks, gate, *, known=1.0, wrong=None, rounds=1, needs="mean", deadline=None, policy="balanced") -> Round:
    """Rounds of all clients on `ranks` ranks beside the server, with a computing thread each; every client is expected to take
    `known` seconds (None: that is not known)."""
    orders: dict[int, list[list[str]]] = {rank: [] for rank in range(1, ranks + 1)}

    threads: dict[int, ThreadPoolExecutor] = {}

    async def on_a_thread(function, *args):
        """Of the host whose method it is."""
        thread = threads.setdefault(id(getattr(function, "__self__", threads)), ThreadPoolExecutor(1))
        return await asyncio.get_running_loop().run_in_executor(thread, function, *args)

    for module in ("client", "server"):
        monkeypatch.setattr(f"federation.node.{module}.compute", on_a_thread)

    async def play(server):
        weights = Weights.of({"w": f32(0, 0)})
        await server.broadcast_weights(weights)
        for number in range(1, rounds + 1):
            server.placement.costs = Costs()
            if known is not None:
                for known_client in server.get_connected_clients():
                    server.placement.costs.observe(known_client.client_id, 1, known)
            fitted = await server.fit(Plan(number, server.get_connected_clients(), needs=needs, deadline=deadline))
            if needs == "mean":
                result = Weights.zeros(weights.layout)
                await server.mean(fitted, result)
            else:
                result = Weights.of([update.weights[0] for update in await server.updates(fitted)])
            await server.broadcast_weights(weights)
        return Round(result.sha256(), fitted.metrics.means(), [problem.client_id for problem in fitted.problems],
                     dict(fitted.ranks), dict(server.states.homes), orders)

    async def main(transport):
        host = ClientHost(Steps(Arrays({"w": f32(0, 0)}), transport.rank, gate, wrong or {}), data())
        if transport.rank:
            node = ClientNode({"node_id": f"rank_{transport.rank}"}, transport=transport, host=host)
            await node.connect_and_register()
            try:
                await asyncio.wait_for(node.wait(), 60)
            finally:
                await node.stop()
            return None
        send = transport.send

        async def counting(dest, header, buffer=None):
            message = CODEC.body(CODEC.open(header))
            if isinstance(message, Fit):
                orders[dest].append(message.clients)
            await send(dest, header, buffer)

        transport.send = counting
        server = ServerNode(transport=transport, host=host, placement=policy)
        await server.start()
        try:
            await server.wait_for_clients(CLIENTS, timeout=10)
            return await play(server)
        finally:
            await server.stop()

    return memory.run(main, ranks + 1)[0]


@pytest.mark.parametrize("needs", ["mean", "rows"])
@pytest.mark.parametrize("wrong", [{}, {"raises": "client_14"}, {"keeps": True}], ids=["", "one fails", "they keep state"])
def test_a_slow_rank_trains_fewer(monkeypatch, needs, wrong):
    """Of sixteen equal clients, rank 1 has eight: it is given four, and two that wait. It is held in its first until rank 2 has
    trained all the others. The result is that of one process, and of two ranks that are not slow."""
    found = world(monkeypatch, 2, Gate(10), needs=needs, wrong=wrong)
    assert [len(clients) for clients in found.orders[1]] == [4, 2]
    assert [len(clients) for clients in found.orders[2]] == [4, 2, 1, 1, 1, 1]
    assert sorted(itertools.chain(*found.orders[1], *found.orders[2])) == sorted(found.ranks)
    for rank in (1, 2):
        trained = {name for clients in found.orders[rank] for name in clients}
        assert {name for name, where in found.ranks.items() if where == rank and name not in found.failed} == \
            trained - set(found.failed)
    assert found.homes == (found.ranks if "keeps" in wrong else {})
    assert found.failed == [name for key, name in wrong.items() if key == "raises"]
    alone = world(monkeypatch, 0, Gate(0), needs=needs, wrong=wrong)
    placed = world(monkeypatch, 2, Gate(0), needs=needs, wrong=wrong, known=None)
    assert found[:3] == alone[:3] == placed[:3]


@pytest.mark.parametrize("settings", [dict(known=None), dict(known=SHORTEST_SHARE / 9), dict(deadline=60.0),
                                      dict(policy="last_rank"), dict(wrong={"in groups": True})],
                         ids=["unknown", "short", "deadline", "last rank", "groups"])
def test_one_order_a_rank_where_there_is_nothing_to_gain(monkeypatch, settings):
    """No message more than one by one, in any of three rounds; and by a deadline, who is late is a matter of placement."""
    found = world(monkeypatch, 2, Gate(0), rounds=3, **settings)
    assert [len(orders) for orders in found.orders.values()] == [3, 3]
    assert found[:3] == world(monkeypatch, 0, Gate(0))[:3]


def test_who_keeps_state_is_trained_where_it_is(monkeypatch):
    """In the second round all do: each rank has one order, for all that live there."""
    found = world(monkeypatch, 2, Gate(0), wrong={"keeps": True}, rounds=2)
    for rank, orders in found.orders.items():
        assert len(orders) > 2
        assert sorted(orders[-1]) == sorted(name for name, home in found.homes.items() if home == rank)


def test_an_update_that_is_refused_ends_the_run(monkeypatch):
    with pytest.raises(UpdateError, match="client_0"):
        world(monkeypatch, 2, Gate(0), wrong={"does not fit": "client_0"})


def test_nobody_is_given_any_more_once_an_update_is_refused():
    handout = Handout(ORDER, {1: list("abcdefgh"), 2: []}, dict.fromkeys("abcdefgh", 1.0))
    asked: list[tuple[str, bool]] = []

    async def ask(rank, order):
        asked.append(("".join(order.clients), order.goes_on))
        report = FitReport(outcomes=[], problems=[], metrics=MetricSum().to_dict(), limbs=1, seconds=0.0,
                           refused="e does not fit" if "e" in order.clients else "")
        future = asyncio.get_running_loop().create_future()
        future.set_result((report, None))
        return future

    async def train():
        return await handout.train(1, await ask(1, msgspec.structs.replace(ORDER, clients=handout.first[1])), ask)

    assert asyncio.run(train()).refused == "e does not fit"
    assert asked == [("abcd", False), ("ef", True), ("g", True)], "g waited already when the report came"
    assert handout.take(1) == handout.take(2) == []


@pytest.mark.parametrize(("answer", "error"), [(RemoteFailure("rank 1: deliberate"), "deliberate"),
                                               (Moved(), "answered with Moved; wanted FitReport")])
def test_who_fails_in_one_order_is_not_waited_for_in_the_next(answer, error):
    handout = Handout(ORDER, {1: list("abcd")}, dict.fromkeys("abcd", 1.0))

    async def train():
        given = [asyncio.get_running_loop().create_future() for _ in range(2)]
        waiting = iter(given[1:])

        async def ask(rank, order):
            return next(waiting)

        if isinstance(answer, Exception):
            given[0].set_exception(answer)
        else:
            given[0].set_result((answer, None))
        with pytest.raises(CommError, match=error):
            await handout.train(1, given[0], ask)
        assert given[1].cancelled()

    asyncio.run(train())


@pytest.mark.parametrize(("takes_orders", "words"), [(True, r"no report within round_timeout=0\.01 s from rank 1 "),
                                                     (False, "giving the ranks their orders took longer than ")])
def test_a_rank_that_is_silent_is_named_with_the_round(takes_orders, words):
    async def main():
        node = SimpleNamespace(transport=SimpleNamespace(recoverable=False), silence=lambda rank: 7.0)

        async def ask(rank, order, into=None):
            silent = asyncio.get_running_loop().create_future()
            return silent if takes_orders else await silent

        async def here(order):
            return merged([FitReport(outcomes=[], problems=[], metrics=MetricSum().to_dict(), limbs=1, seconds=0.0)])

        node.ask = ask
        handout = Handout(msgspec.structs.replace(ORDER, round=9), {1: list("abcd")}, dict.fromkeys("abcd", 1.0))
        with pytest.raises(RoundError, match=f"^round 9: {words}"):
            await (await handout.begin(Orders(node, 0.01), [0, 1], here))

    asyncio.run(main())


def test_a_rank_has_its_time_for_all_orders_of_a_round_together(monkeypatch):
    """round_timeout, after which it ends itself, is counted from the first. The clock goes on by 1 when it is read."""
    spent: list[float] = []

    @asynccontextmanager
    async def own_end(seconds, so_far):
        assert seconds == 100
        spent.append(so_far)
        yield

    async def obey(incoming):
        return True

    monkeypatch.setattr(client, "_own_end", own_end)
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    node = ClientNode({"node_id": "a"}, transport=SimpleNamespace(recoverable=True), round_timeout=100)
    monkeypatch.setattr(node, "_obey", obey)
    more = msgspec.structs.replace(ORDER, goes_on=True)
    evaluate = Evaluate(round=1, shards=[], clients=[])
    for message in (ORDER, more, more, evaluate, ORDER, more, evaluate):
        asyncio.run(node._obey_in_time(Incoming(0, message, None, 1)))
    assert spent == [1, 2, 3, 1, 1, 2, 1]
