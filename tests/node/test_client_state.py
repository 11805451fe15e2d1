"""What clients keep: theirs alone, wherever they train, from one commit to the next."""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
import pytest

from federation import ClientNode, Learner, ServerNode, TrainResult
from federation.builtin import DefaultTrainer, FedAvgAggregator
from federation.core.aggregator import MeanAggregator
from federation.core.types import EvalResult
from federation.core.weights import Layout, Weights
from federation.data.dataset import Dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.errors import ConfigError, RoundError, UpdateError
from federation.node.client_state import ClientStates, unpacked
from federation.node.host import ClientHost
from federation.node.protocol import MESSAGES, ClientState
from federation.node.round import Plan
from federation.node.state_keeper import StateKeeper
from node_comm import memory
from node_comm.errors import Disconnected, ProtocolError
from node_comm.node import Failure, Node, RemoteFailure, give_up
from tests.node.worlds import Arrays, f32

CLIENTS = 5
MODEL = {"body": f32(0, 0), "head": f32(0)}


class Diary(Learner):
    """Counts its client's turns, and remembers the round of the last one and who it is."""

    def fit(self, config=None):
        turns = int(self.client_state.get("turns", 0)) + 1
        who = int(self.context.client_id.removeprefix("client_"))
        if "who" in self.client_state:
            assert self.client_state["who"] == who, "somebody else's diary"
        assert not any(array.flags.writeable for array in self.client_state.values())
        weights = Weights.of(self.get_weights())
        weights["body"][:] += (turns, who)
        weights["head"][:] += who
        self.set_weights(weights)
        return TrainResult(weights, 1, state={"turns": turns, "who": who, "round": self.context.round})

    def evaluate(self, config=None):
        return EvalResult(1, {"head": float(Weights.of(self.get_weights())["head"][0])})


def data() -> DataManager:
    x, y = np.zeros((CLIENTS, 1), np.float32), np.arange(CLIENTS) % 2
    dataset = Dataset(x, y, x, y, 2, "few")
    return DataManager(dataset, Partition(np.arange(CLIENTS), np.arange(CLIENTS + 1)))


def in_world(ranks: int, program, learner=Diary, arrays=MODEL, **settings):
    """`program(server)` in a world of `ranks` ranks beside the server, which hosts clients where it is alone."""

    async def main(transport):
        host = ClientHost(learner(Arrays(arrays)), data(), **settings)
        if transport.rank:
            node = ClientNode({"node_id": f"rank_{transport.rank}"}, transport=transport, host=host)
            await node.connect_and_register()
            try:
                await asyncio.wait_for(node.wait(), 30)
            finally:
                await node.stop()
            return None
        server = ServerNode(transport=transport, host=host)
        await server.start()
        try:
            await server.wait_for_clients(CLIENTS, timeout=10)
            return await program(server)
        finally:
            await server.stop()

    return memory.run(main, ranks + 1)[0]


def plain(states):
    return {name: {key: array.tolist() for key, array in state.items()} for name, state in states.items()}


async def rounds(server, cohorts, first=1, weights=None):
    """Run rounds on these clients, on another placement each time; the last weights and all clients' states."""
    weights = weights or Weights.of(MODEL)
    await server.broadcast_weights(weights)
    for number, chosen in enumerate(cohorts, first):
        server.placement.policy = ("balanced", "last_rank")[number % 2]
        fitted = await server.fit(Plan(number, [server.clients[index] for index in chosen]))
        assert not fitted.problems, fitted.problems
        new = Weights.zeros(weights.layout)
        await server.mean(fitted, out=new)
        weights = new
        await server.broadcast_weights(weights)
    return weights.sha256(), plain(await server.collect_states())


COHORTS = [[0, 1, 2, 3], [1, 2, 4], [0, 4], [2, 3, 4], [0, 1, 2, 3, 4], [1]]


