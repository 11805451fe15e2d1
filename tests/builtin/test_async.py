"""Asynchronous aggregation from the papers' formulas, and the order of events against a simulation written here."""

from __future__ import annotations

import asyncio
import gc
import json

import ml_dtypes
import numpy as np
import pytest

import federation
from federation import ServerNode
from federation.builtin import AsyncTrainer, DefaultTrainer, FedAsyncAggregator, FedAvgAggregator, FedBuffAggregator
from federation.core.async_aggregator import LateUpdate, discount, staleness_of
from federation.core.random import stream
from federation.core.types import ClientUpdate
from federation.core.weights import Layout, Weights, rounded
from federation.data.draws import below
from federation.data.latency import Latency
from federation.errors import ConfigError, Diverged, RoundError, UpdateError
from node_comm import Disconnected
from tests.node.worlds import Answers, Arrays, constant, f32, in_world


def weights(value, layout=None):
    result = Weights.zeros(layout or Layout(["w"], [(1,)], ["float32"]))
    for array in result:
        array[...] = value
    return result


def update(value, start, staleness, layout=None):
    return LateUpdate("client_0", weights(value, layout), weights(start, layout), 1, staleness)


def test_fedasync_of_the_case():
    """S-AGG-12: version 7 mixes 3.0 from version 4 by 0.6 / sqrt(1 + 3) = 0.3 into 1.0: 1.6, version 8."""
    current = weights(1.0)
    assert FedAsyncAggregator(mixing=0.6).receive(current, update(3.0, 0.0, staleness_of(7, 4, "client_0")))
    assert current["w"][0] == np.float32(1.6)


def test_fedbuff_of_the_case():
    """S-AGG-12: +1 (fresh) and +3 (3 behind) make (1 * 1 + 3 * 0.5) / 2 = 1.25, added to the value as of now."""
    rule, current = FedBuffAggregator(buffer_size=2), weights(10.0)
    assert not rule.receive(current, update(6.0, 5.0, 0))
    assert current["w"][0] == 10.0
    current["w"][0] = 20.0
    assert rule.receive(current, update(4.0, 1.0, 3))
    assert current["w"][0] == 21.25
    assert not rule.receive(current, update(1.0, 0.0, 0)), "the buffer begins anew"


@pytest.mark.parametrize("make", [FedAsyncAggregator, lambda: FedBuffAggregator(buffer_size=2)])
def test_updates_at_hand_count_as_in_a_run(make):
    """A client without samples is left out, NaN is refused."""
    start = weights(0.0)
    good = [ClientUpdate(f"client_{number}", [np.ones(1, np.float32)], 5) for number in range(2)]
    idle = ClientUpdate("client_8", [np.full(1, 100, np.float32)], 0)
    assert make().aggregate([good[0], idle, good[1]], start)["w"] == make().aggregate(good, start)["w"] > 0
    with pytest.raises(Diverged, match="client_9"):
        make().aggregate([*good, ClientUpdate("client_9", [np.full(1, np.nan, np.float32)], 5)], start)


def test_what_is_late_leaves_a_running_variance_in_its_range():
    """Two clients have made 0.1 of a variance of 1, one version after the other; 1 - 0.9 - 0.9 would be no variance."""
    layout = Layout(["w", "variance"], [(1,), (1,)], ["float32", "float32"], ["variance"])
    rule, current = FedBuffAggregator(buffer_size=1), weights(1.0, layout)
    for staleness in (0, 1):
        assert rule.receive(current, update(0.1, 1.0, staleness, layout))
        assert current["variance"][0] == np.float32(0.1)


def test_a_client_from_the_future_is_refused():
    """S-AGG-12: a version above the server's raises, with both numbers."""
    with pytest.raises(UpdateError, match=r"client_3.*version 9.*version 8"):
        staleness_of(8, 9, "client_3")


@pytest.mark.parametrize("staleness", [0, 1, 4, 5, 20])
def test_staleness_functions(staleness):
    """Section 5.2 of Xie et al. 2019."""
    assert discount("constant", staleness, 0.5, 4) == 1
    assert discount("polynomial", staleness, 0.5, 4) == pytest.approx((staleness + 1) ** -0.5)
    assert discount("hinge", staleness, 10.0, 4) == (1 if staleness <= 4 else pytest.approx(1 / (10.0 * (staleness - 4) + 1)))


@pytest.mark.parametrize(("rule", "wanted"), [(FedAsyncAggregator(mixing=0.5), (5.0, 4)),
                                              (FedBuffAggregator(buffer_size=1, server_lr=0.1), (10.0, 8))])
