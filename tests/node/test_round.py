"""One round over a world in memory: what goes in, what comes out, what it costs.

All of it three times: with weights and sums by collectives, in messages, and read in place, as where a world has it that way.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import nullcontext
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from msgspec import structs

from federation import ClientUpdate, TrainResult
from federation.builtin import DefaultTrainer, FedAdamAggregator, FedAvgAggregator, FedAvgMAggregator, KrumAggregator
from federation.core.aggregator import MeanAggregator, RoundStats
from federation.core.metrics import MetricSum
from federation.core.weights import Layout, Weights
from federation.errors import ClientError, Diverged, RoundError, UpdateError
from federation.node.protocol import FitReport, Outcome, Problem
from federation.node.proxy import ClientProxy
from federation.node.round import MOST_RATIO, Fitted, Plan, check_problems
from node_comm.memory import MemoryTransport
from tests.node.worlds import Answers, Arrays, constant, f32, in_world, names


@pytest.fixture(autouse=True, params=["collectives", "messages", "in place"])
def way(request, monkeypatch):
    """How weights and sums get to other ranks: in messages or collectives, or not at all, since these read them where they lie."""
    monkeypatch.setattr(MemoryTransport, "direct_bytes", 0 if request.param == "collectives" else 1 << 22)
    if request.param == "in place":
        arrays: list[np.ndarray] = []

        def place_of(transport, array):
            arrays.append(array.view())
            arrays[-1].flags.writeable = False
            return b"%d" % (len(arrays) - 1)

        monkeypatch.setattr(MemoryTransport, "place_of", place_of)
        monkeypatch.setattr(MemoryTransport, "read_at", lambda transport, place: arrays[int(place)])
    return request.param


def fit_and_mean(arrays, answers, **plan):
    """The mean after one round, as a dict of arrays."""

    async def program(server):
        start = Weights.of(arrays)
        await server.broadcast_weights(start)
        fitted = await server.fit(Plan(1, server.get_connected_clients(), **plan))
        check_problems(fitted, 1, "drop")
        mean = Weights.zeros(start.layout)
        await server.mean(fitted, out=mean)
        return dict(mean.items())

    return in_world(arrays, answers, program)


def fit_and_rows(arrays, answers):
    async def program(server):
        await server.broadcast_weights(Weights.of(arrays))
        fitted = await server.fit(Plan(1, server.get_connected_clients(), needs="rows"))
        return await server.updates(fitted)

    return in_world(arrays, answers, program)


def test_weights_by_samples():
    """S-AGG-04: A n=10 [1,2], B n=30 [3,6], C n=0 [100,100] give [2.5, 5], with and without C."""
    answers = {"a": constant([f32(1, 2)], 10), "b": constant([f32(3, 6)], 30), "c": constant([f32(100, 100)], 0)}
    for chosen in (answers, {name: answers[name] for name in "ab"}):
        assert fit_and_mean({"w": f32(0, 0)}, chosen)["w"].tolist() == [2.5, 5.0]


def test_any_order_of_ranks_gives_the_same_bits():
    """S-AGG-14: (1e8, 1, -1e8) has the mean 1/3, however the three are spread."""
    for values in itertools.permutations((1e8, 1.0, -1e8)):
        answers = {name: constant([f32(value)]) for name, value in zip(names(3), values, strict=True)}
        assert fit_and_mean({"w": f32(0)}, answers)["w"][0] == np.float32(1 / 3)


def test_integer_buffers():
    """S-AGG-01: running_mean is averaged; the batch counter is the rounded mean, int64 and 0-d."""
    start = {"bn.running_mean": f32(0, 0), "bn.num_batches_tracked": np.array(0)}
    answers = {"a": constant({"bn.running_mean": f32(0, 4), "bn.num_batches_tracked": np.array(7)}, 1),
               "b": constant({"bn.running_mean": f32(4, 8), "bn.num_batches_tracked": np.array(8)}, 3)}
    mean = fit_and_mean(start, answers)
    assert mean["bn.running_mean"].tolist() == [3, 7]
    counter = mean["bn.num_batches_tracked"]
    assert (counter.dtype, counter.shape, int(counter)) == (np.int64, (), 8)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ">f8", "?", np.float64])
def test_dtypes(dtype):
    """S-COMM-04 and S-AGG-05: half precision, foreign byte order and masks keep their dtype and their values."""
    values = np.array([1, 0, 1], dtype)
    mean = fit_and_mean({"w": values}, {name: constant([values]) for name in names(3)})["w"]
    assert mean.astype(float).tolist() == [1, 0, 1]
    assert mean.dtype == np.dtype(dtype).newbyteorder("=")


class Numbers(Answers):
    """Counts and measures as NumPy and torch do."""

    def fit(self, config=None):
        metrics = {"loss": torch.tensor(0.5), "accuracy": np.array(0.25), "classes": np.ones(2), "rank": np.int32(3)}
        return TrainResult([f32(1)], np.int64(2), metrics)


def test_numbers_of_libraries_travel():
    """A learner may count and measure with scalars, arrays and tensors: other ranks take them as the server's own does."""

    async def program(server):
        await server.broadcast_weights(Weights.of({"w": f32(0)}))
        fitted = await server.fit(Plan(1, server.get_connected_clients(), needs="rows"))
        [update] = await server.updates(fitted)
        return fitted.num_samples, fitted.metrics.means(), update.metrics

    means = {"accuracy": 0.25, "loss": 0.5, "rank": 3.0}
    assert in_world({"w": f32(0)}, {"a": None}, program, learner=Numbers) == (2, means, {**means, "classes": [1.0, 1.0]})