@pytest.mark.parametrize("ranks", [0, 1, 2, 4])
def test_state_follows_its_client(ranks):
    found = in_world(ranks, lambda server: rounds(server, COHORTS))
    turns = {index: sum(index in cohort for cohort in COHORTS) for index in range(CLIENTS)}
    last = {index: max(number for number, cohort in enumerate(COHORTS, 1) if index in cohort) for index in range(CLIENTS)}
    assert found[1] == {f"client_{index}": {"turns": turns[index], "who": index, "round": last[index]} for index in turns}
    assert found == in_world(0, lambda server: rounds(server, COHORTS))


@pytest.mark.parametrize("ranks", [0, 3])
def test_states_go_through_a_checkpoint(ranks):
    """Three rounds, then three more in another world that adopts what the first one kept."""
    async def first(server):
        weights = Weights.of(MODEL)
        await rounds(server, COHORTS[:3], weights=weights)
        return server.weights.copy(), {name: state.copy() for name, state in (await server.collect_states()).items()}

    weights, states = in_world(2, first)

    async def second(server):
        server.states.adopt(states)
        return await rounds(server, COHORTS[3:], first=4, weights=weights)

    assert in_world(ranks, second) == in_world(0, lambda server: rounds(server, COHORTS))


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_round_that_does_not_commit_leaves_no_trace(ranks):
    """Trained twice, committed once: the first attempt's states are void."""
    async def program(server):
        await server.broadcast_weights(Weights.of(MODEL))
        cohort = [server.clients[index] for index in range(CLIENTS)]
        await server.fit(Plan(1, cohort))
        assert await server.collect_states() == {}
        server.placement.policy = "last_rank"
        await server.fit(Plan(1, cohort[:2]))
        await server.broadcast_weights(Weights.of(MODEL))
        return plain(await server.collect_states())

    assert {name: state["turns"] for name, state in in_world(ranks, program).items()} == {"client_0": 1, "client_1": 1}


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_program_of_its_own_keeps_state_too(ranks):
    """By collect_results, which knows no commit: what fit returns is the client's at once."""
    async def program(server):
        await server.broadcast_weights(Weights.of(MODEL))
        for policy in ("balanced", "last_rank"):
            server.placement.policy = policy
            await server.collect_results(server.get_connected_clients(), "fit")
        return plain(await server.collect_states())

    assert {name: state["turns"] for name, state in in_world(ranks, program).items()} == {
        f"client_{index}": 2 for index in range(CLIENTS)}


@pytest.mark.parametrize("ranks", [0, 2])
def test_local_parameters_stay_with_their_clients(ranks):
    """`head` is never averaged: the global one stays at its start, each client's goes on from its own."""
    async def program(server):
        trainer = DefaultTrainer(server, Arrays(MODEL), FedAvgAggregator(),
                                 {"max_rounds": 3, "evaluate": "both", "cohort_size": CLIENTS})
        rows = []
        trainer.recorder.record = rows.append
        await trainer.run()
        return trainer.weights["head"].tolist(), plain(await server.collect_states()), rows

    head, states, rows = in_world(ranks, program, local_parameters=["he*"])
    assert head == [0.0]
    assert {name: state["local.head"] for name, state in states.items()} == {
        f"client_{index}": [3.0 * index] for index in range(CLIENTS)}
    mean = sum(range(CLIENTS)) / CLIENTS
    assert [row["client_head"] for row in rows] == [0, 0, 0]
    assert [row["personal_head"] for row in rows] == [mean, 2 * mean, 3 * mean]
    assert [row["head"] for row in rows] == [0, 0, 0]


@pytest.mark.parametrize(("patterns", "message"), [(["tail"], "matches no array"), (["*"], "something has to be shared")])
def test_local_parameters_that_cannot_be(patterns, message):
    with pytest.raises(ConfigError, match=message):
        in_world(0, lambda server: server.broadcast_weights(Weights.of(MODEL)), local_parameters=patterns)