def test_buffers_take_part(rule, wanted):
    """S-AGG-02: BatchNorm's statistics and counters follow the clients, whatever the server's learning rate."""
    layout = Layout(["w", "mean", "count"], [(1,), (2,), ()], ["float32", "float32", "int64"], ["mean", "count"])
    current = weights(0, layout)
    late = update(10.0, 0.0, 0, layout)
    late.weights["count"][...] = 8
    rule.receive(current, late)
    assert current["mean"].tolist() == [wanted[0]] * 2
    assert (current["count"].dtype, int(current["count"])) == (np.int64, wanted[1])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32, np.bool_])
def test_what_is_mixed_is_rounded_once(dtype):
    """Added up in float64; integers to nearest even, booleans above 1/2. FedBuff's integers are the clients' own."""
    layout, draw = Layout(["w"], [(2000,)], [dtype]), np.random.default_rng(0)
    begun, current, given = (weights(0, layout) for _ in range(3))
    for each in (begun, current, given):
        each["w"][...] = (draw.normal(size=2000) * 9).astype(dtype)
    now, new, old = (each["w"].astype(np.float64) for each in (current, given, begun))
    mixed = current.copy()
    assert FedAsyncAggregator(mixing=0.3).receive(mixed, LateUpdate("client_0", given, begun, 1, 0))
    np.testing.assert_array_equal(mixed["w"], rounded(0.7 * now + 0.3 * new, np.dtype(dtype)))
    rule = FedBuffAggregator(buffer_size=2, server_lr=0.3)
    assert not rule.receive(current, LateUpdate("client_0", given, begun, 1, 0))
    assert rule.receive(current, LateUpdate("client_1", begun, begun, 1, 0))
    wanted = (new + old) / 2 if dtype in (np.int32, np.bool_) else now + 0.15 * (new - old)
    np.testing.assert_array_equal(current["w"], rounded(wanted, np.dtype(dtype)))


@pytest.mark.parametrize("rule", [FedAsyncAggregator(mixing=2.0**-8 + 2.0**-30),
                                  FedBuffAggregator(buffer_size=1, server_lr=2.0**-8 + 2.0**-30)])
def test_bfloat16_takes_no_way_by_float32(rule):
    """Where 1 + 2^-8 + 2^-30 would first be brought to the middle of two neighbours."""
    layout = Layout(["w"], [(1,)], [ml_dtypes.bfloat16])
    current = weights(1, layout)
    rule.receive(current, update(2, 1, 0, layout))
    assert current["w"].tolist() == [1 + 2.0**-7]


def test_fedbuff_goes_on_from_its_state():
    rule, other = FedBuffAggregator(buffer_size=3), FedBuffAggregator(buffer_size=3)
    current = weights(1.0)
    rule.receive(current, update(2.0, 1.5, 1))
    rule.receive(current, update(7.0, 1.0, 0))
    other.load(rule.state())
    again = current.copy()
    for one, target in ((rule, current), (other, again)):
        assert one.receive(target, update(0.1, 0.3, 2))
    assert current.sha256() == again.sha256()


@pytest.mark.parametrize(("settings", "name"), [(dict(mixing=0), "mixing"), (dict(mixing=1.5), "mixing=1.5 .* at most 1"),
                                                (dict(exponent=0), "exponent"), (dict(hinge=-1), "hinge"),
                                                (dict(staleness="poly"), "staleness"), (dict(hinge=3), "hinge=3 is for"),
                                                (dict(staleness="constant", exponent=0.9), "exponent=0.9 is for"),
                                                (dict(staleness="constant", hinge=3), "hinge=3 is for")])
def test_settings_that_cannot_be(settings, name):
    with pytest.raises(ConfigError, match=name):
        FedAsyncAggregator(**settings)


def test_a_hinge_may_be_at_the_first_version_that_is_missed():
    current = weights(0.0)
    FedAsyncAggregator(mixing=1.0, staleness="hinge", exponent=1.0, hinge=0).receive(current, update(8.0, 0.0, 3))
    assert current["w"][0] == 2.0


@pytest.mark.parametrize(("settings", "name"), [(dict(buffer_size=2.5), "buffer_size"), (dict(buffer_size=0), "buffer_size"),
                                                (dict(server_lr=0), "server_lr"), (dict(staleness="poly"), "staleness"),
                                                (dict(hinge=3), "hinge=3 is for")])
def test_buffers_that_cannot_be(settings, name):
    with pytest.raises(ConfigError, match=name):
        FedBuffAggregator(**settings)


def in_training(trainer, aggregator, **config):
    async def program(server: ServerNode):
        trainer(server, Arrays({"w": f32(0)}), aggregator, config)

    in_world({"w": f32(0)}, {"a": constant([f32(1)])}, program)