class Normalised(Arrays):
    """A parameter, and a statistic that is none."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self._weights = Weights.zeros(Layout(["w", "mean"], [(1,), (1,)], [np.float32] * 2, buffers=["mean"]))


@pytest.mark.parametrize("aggregator", [FedAvgMAggregator(), FedAdamAggregator()])
def test_a_server_optimiser_moves_parameters_and_averages_statistics(aggregator):
    async def program(server):
        trainer = DefaultTrainer(server, Normalised({}), aggregator, {"max_rounds": 2, "min_clients": 1, "evaluate": "none"})
        await trainer.run()
        return {name: array.tolist() for name, array in trainer.weights.items()}

    answers = {"a": constant({"w": f32(1), "mean": f32(2)}), "b": constant({"w": f32(1), "mean": f32(6)})}
    found = in_world({"w": f32(0), "mean": f32(0)}, answers, program)
    assert found["mean"] == [4.0]
    assert found["w"] != [1.0]


def test_scalars_and_empty_arrays_keep_their_shape():
    """S-COMM-03: (), (0, 4), (1,) and a mask through a whole round, names and order unchanged."""
    state = {"step": np.array(7), "none": np.zeros((0, 4), np.float32), "one": f32(2), "mask": np.array([True, False, True])}
    mean = fit_and_mean(state, {"client_0": constant(state)})
    assert list(mean) == list(state)
    for name, wanted in state.items():
        assert (mean[name].shape, mean[name].dtype) == (wanted.shape, wanted.dtype)
        assert mean[name].tobytes() == wanted.tobytes()


def test_names_match_whatever_their_order():
    """S-AGG-11 b: the same keys in reverse order are matched by name."""
    start = {"first": f32(0), "second": f32(0)}
    answers = {"a": constant({"first": f32(1), "second": f32(2)}), "b": constant({"second": f32(4), "first": f32(3)})}
    mean = fit_and_mean(start, answers)
    assert (mean["first"][0], mean["second"][0]) == (2, 3)


@pytest.mark.parametrize(("given", "words"), [
    ({"w": np.zeros((1, 3), np.float32), "b": f32(0)}, ["client_1", "'w'", "(3, 1)", "(1, 3)"]),
    ({"w": np.zeros((3, 1), np.float32), "extra": f32(0)}, ["client_1", "b", "extra"]),
    ({"w": np.zeros((3, 1), np.complex64), "b": f32(0)}, ["client_1", "'w'", "complex64"]),
])
def test_updates_that_do_not_fit(given, words):
    """S-AGG-11 a, c, S-COMM-02: an error that names client, parameter and both; never a broadcast shape."""
    start = {"w": np.zeros((3, 1), np.float32), "b": f32(0)}
    with pytest.raises(UpdateError) as caught:
        fit_and_mean(start, {"client_0": constant(start), "client_1": constant(given)})
    for word in words:
        assert word in str(caught.value)


def test_uploaded_states_stay_what_they_were():
    """S-AGG-06: W=2, clients add +1, +4, -3: they send 3, 6, -1, and the mean is 8/3."""
    steps = dict(zip(names(3), (1, 4, -3), strict=True))
    answers = {name: (lambda start, context, step=step: ([start[0] + np.float32(step)], 1)) for name, step in steps.items()}
    updates = fit_and_rows({"w": f32(2)}, answers)
    aggregated = FedAvgAggregator().aggregate(updates)
    assert [float(update.weights[0][0]) for update in updates] == [3, 6, -1]
    assert aggregated[0][0] == np.float32(8 / 3)
    assert fit_and_mean({"w": f32(2)}, answers)["w"][0] == np.float32(8 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_update_is_left_out(bad):
    """S-AGG-10: [1,1], [3,3] and one that is not finite give [2,2], by reduction and by rows."""
    answers = {"a": constant([f32(1, 1)]), "b": constant([f32(3, 3)]), "c": constant([f32(bad, 2)])}
    assert fit_and_mean({"w": f32(0, 0)}, answers)["w"].tolist() == [2, 2]
    updates = fit_and_rows({"w": f32(0, 0)}, answers)
    assert [update.client_id for update in updates] == ["a", "b"]


def test_divergence_can_be_an_error_and_all_diverged_is_one(caplog):
    """S-AGG-10: the warning names client, parameter and round."""

    async def program(server):
        await server.broadcast_weights(Weights.of({"w": f32(0)}))
        return await server.fit(Plan(4, server.get_connected_clients()))

    fitted = in_world({"w": f32(0)}, {"a": constant([f32(np.nan)])}, program)
    with pytest.raises(Diverged, match=r"^the update of a holds NaN or infinity in 'w'$"):
        check_problems(fitted, 1, "raise")
    with pytest.raises(RoundError, match="min_clients=1"):
        check_problems(fitted, 1, "drop")
    assert all(word in caplog.text for word in ("'w'", "round 4", "a diverged"))


class Halved(MeanAggregator):
    """A mean of twice as many as there are, which is the new model."""

    def divisor(self, total, stats):
        assert (stats.round, stats.num_updates, stats.num_samples, stats.metrics) == (1, 2, 4, {"loss": 2.5, "train_size": 2.5})
        return 2 * total

    def step(self, start, mean, stats):
        pass


def test_a_rule_says_what_a_trainer_divides_by_and_metrics_are_of_training():
    rows = []

    class Told(Answers):
        def fit(self, config=None):
            result = super().fit(config)
            return replace(result, metrics={**result.metrics, "train_size": result.num_samples})

    async def program(server):
        trainer = DefaultTrainer(server, Arrays({"w": f32(0)}), Halved(), {"max_rounds": 1, "min_clients": 1, "evaluate": "none"})
        trainer.recorder.record = rows.append
        await trainer.run()
        return trainer.weights["w"].tolist()

    assert in_world({"w": f32(0)}, {"a": constant([f32(4)], 1), "b": constant([f32(8)], 3)}, program, learner=Told) == [3.5]
    assert {key: rows[0][key] for key in rows[0] if "train" in key} == {"train_loss": 2.5, "train_size": 2.5}


def test_a_rule_that_has_too_few_updates_is_told_of_the_round():
    async def program(server):
        await DefaultTrainer(server, Arrays({"w": f32(0)}), KrumAggregator(), {"max_rounds": 1, "min_clients": 1}).run()

    answers = {"a": constant([f32(1)], 0)} | {name: constant([f32(1)]) for name in "bcde"}
    with pytest.raises(RoundError, match=r"^round 1: KrumAggregator .* needs n >= 2f \+ 3 = 5 updates, and there are 4"):
        in_world({"w": f32(0)}, answers, program)


@pytest.mark.parametrize(("settings", "error"), [
    ({"on_divergence": "raise"}, Diverged), ({"config": {"min_clients": 2}}, RoundError), ({}, None)])
def test_a_trainer_minds_its_settings_about_clients_that_contribute_nothing(settings, error):
    async def program(server):
        config = {"max_rounds": 1, "min_clients": 1, "evaluate": "none"} | settings.get("config", {})
        more = {key: value for key, value in settings.items() if key != "config"}
        await DefaultTrainer(server, Arrays({"w": f32(0)}), FedAvgAggregator(), config, **more).run()

    with pytest.raises(error) if error else nullcontext():
        in_world({"w": f32(0)}, {"a": constant([f32(1)]), "b": constant([f32(np.nan)])}, program)


@pytest.mark.parametrize("fault", [KeyError("lost"), SystemExit(0)])
def test_a_client_whose_code_raises_is_left_out(fault):
    """Also where it ends the program, as a script does: else the run would end, with status 0 and nothing done."""
    answers = {"a": constant([f32(1, 1)]), "b": constant([f32(3, 3)]), "c": lambda start, context: fault}
    assert fit_and_mean({"w": f32(0, 0)}, answers)["w"].tolist() == [2, 2]
    updates = fit_and_rows({"w": f32(0, 0)}, answers)
    assert [update.client_id for update in updates] == ["a", "b"]


@pytest.mark.parametrize("metric", [2**64, -(2**63) - 1, [1, 2**70], object(), "\ud800"],
                         ids=["large", "small", "in a list", "an object", "half a letter"])
@pytest.mark.parametrize("needs", ["mean", "rows", "matrix"])
def test_a_metric_that_no_message_carries(metric, needs):
    """Its client fails, with what a metric may be: where rows were fetched from another rank, the run ended. So it does where
    the client is trained by this one, and where nothing but a sum travels."""
    class Reports(Answers):
        def fit(self, config=None):
            result = super().fit(config)
            return TrainResult(result.weights, result.num_samples, {"odd": metric} if self.context.client_id == "b" else {})

    async def program(server):
        await server.broadcast_weights(Weights.of({"w": f32(0)}))
        fitted = await server.fit(Plan(1, server.get_connected_clients(), needs=needs))
        [problem] = fitted.problems
        assert (problem.client_id, problem.kind) == ("b", "failed")
        assert "as its metric 'odd': a metric is a number (an integer from -2**63 to 2**64 - 1; " in problem.reason
        if needs == "rows":
            assert [update.client_id for update in await server.updates(fitted)] == ["a"]
        with pytest.raises(ClientError, match="a metric is a number"):
            await server.collect_results(server.get_connected_clients(), "fit")

    in_world({"w": f32(0)}, {"a": constant([f32(1)]), "b": constant([f32(2)])}, program, learner=Reports)


def test_metrics_are_the_same_on_every_rank():
    """As text, Python's numbers, and lists: what a rule gets of the server's own rank is what it gets of another."""
    class Reports(Answers):
        def fit(self, config=None):
            result = super().fit(config)
            return TrainResult(result.weights, result.num_samples, {
                "a": np.float32(0.5), "b": np.arange(2), 3: torch.tensor(1.5), "d": (1, None), "e": "x", "f": 2**64 - 1, "g": True})

    async def program(server):
        server.host.own["b"] = Reports(Arrays({"w": f32(0)}), constant([f32(2)]))
        await server.broadcast_weights(Weights.of({"w": f32(0)}))
        fitted = await server.fit(Plan(1, server.get_connected_clients(), needs="rows"))
        [update] = await server.updates(fitted)
        server.host.fit(structs.replace(fitted.plan.order(packed=False), clients=["b"]))
        return [update.metrics, server.host.updates.row("b")[1]]

    found = in_world({"w": f32(0)}, {"a": constant([f32(1)])}, program, learner=Reports)
    wanted = {"a": 0.5, "b": [0, 1], "3": 1.5, "d": [1, None], "e": "x", "f": 2**64 - 1, "g": True}
    assert found == [wanted, wanted]
    assert repr(found[0]) == repr(wanted)


def test_no_samples_at_all():
    """S-AGG-03: an error with round and clients; nothing becomes NaN."""
    answers = {"a": constant([f32(5, 1)], 0), "b": constant([f32(2, 8)], 0)}
    with pytest.raises(RoundError, match=r"round 1: .*\(a, b\).* 0"):
        fit_and_mean({"w": f32(0, 0)}, answers)


def test_evaluation_is_weighted_by_evaluation_samples():
    """S-AGG-13: 10 samples at 0.9 and 90 at 0.5 make 0.54."""

    async def program(server):
        await server.broadcast_weights(Weights.of({"w": f32(0)}))
        _, clients, _ = await server.evaluate(1, 0, server.get_connected_clients())
        return clients.means()

    evaluations = {"a": (10, {"accuracy": 0.9}), "b": (90, {"accuracy": 0.5})}
    answers = {"a": constant([f32(0)], 100), "b": constant([f32(0)], 10)}
    assert in_world({"w": f32(0)}, answers, program, evaluations)["accuracy"] == 0.54


def test_reduction_and_rows_agree_to_the_last_bit():
    """The two ways to the mean: one reduction over ranks, and FedAvgAggregator.aggregate on the rows."""
    generator = np.random.default_rng(5)
    start = {"w": generator.normal(size=(7, 5)).astype(np.float32), "b": generator.normal(size=3)}
    answers = {name: constant({key: (value + generator.normal(size=value.shape)).astype(value.dtype)
                               for key, value in start.items()}, int(generator.integers(1, 500))) for name in names(6)}
    updates = fit_and_rows(start, answers)
    by_rows = FedAvgAggregator().aggregate(updates, Weights.of(start))
    by_mean = fit_and_mean(start, answers)
    total = sum(update.num_samples for update in updates)
    for name in start:
        assert by_rows[name].tobytes() == by_mean[name].tobytes()
        exact = sum(update.weights[name].astype(np.longdouble) * update.num_samples for update in updates) / total
        # Half a unit in the last place of the dtype, and 2^-51 of the largest magnitude for each contribution.
        resolution = len(updates) * 2.0**-51 * 2 ** np.ceil(np.log2(np.abs(start[name]).max()))
        assert np.all(np.abs(by_mean[name] - exact) <= 0.5 * np.spacing(np.abs(by_mean[name])) + resolution)


def test_uniform_weighting():
    answers = {"a": constant([f32(1)], 10), "b": constant([f32(3)], 30)}
    assert fit_and_mean({"w": f32(0)}, answers, weighting="uniform")["w"][0] == 2


@pytest.mark.parametrize("reduction", ["float32", "float64"])
def test_inexact_reductions_are_near(reduction):
    answers = {"a": constant([f32(1, 5)], 10), "b": constant([f32(3, 9)], 30)}
    mean = fit_and_mean({"w": f32(0, 0)}, answers, reduction=reduction)["w"]
    np.testing.assert_allclose(mean, [2.5, 8], rtol=1e-6)


def test_collect_results_in_the_order_of_the_clients():
    answers = {name: constant([f32(index)], index + 1) for index, name in enumerate(names(12))}

    async def program(server):
        await server.broadcast_weights([f32(0)])
        clients = server.get_connected_clients()
        results = await server.collect_results(clients, "fit", {"epochs": 5})
        return [client.client_id for client in clients], results

    order, results = in_world({"0": f32(0)}, answers, program)
    assert order == list(names(12))
    assert [result.num_samples for result in results] == list(range(1, 13))
    assert [float(result.weights[0][0]) for result in results] == list(range(12))
    assert ClientUpdate.from_result("client_3", results[3]).num_samples == 4


def test_collect_results_names_the_client_that_fails():
    async def program(server):
        await server.broadcast_weights([f32(0)])
        await server.collect_results(server.get_connected_clients(), "fit")

    with pytest.raises(ClientError, match="client_1") as caught:
        in_world({"0": f32(0)}, {"client_0": constant([f32(0)]), "client_1": lambda *_: KeyError("lost")}, program)
    assert "KeyError: 'lost'" in caught.value.traceback


def test_collect_results_refuses_other_methods():
    async def program(server):
        await server.collect_results(server.get_connected_clients(), "predict")

    with pytest.raises(ValueError, match="'predict'; clients answer to 'fit' and 'evaluate'"):
        in_world({"0": f32(0)}, {"client_0": constant([f32(0)])}, program)


def test_an_update_of_several_words_and_a_rank_without_clients():
    """The mean of 2**90 and 0 needs further words, which are reduced; the next round has one again, and then one rank idles."""
    answers = {"a": lambda start, context: ([f32(2.0**90 if context.round == 1 else 0.75)], 1),
               "b": lambda start, context: ([f32(0)], 1)}

    async def program(server):
        found = []
        for number, cohort in ((1, slice(None)), (2, slice(None)), (3, slice(1))):
            await server.broadcast_weights(Weights.of({"w": f32(0)}))
            fitted = await server.fit(Plan(number, server.get_connected_clients()[cohort]))
            mean = Weights.zeros(server.weights.layout)
            await server.mean(fitted, out=mean)
            found.append((fitted.limbs, mean["w"].tolist()))
        return found

    assert in_world({"w": f32(0)}, answers, program) == [(4, [2.0**89]), (1, [0.375]), (1, [0.75])]


@pytest.mark.parametrize("way", ["collectives", "messages"], indirect=True)  # in place, nothing is on its way
def test_orders_that_follow_a_broadcast_are_obeyed_with_its_weights(way, monkeypatch):
    """Training may be ordered while the weights are on their way; nobody waits for that but who says so."""
    verb, times = ("broadcast", 1) if way == "collectives" else ("send", 2)
    original, held, passed = getattr(MemoryTransport, verb), [], []

    async def slow(self, *args, **kwargs):
        await original(self, *args, **kwargs)
        if self.rank == 0 and (verb == "broadcast" or args[2] is not None):
            held.append(1)
            await asyncio.sleep(0.05)  # the buffer is borrowed for as long
            passed.append(1)

    monkeypatch.setattr(MemoryTransport, verb, slow)
    answers = {name: lambda start, context: ([start[0] + 1], 1) for name in "ab"}

    async def program(server):
        for number in range(1, 4):
            await server.begin_broadcast(Weights.of({"w": f32(10 * number)}))
            assert len(passed) < number * times
            fitted = await server.fit(Plan(number, server.get_connected_clients()))
            assert len(held) == len(passed) == number * times
            mean = Weights.zeros(server.weights.layout)
            await server.mean(fitted, out=mean)
            assert mean["w"].tolist() == [10 * number + 1]
        return True

    assert in_world({"w": f32(0)}, answers, program)


def test_one_order_one_broadcast_one_reduction_a_round(way):
    """The operations of FedAvg, counted at the transport of rank 0 over five rounds and four ranks."""
    counted: dict[str, int] = {}

    def counting(verb, original):
        def call(*args, **kwargs):
            counted[verb] = counted.get(verb, 0) + 1
            return original(*args, **kwargs)
        return call

    def count(transport):
        if transport.rank == 0:
            for verb in ("send", "broadcast", "reduce", "gather", "alltoall"):
                setattr(transport, verb, counting(verb, getattr(transport, verb)))
        return transport

    async def program(server):
        counted.clear()
        trainer = DefaultTrainer(server, Arrays({"w": f32(0)}), FedAvgAggregator(),
                                 {"max_rounds": 5, "min_clients": 1, "evaluate": "none"})
        await trainer.run()
        return dict(counted)

    found = in_world({"w": f32(0)}, {name: constant([f32(1)]) for name in names(4)}, program, wrap=count)
    first = 1  # the initial weights
    if way != "collectives":
        # To each of four ranks: the weights, and whom to train; where weights lie is said with that. Sums come with reports.
        assert found == {"send": 4 * (5 * 2 + first if way == "messages" else 5 + first + 1)}
        return
    assert found.get("broadcast") == 5 + first
    assert found.get("reduce") == 5
    assert found.get("gather", 0) == found.get("alltoall", 0) == 0
    # To each of four ranks: that weights follow, whom to train, and that the sums are wanted.
    assert found["send"] == 4 * (5 * 3 + first)


def test_a_round_that_fails_changes_nothing():
    """A round is a transaction: weights, round number and aggregator state are those of the last commit."""
    calls = itertools.count(1)

    def answer(start, context):
        return ([start[0] + np.float32(1)], 1) if next(calls) < 3 else ([f32(np.nan)], 1)

    async def program(server):
        trainer = DefaultTrainer(server, Arrays({"w": f32(0)}), FedAvgAggregator(), {"max_rounds": 5, "min_clients": 1})
        with pytest.raises(RoundError):
            await trainer.run()
        return trainer.round, float(trainer.weights[0][0])

    assert in_world({"w": f32(0)}, {"client_0": answer}, program) == (2, 2.0)


def test_waiting_for_clients_that_do_not_come():
    """S-LIFE-08: the error says how many are there, how many are wanted."""
    async def program(server):
        await server.wait_for_clients(3, timeout=0.05)

    with pytest.raises(RoundError, match="1 of 3 clients"):
        in_world({"w": f32(0)}, {"client_0": constant([f32(0)])}, program)


def test_two_clients_of_one_name_are_refused():
    from federation import ClientNode, ServerNode
    from node_comm import CommError, memory
    from tests.node.worlds import Answers

    async def main(transport):
        if transport.rank == 0:
            server = ServerNode(transport=transport)
            await server.start()
            await asyncio.sleep(0.1)
            with pytest.raises(Exception, match="two clients are called 'twin'"):
                await server.wait_for_clients(2, timeout=5)
            await server.stop()
        else:
            client = ClientNode({"node_id": "twin"}, transport=transport)
            client.bind(Answers(Arrays({"w": f32(0)}), constant([f32(0)])))
            await asyncio.sleep(0.02 * transport.rank)
            try:
                await client.connect_and_register()
                await client.wait()
            except CommError:
                pass
            await client.stop()

    memory.run(main, 3)


@pytest.mark.parametrize(("samples", "weighting", "total"), [
    ([10, 30, 0], "samples", 40), ([10, 30, 0], "uniform", 3), ([0, 0], "samples", 1), ([], "uniform", 1),
    ([10, 2**40, 0], "samples", 10 * MOST_RATIO), ([10, 10 * MOST_RATIO - 10], "samples", 10 * MOST_RATIO)])
def test_what_a_cohort_is_expected_to_count_for(samples, weighting, total):
    """Who claims to have more than all others together could matter beside does not set the scale for them."""
    cohort = [ClientProxy(name, count) for name, count in zip("abc", samples, strict=False)]
    assert Plan(1, cohort, weighting=weighting).total_samples == total


def reports():
    """Of two ranks: client b, of the first one's share, has been trained by the second; d has diverged there, and e is late."""
    def report(outcomes, problems, limbs, **more):
        metrics = MetricSum()
        for outcome in outcomes:
            metrics.add({"loss": float(outcome.num_samples)}, outcome.num_samples)
        return FitReport(outcomes=outcomes, problems=problems, metrics=metrics.to_dict(), limbs=limbs, seconds=0.5 * limbs, **more)

    return {2: report([Outcome("c", 0, 1.0, 0.0, False), Outcome("b", 3, 1.0, 3.0, False)],
                      [Problem("f", "failed", "why", "how"), Problem("d", "diverged", "NaN", "in w", "w")], 3),
            1: report([Outcome("a", 1, 1.0, 1.0, False)], [], 1)}