class Measured(Diary):
    """Measures how many turns its client has had, by what it keeps, which is there when it is bound."""

    def bind(self, data, context):
        super().bind(data, context)
        self.bound_to = self.client_state

    def evaluate(self, config=None):
        assert self.bound_to is self.client_state
        return EvalResult(1, {"turns": float(self.client_state.get("turns", 0))})


@pytest.mark.parametrize("ranks", [0, 1, 3])
def test_the_servers_samples_are_measured_with_what_no_client_keeps(ranks):
    """Whichever client a rank has trained or evaluated last."""
    async def program(server):
        await rounds(server, COHORTS)
        measured = [await server.evaluate(number, 1, server.get_connected_clients()) for number in (7, 8)]
        return [(one.shards.means()["turns"], one.clients.means()["turns"]) for one in measured]

    assert in_world(ranks, program, learner=Measured) == [(0, sum(map(len, COHORTS)) / CLIENTS)] * 2


def test_who_is_not_sent_in_time_is_where_it_was():
    """As where a network's client does not take it within round_timeout, and is asked again: it does not begin anew there."""
    keeper = StateKeeper(ClientStates())

    async def test() -> None:
        keeper.adopt({"a": Weights.of({"turns": f32(3)})})
        here, other = memory.world(2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(keeper.bring(Node(here, MESSAGES), {1: ["a"]}), 0.02)
        assert keeper.homes == {"a": 0}
        assert keeper.moves({1: ["a"]})
        assert plain(keeper.whole()) == {"a": {"turns": [3]}}
        await other.close()

    asyncio.run(test())


class Unlucky(Diary):
    """Its data come over a network, which does not answer in time."""

    def evaluate(self, config=None):
        raise TimeoutError("the store does not answer")


def test_a_time_out_of_a_learners_own_is_its_error(monkeypatch):
    """It is told to the server, and not taken for the end of the time that the rank has, which would kill its process."""
    killed = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))

    async def program(server):
        await server.broadcast_weights(Weights.of(MODEL))
        await server.evaluate(1, 1)

    with pytest.raises((RemoteFailure, TimeoutError), match="the store does not answer"):
        in_world(1, program, learner=Unlucky)
    assert killed == []


def test_an_error_that_the_server_is_not_told_is_logged(monkeypatch, caplog):
    """A rank that outlives the loss of the server's world goes on after it, and nobody would know."""
    send = Node.send

    async def lost(self, dest, message, buffer=None):
        if isinstance(message, Failure):
            raise Disconnected("rank 0 is lost")
        await send(self, dest, message, buffer)

    async def program(server):
        await server.broadcast_weights(Weights.of(MODEL))
        await server.evaluate(1, 1)

    monkeypatch.setattr(Node, "send", lost)
    with pytest.raises(Disconnected):
        in_world(1, program, learner=Unlucky)
    assert "of which the server cannot be told" in caplog.text
    assert "TimeoutError: the store does not answer" in caplog.text


class Shares(MeanAggregator):
    """Shares one array beside the model, which clients add to; keeps the sum as well."""

    weighting = "uniform"

    def shared(self, layout: Layout) -> Layout:
        return Layout(["extra"], [(3,)], ["float64"])

    def step(self, start, mean, stats):
        assert stats.num_clients == CLIENTS


class Sharer(Learner):
    def fit(self, config=None):
        who = int(self.context.client_id.removeprefix("client_"))
        assert not self.shared["extra"].flags.writeable
        return TrainResult(self.get_weights(), 1, shared=[self.shared["extra"] + who])

    def evaluate(self, config=None):
        return EvalResult(0)


@pytest.mark.parametrize("ranks", [0, 2])
def test_arrays_beside_the_model(ranks):
    """They start at zero, reach every client, come back in the same reduction, and stay out of the model."""
    async def program(server):
        trainer = DefaultTrainer(server, Arrays(MODEL), Shares(), {"max_rounds": 4})
        await trainer.run()
        snapshot = trainer.snapshot()
        return trainer.model.weights.names, snapshot.weights.names, trainer.weights["extra"].tolist(), snapshot.server

    names, kept, extra, state = in_world(ranks, program, learner=Sharer)
    assert names == kept == ("body", "head")
    assert extra == [4 * sum(range(CLIENTS)) / CLIENTS] * 3
    assert state["shared"]["extra"].tolist() == extra