def test_each_trainer_refuses_the_other_kind():
    with pytest.raises(ConfigError, match=r"fedasync or federated\.aggregator\.fedbuff"):
        in_training(AsyncTrainer, FedAvgAggregator())
    with pytest.raises(ConfigError, match=r"federated\.trainer\.async"):
        in_training(DefaultTrainer, FedAsyncAggregator())
    with pytest.raises(ConfigError, match="concurrency"):
        in_training(DefaultTrainer, FedAvgAggregator(), concurrency=3)
    with pytest.raises(ConfigError, match="cohort_size"):
        in_training(AsyncTrainer, FedAsyncAggregator(), cohort_size=1)


def run(folder, **changes):
    """A short run by the virtual clock; its rows."""
    trainer = {"max_rounds": 15, "concurrency": 3, "latency": {"kind": "exponential"}, **changes.pop("trainer_config", {})}
    config = {"mode": "serial", "seed": 2, "num_clients": 6, "tracker": "none", "output_dir": str(folder),
              "learner_config": {"client_lr": 0.05}, "trainer_config": trainer,
              "components": {"model": "model.numpy.linear", "trainer": "federated.trainer.async",
                             "aggregator": "federated.aggregator.fedasync"}, **changes}
    result = federation.run(config)
    return result, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_order_of_events(tmp_path):
    """A queue of three: times and staleness from the latency model alone, without any training."""
    _, rows = run(tmp_path / "run")
    latency, samples = Latency("exponential"), {}
    data = federation.load_config_from_dict({"num_clients": 6, "seed": 2})
    from federation.assemble import load_data
    sizes = load_data(data).sizes

    now, number, flights = 0.0, 0, []
    for version, row in enumerate(rows):
        while len(flights) < 3:
            number += 1
            generator = stream(2, "dispatch", number)
            client = int(below(generator, 6, 1)[0])
            while client in {flight[2] for flight in flights}:
                client = int(below(generator, 6, 1)[0])
            seconds = latency.seconds(2, f"client_{client}", number, int(sizes[client]))
            flights.append((now + seconds, number, client, version))
        flights.sort()
        now, _, client, started = flights.pop(0)
        assert row["virtual_seconds"] == now
        assert row["staleness"] == version - started
        assert row["num_samples"] == sizes[client]
        samples[client] = True
    assert len(samples) > 1


def test_one_at_a_time_is_sequential(tmp_path):
    """With one client in training nothing is stale; FedBuff with a buffer of one is then plain sequential training."""
    one = {"concurrency": 1}
    result, rows = run(tmp_path / "a", trainer_config=one, aggregator_config={"mixing": 1.0})
    assert all(row["staleness"] == 0 for row in rows)
    names = {"model": "model.numpy.linear", "trainer": "federated.trainer.async", "aggregator": "federated.aggregator.fedbuff"}
    other, _ = run(tmp_path / "b", trainer_config=one, components=names, aggregator_config={"buffer_size": 1})
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(result.weights, other.weights, strict=True))


def test_the_real_clock_trains_as_well(tmp_path):
    """In order of arrival; not the same bits each time, but as many versions, and it learns."""
    real = {"clock": "real", "latency": {}, "max_rounds": 40}
    _, rows = run(tmp_path / "run", trainer_config=real)
    assert [row["round"] for row in rows] == list(range(1, 41))
    assert rows[-1]["accuracy"] > 0.6
    assert "virtual_seconds" not in rows[-1]


def test_who_was_in_training_on_a_rank_that_is_lost_is_sent_once_more():
    """By the real clock as well, by which its loss is what comes first."""
    async def program(server):
        trainer = AsyncTrainer(server, Arrays({"w": f32(0)}), FedAsyncAggregator(), {"clock": "real", "concurrency": 1})
        sent = []

        class Lost:
            def submit(self, job):
                sent.append(job.number)
                result = asyncio.get_running_loop().create_future()
                result.set_exception(Disconnected("rank 1 is lost"))
                return result

        trainer._dispatch(Lost())
        with pytest.raises(Disconnected):
            await trainer._next()
        assert trainer.recover()
        for flight in trainer._flights.values():
            trainer._send(Lost(), flight)
        assert sent == [1, 1]
        trainer._results[1].exception()

    in_world({"w": f32(0)}, {"a": constant([f32(1)])}, program)