def test_what_came_of_a_plan_is_in_the_order_of_the_cohort():
    plan = Plan(7, [ClientProxy(name, 1) for name in "abcdef"])
    fitted = Fitted.of(plan, {1: ["a", "b"], 2: ["c", "d", "e", "f"]}, reports())
    assert [outcome.client_id for outcome in fitted.outcomes] == ["a", "b", "c"]
    assert [problem.client_id for problem in fitted.problems] == ["d", "f"]
    assert fitted.ranks == {"a": 1, "b": 2, "c": 2, "d": 2, "e": 2, "f": 2}
    assert (fitted.limbs, fitted.seconds) == (3, {2: 1.5, 1: 0.5})
    assert (fitted.contributing, fitted.late, fitted.num_samples) == (["a", "b"], ["e"], 4)
    assert fitted.stats(9) == RoundStats(7, 9, 2, 4, {"loss": 2.5})
    assert fitted.stats(5).num_clients == 6, "who has left since was one of the run's"
    check_problems(fitted, 3, "drop")
    with pytest.raises(RoundError, match=r"^round 7: 3 of 6 clients succeeded; min_clients=4. Failed: d, f. Late: e$"):
        check_problems(fitted, 4, "drop")
    with pytest.raises(Diverged, match=r"^the update of d holds NaN or infinity in 'w'$"):
        check_problems(fitted, 1, "raise")


def test_a_client_that_fails_is_no_divergence():
    plan = Plan(7, [ClientProxy(name, 1) for name in "abcf"])
    check_problems(Fitted.of(plan, {1: ["a", "b"], 2: ["c", "f"]}, reports()), 1, "raise")


def test_an_update_that_was_refused_is_named_with_the_round():
    refused = reports()
    refused[1] = structs.replace(refused[1], refused="a: does not fit")
    with pytest.raises(UpdateError, match=r"^round 7: a: does not fit$"):
        Fitted.of(Plan(7, []), {}, refused)