def test_a_learner_that_shares_nothing_is_told_which_is_needed():
    async def program(server):
        await DefaultTrainer(server, Arrays(MODEL), Shares(), {"max_rounds": 1}).run()

    with pytest.raises(UpdateError, match=r"client_0.*TrainResult\.shared"):
        in_world(1, program)


def test_who_is_lost_before_the_commit_loses_nothing_that_was_fetched():
    """Found by a client that was killed while its state was fetched for a checkpoint."""
    fetched: list[tuple[str, int, bool]] = []

    async def fetch(client_id: str, rank: int, proposed: bool) -> Weights | None:
        fetched.append((client_id, rank, proposed))
        return Weights.of({"round": np.float32([len(fetched)])})

    async def test() -> None:
        keeper = StateKeeper(ClientStates())
        keeper.propose({"a": 1, "b": 2})
        assert plain(await keeper.collect(fetch, coming=True)) == {"a": {"round": [1]}, "b": {"round": [2]}}
        assert keeper.lose(1) == []
        keeper.commit()
        assert plain(await keeper.collect(fetch)) == {"a": {"round": [1]}, "b": {"round": [2]}}
        assert fetched == [("a", 1, True), ("b", 2, True)]
        assert keeper.homes == {"a": 0, "b": 2}
        keeper.propose({"b": 2})
        assert keeper.lose(2) == []  # before it was fetched: as of the last commit
        keeper.commit()
        assert plain(await keeper.collect(fetch)) == {"a": {"round": [1]}, "b": {"round": [2]}}
        keeper.propose({"c": 3})
        keeper.commit()
        assert keeper.lose(3) == ["c"]
        assert set(await keeper.collect(fetch)) == {"a", "b"}

    asyncio.run(test())


def test_who_is_lost_while_anothers_state_is_fetched():
    """What had been fetched of it counts; of whom nothing had been, it is as of the last commit. And who is lost once more, on
    the way to the rank where it is wanted next, has not lost it then."""
    keeper = StateKeeper(ClientStates())

    async def fetch(client_id: str, rank: int, proposed: bool) -> Weights | None:
        if client_id == "b":
            assert [keeper.lose(1), keeper.lose(3)] == [[], []]
        return Weights.of({"of": np.float32([ord(client_id)])})

    async def test() -> None:
        keeper.adopt({"c": Weights.of({"of": f32(0)})})
        keeper.homes["c"] = 3  # it has been moved there
        keeper.propose({"a": 1, "b": 2, "c": 3})
        wanted = {"a": {"of": [ord("a")]}, "b": {"of": [ord("b")]}, "c": {"of": [0]}}
        assert plain(await keeper.collect(fetch, coming=True)) == wanted
        keeper.commit()
        assert keeper.homes == {"a": 0, "b": 2, "c": 0}
        assert plain(await keeper.collect(fetch)) == wanted
        here, other = memory.world(2)
        node = Node(here, MESSAGES)
        bringing = asyncio.create_task(keeper.bring(node, {1: ["a"]}))
        await asyncio.sleep(0.01)
        await other.close()
        with pytest.raises(Disconnected):
            await bringing
        assert keeper.lose(1) == []
        assert plain(await keeper.collect(fetch)) == wanted

    asyncio.run(test())


class Gate(Diary):
    """Holds every client until the gate is opened."""

    def __init__(self, model) -> None:
        super().__init__(model)
        self.trained: list[str] = []
        self.entered, self.open = threading.Event(), threading.Event()

    def fit(self, config=None):
        self.entered.set()
        assert self.open.wait(20)
        self.trained.append(self.context.client_id)
        return super().fit(config)