def test_a_learner_with_state_is_refused(tmp_path, caplog):
    """Once, although several clients were in training: the others' errors are not reported as lost ones."""
    with pytest.raises(UpdateError, match="keeps something for each client"):
        run(tmp_path / "run", learner_config={"momentum": 0.9, "keep_momentum": True})
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_failing_and_diverging_clients_contribute_nothing():
    """Others take their places; a run in which all fail ends with an error."""
    def answers(start, context):
        if context.client_id == "bad":
            return ValueError("no data today")
        if context.client_id == "wild":
            return [f32(np.nan)], 1
        return [np.asarray(start[0]) + 1], 1

    class Sized(Answers):
        pass

    async def program(server):
        trainer = AsyncTrainer(server, Arrays({"w": f32(0)}), FedBuffAggregator(buffer_size=2),
                               {"max_rounds": 4, "concurrency": 2, "evaluate": "none"})
        rows = []
        trainer.recorder.record = rows.append
        await trainer.run()
        return rows, trainer.weights["w"][0]

    rows, value = in_world({"w": f32(0)}, {"good": answers, "fine": answers, "bad": answers, "wild": answers}, program)
    failures = {name for row in rows for name in row.get("failures", {})}
    assert failures <= {"bad", "wild"}
    assert np.isfinite(value)
    assert value > 0

    async def hopeless(server):
        await AsyncTrainer(server, Arrays({"w": f32(0)}), FedAsyncAggregator(), {"max_rounds": 1, "evaluate": "none"}).run()

    with pytest.raises(federation.FederationError, match="failed or had no samples, one after the other"):
        in_world({"w": f32(0)}, {"bad": answers}, hopeless)
    assert asyncio.iscoroutinefunction(program)


def train(answers, aggregator, seed=0, on_divergence="drop", **config):
    """A run of these clients: its rows, and the weight."""
    async def program(server):
        trainer = AsyncTrainer(server, Arrays({"w": f32(0)}), aggregator, {"evaluate": "none", **config}, seed=seed,
                               on_divergence=on_divergence)
        rows = []
        trainer.recorder.record = rows.append
        await trainer.run()
        return rows, trainer.weights["w"][0], [(client.client_id, client.num_samples) for client in server.clients]

    return in_world({"w": f32(0)}, answers, program)


def test_each_update_is_taken_from_where_its_client_started():
    """FedBuff by hand: a client makes 2 w + 1 of w, so that its update tells which version it was given."""
    answers = {name: lambda start, context: ([2 * start[0] + 1], 1) for name in "abcde"}
    rows, value, clients = train(answers, FedBuffAggregator(buffer_size=2, server_lr=0.5), seed=3, max_rounds=6, concurrency=3,
                                 latency={"kind": "exponential"})
    now, number, weight, version, flights, buffer, sent, expected = 0.0, 0, 0.0, 0, [], [], 0, []
    while version < 6:
        while len(flights) < 3:
            number, sent = number + 1, sent + 1
            generator = stream(3, "dispatch", number)
            while (client := int(below(generator, 5, 1)[0])) in {flight[2] for flight in flights}:
                pass
            seconds = Latency("exponential").seconds(3, clients[client][0], number, clients[client][1])
            flights.append((now + seconds, number, client, version, weight))
        flights.sort()
        now, _, _, started, begun = flights.pop(0)
        buffer.append((version - started, begun + 1))
        if len(buffer) == 2:
            weight += 0.25 * sum(change / (1 + staleness) ** 0.5 for staleness, change in buffer)
            version += 1
            expected.append((version, now, 4 * sent, 8, max(staleness for staleness, _ in buffer)))
            buffer, sent = [], 0
    assert [(row["round"], row["virtual_seconds"], row["bytes_down"], row["bytes_up"], row["staleness_max"])
            for row in rows] == expected
    assert value == pytest.approx(weight, rel=1e-6)
    assert max(row[-1] for row in expected) > 1, "nobody is late: choose another seed"


def test_failures_between_updates_are_not_in_a_row():
    """However many it takes to fill the buffer."""
    answers = dict.fromkeys("abc", lambda start, context: ([start[0] + 1], 1))
    answers["bad"] = lambda start, context: ValueError("deliberate")
    rows, value, _ = train(answers, FedBuffAggregator(buffer_size=40), max_rounds=1, concurrency=1)
    assert (len(rows), rows[0]["cohort_size"], value) == (1, 40, 1)


def test_what_ends_a_run():
    with (pytest.raises(RoundError, match="version 1: FedBuffAggregator made NaN or infinity"),
          pytest.warns(RuntimeWarning, match="overflow")):
        train({"a": lambda start, context: ([start[0] + 1], 1)}, FedBuffAggregator(1, server_lr=1e39), max_rounds=1)
    with pytest.raises(Diverged, match=r"^the update of a holds NaN or infinity in 'w'"):
        train({"a": lambda start, context: ([f32(np.nan)], 1)}, FedBuffAggregator(1), on_divergence="raise", max_rounds=1)


def test_a_run_whose_clients_never_have_samples_ends():
    """Where they said from the start that they have some."""
    async def program(server):
        trainer = AsyncTrainer(server, Arrays({"w": f32(0)}), FedAsyncAggregator(), {"max_rounds": 1, "evaluate": "none"})
        async with asyncio.timeout(20):
            await trainer.run()

    def nothing(start, context):
        return [np.asarray(start[0])], 0

    with pytest.raises(RoundError, match="4 clients failed or had no samples, one after the other, the last of them"):
        in_world({"w": f32(0)}, {"a": nothing, "b": nothing}, program)