async def lost_in_training(server, recover):
    """Lose a rank while this one trains its first client, and bring the server to the next world, which is `recover`'s."""
    server.members.hosts_clients = True
    server._transport.recover = recover
    await server.broadcast_weights(Weights.of(MODEL))
    fitting = await server.begin_fit(Plan(1, server.get_connected_clients()))
    await asyncio.to_thread(server.host.learner.entered.wait, 20)
    await give_up(fitting)  # as the loss ends it
    await server.recover()


def test_who_is_lost_has_the_server_train_no_more_for_that_round():
    """What it had begun is done, and then forgotten, before it goes on in the next world."""
    async def program(server):
        host, learner = server.host, server.host.learner
        fit, forget, done = host.fit, host.forget, []

        def fit_seen(order):
            try:
                return fit(order)
            finally:
                done.append("fit")

        def forget_seen(allocate):
            done.append("forget")
            forget(allocate)

        async def recover():
            learner.open.set()
            return memory.world(1)[0]

        host.fit, host.forget = fit_seen, forget_seen
        await lost_in_training(server, recover)
        assert (done, learner.trained, host.states.commit()) == (["fit", "forget"], ["client_0"], [])
        await server.broadcast_weights(Weights.of(MODEL))
        assert len((await server.fit(Plan(1, server.get_connected_clients()))).outcomes) == CLIENTS

    in_world(0, program, learner=Gate)


def test_weights_that_never_arrived_are_those_of_the_world_before():
    """They were on their way to a rank that is lost, and nobody had waited for them yet: the next world has its own."""
    async def test() -> None:
        here, other = memory.world(2)

        async def recover():
            return memory.world(1)[0]

        here.recover = recover
        server = ServerNode(transport=here, host=ClientHost(Diary(Arrays(MODEL)), data()), hosts_clients=True)
        await server.start()
        server.members.ranks = [1]
        await server.begin_broadcast(Weights.of(MODEL))
        await other.close()
        await server.recover()
        await server.broadcast_weights(Weights.of(MODEL))
        await server.stop()

    asyncio.run(test())


def test_a_server_whose_own_client_is_never_done_does_not_go_on():
    async def program(server):
        async def recover():
            return memory.world(1)[0]

        server.round_timeout = 0.1
        try:
            with pytest.raises(RoundError, match=r"longer than round_timeout=0.1 s"):
                await lost_in_training(server, recover)
        finally:
            server.host.learner.open.set()

    in_world(0, program, learner=Gate)


@pytest.mark.parametrize(("layout", "buffer", "words"), [
    ({"names": ["w"], "shapes": [[2**40]], "dtypes": ["float32"]}, np.zeros(64, np.uint8), "4398046511104 bytes, and 64"),
    ({"names": ["w"], "shapes": [[3]], "dtypes": ["float32"]}, np.zeros(16, np.float32), "64 bytes, and 64"),
    ({"names": ["w"], "shapes": [[3]], "dtypes": ["float32"]}, None, "64 bytes, and 0"),
    ({"names": ["w"], "shapes": [[3]], "dtypes": ["object"]}, np.zeros(64, np.uint8), "no layout"),
    ({"names": ["w"], "shapes": [["x"]], "dtypes": ["float32"]}, np.zeros(64, np.uint8), "no layout"),
    ({"names": ["w"], "shapes": [[1] * 33], "dtypes": ["float32"]}, np.zeros(64, np.uint8), "no layout"),
    ({"names": ["w"], "shapes": [[0, 2**62]], "dtypes": ["float32"]}, np.zeros(0, np.uint8), "no layout"),
    ({"names": 3}, np.zeros(64, np.uint8), "no layout"),
    ({}, np.zeros(64, np.uint8), "no layout"),
])
def test_a_state_that_is_none(layout, buffer, words):
    """S-SEC-02: whoever sends it; no memory is taken for what it says."""
    with pytest.raises(ProtocolError, match=words):
        unpacked(ClientState(client_id="c", layout=layout), buffer)
