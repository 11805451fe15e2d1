"""The rules that need only a mean, each against its paper's formula in float64."""

from __future__ import annotations

import math
import random

import ml_dtypes
import numpy as np
import pytest
import torch

from federation.builtin.aggregators.fedadagrad import FedAdagradAggregator
from federation.builtin.aggregators.fedadam import FedAdamAggregator
from federation.builtin.aggregators.fedavg import FedAvgAggregator
from federation.builtin.aggregators.fedavgm import FedAvgMAggregator
from federation.builtin.aggregators.feddyn import FedDynAggregator
from federation.builtin.aggregators.fednova import FedNovaAggregator
from federation.builtin.aggregators.fedprox import FedProxAggregator
from federation.builtin.aggregators.fedyogi import FedYogiAggregator
from federation.builtin.aggregators.norm_clipping import NormClippingAggregator
from federation.builtin.aggregators.qfedavg import QFedAvgAggregator
from federation.builtin.aggregators.scaffold import ScaffoldAggregator
from federation.builtin.aggregators.server_optimizer import BLOCK
from federation.core.aggregator import RoundStats
from federation.core.types import ClientUpdate
from federation.core.weights import Layout, Weights, rounded
from federation.errors import ConfigError, Diverged, RoundError, UpdateError

ALL = {
    "fedprox": FedProxAggregator, "fedavgm": FedAvgMAggregator, "fedadam": FedAdamAggregator,
    "fedyogi": FedYogiAggregator, "fedadagrad": FedAdagradAggregator, "fednova": FedNovaAggregator,
    "qfedavg": lambda: QFedAvgAggregator(lipschitz=10.0), "scaffold": ScaffoldAggregator, "feddyn": FedDynAggregator,
    "norm_clipping": lambda: NormClippingAggregator(clip_norm=1.0),
}


def filled(layout, arrays):
    weights = Weights.zeros(layout)
    for target, array in zip(weights, arrays, strict=True):
        target[...] = array
    return weights


def update(number, arrays, num_samples=1, **metrics):
    return ClientUpdate(f"client-{number}", arrays, num_samples, {"normaliser": 2.0, "start_loss": 0.5} | metrics)


def cohort(seed=0, count=5, dtype=np.float64):
    draw = np.random.default_rng(seed)
    start = filled(Layout(["w", "b"], [(3, 4), (5,)], [dtype, dtype]), [draw.normal(size=(3, 4)), draw.normal(size=5)])
    updates = [update(number, filled(start.layout, [array + draw.normal(size=array.shape) for array in start]),
                      int(draw.integers(1, 50)), normaliser=float(draw.integers(1, 9)), start_loss=float(draw.random()))
               for number in range(count)]
    return start, updates


def vector(weights):
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in weights])


def weighted(start, updates):
    shares = np.array([each.num_samples for each in updates], np.float64)
    return (shares / shares.sum()) @ np.array([vector(each.weights) - vector(start) for each in updates])


def check_rounds(aggregator, rule, rounds=4):
    """`rule(difference)` is what each round adds, in float64."""
    start, _ = cohort()
    expected = vector(start)
    for number in range(rounds):
        _, updates = cohort(seed=number + 1)
        expected = expected + rule(weighted(start, updates))
        start = aggregator.aggregate(updates, start)
        np.testing.assert_allclose(vector(start), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_rules_follow_the_paper_over_rounds(name):
    first, second = np.zeros(17), np.zeros(17)
    beta1, beta2, tau, server_lr = 0.7, 0.95, 1e-2, 0.3

    def rule(difference):
        nonlocal first, second
        first = beta1 * first + (1 - beta1) * difference
        square = difference**2
        if name == "fedadam":
            second = beta2 * second + (1 - beta2) * square
        elif name == "fedyogi":
            second = second - (1 - beta2) * square * np.sign(second - square)
        else:
            second = second + square
        return server_lr * first / (np.sqrt(second) + tau)

    settings = {"beta1": beta1, "tau": tau, "server_lr": server_lr} | ({"beta2": beta2} if name != "fedadagrad" else {})
    if name == "fedyogi":
        with_start = FedYogiAggregator(**settings)
        check_rounds(with_start, rule)
    else:
        check_rounds({"fedadam": FedAdamAggregator, "fedadagrad": FedAdagradAggregator}[name](**settings), rule)


def test_momentum_follows_the_paper_over_rounds():
    velocity = np.zeros(17)

    def rule(difference):
        nonlocal velocity
        velocity = 0.8 * velocity + difference
        return 0.5 * velocity

    check_rounds(FedAvgMAggregator(momentum=0.8, server_lr=0.5), rule)


def test_fedopt_known_answers():
    """S-AGG-08: FedAdam gives 1.0980392, then 1.2308438; undamped momentum gives 2.9; tau = 0 is refused."""
    adam, x = FedAdamAggregator(beta1=0.9, beta2=0.99, tau=1e-3, server_lr=0.1), np.array([1.0])
    seen = []
    for _ in range(2):
        x = adam.aggregate([update(1, [x + 0.5])], [x])[0].copy()
        seen.append(x[0])
    assert seen == pytest.approx([1.0980392, 1.2308438], abs=5e-8)
    adagrad, x = FedAdagradAggregator(), np.array([1.0])  # by default without momentum
    for expected in (1 + 0.5 / (0.5 + 1e-3), 1 + 0.5 / (0.5 + 1e-3) + 0.25 / (math.sqrt(0.3125) + 1e-3)):
        x = adagrad.aggregate([update(1, [x + (0.5 if x[0] == 1 else 0.25)])], [x])[0].copy()
        assert x[0] == pytest.approx(expected, rel=1e-12)
    momentum, x = FedAvgMAggregator(momentum=0.9), np.zeros(2 * BLOCK + 5)
    for _ in range(2):
        x = momentum.aggregate([update(1, [x + 1])], [x])[0].copy()
    np.testing.assert_allclose(x, 2.9, rtol=0, atol=1e-12)
    for kind in (FedAdamAggregator, FedYogiAggregator, FedAdagradAggregator):
        with pytest.raises(ConfigError, match="tau"):
            kind(tau=0)
        np.testing.assert_array_equal(kind().aggregate([update(1, [np.ones(3)])], [np.ones(3)])[0], np.ones(3))


def test_the_rate_follows_its_schedule():
    rule = FedAvgMAggregator(momentum=0.0, lr_schedule="step", lr_step_rounds=2, lr_gamma=0.5, lr_warmup_rounds=1)
    layout, found = Layout(["w"], [(1,)], ["f8"]), []
    for number in range(6):  # 0: outside a run
        mean = filled(layout, [[1.0]])
        rule.step(Weights.zeros(layout), mean, RoundStats(number, 2, 2, 2))
        found.append(mean[0][0])
    assert found == [0.5, 0.5, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("seed", range(5))
def test_fedprox_is_fedavg_on_the_server(seed):
    """S-AGG-07: the proximal term is the clients' affair; the server gives the bits of FedAvg."""
    start, updates = cohort(seed, dtype=np.float32)
    np.testing.assert_array_equal(FedProxAggregator().aggregate(updates, start).buffer,
                                  FedAvgAggregator().aggregate(updates, start).buffer)


@pytest.mark.parametrize("kind", [FedAvgAggregator, FedProxAggregator])
def test_clients_count_by_samples_or_alike(kind):
    updates = [update(1, [np.array([1.0])], 1), update(2, [np.array([5.0])], 3)]
    assert [kind(*given).aggregate(updates, [np.zeros(1)])[0].tolist() for given in ((), ("uniform",))] == [[4.0], [3.0]]


def test_fednova_averages_per_step_and_takes_the_mean_number_of_steps():
    start, updates = cohort(3)
    counts = np.array([each.num_samples for each in updates], np.float64)
    shares, steps = counts / counts.sum(), np.array([each.metrics["normaliser"] for each in updates])
    differences = np.array([vector(each.weights) - vector(start) for each in updates])
    expected = vector(start) + 0.7 * (shares @ steps) * ((shares / steps) @ differences)
    found = FedNovaAggregator(server_lr=0.7).aggregate(updates, start)
    np.testing.assert_allclose(vector(found), expected, rtol=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 3.0])
def test_qfedavg_follows_the_paper(q):
    start, updates = cohort(4)
    lipschitz = 10.0
    deltas, weights = np.zeros(17), 0.0
    for each in updates:
        loss, gradient = each.metrics["start_loss"], lipschitz * (vector(start) - vector(each.weights))
        deltas += loss**q * gradient
        weights += q * loss ** (q - 1) * (gradient @ gradient) + lipschitz * loss**q
    found = QFedAvgAggregator(lipschitz=lipschitz, q=q).aggregate(updates, start)
    np.testing.assert_allclose(vector(found), vector(start) - deltas / weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "metric", "values"), [
    ("fednova", "normaliser", [None, "two", 0, -1.0, math.nan, math.inf]),
    ("qfedavg", "start_loss", [None, "two", -1.0, math.nan, math.inf])])
def test_a_missing_metric_names_the_client(name, metric, values):
    for value in values:
        with pytest.raises(UpdateError, match=rf"client-7.*{metric}"):
            ALL[name]().aggregate([update(1, [np.ones(2)]), update(7, [np.ones(2)], **{metric: value})], [np.zeros(2)])


@pytest.mark.parametrize(("name", "metric"), [("fednova", "normaliser"), ("qfedavg", "start_loss")])
def test_a_metric_that_is_not_finite_is_that_of_a_client_that_diverged(name, metric):
    """Such a client is left out of the round, as one whose weights are not finite; it does not end the run."""
    for value in (math.nan, math.inf):
        with pytest.raises(Diverged, match=rf"client-7.*{metric}"):
            ALL[name]().aggregate([update(1, [np.ones(2)]), update(7, [np.ones(2)], **{metric: value})], [np.zeros(2)])


@pytest.mark.parametrize("q", [0.5, 2.0])
def test_a_client_without_any_loss_counts_as_one_with_hardly_any(q):
    found = [QFedAvgAggregator(lipschitz=10.0, q=q).aggregate(
        [update(1, [np.ones(2)], start_loss=loss), update(2, [np.full(2, 3.0)])], [np.zeros(2)])[0].tolist() for loss in (0, 1e-10)]
    assert found[0] == found[1]


def test_a_power_beyond_float64_names_the_client_and_q():
    with pytest.raises(UpdateError, match=r"client-7: start_loss=2\.3 .* q=1000"):
        QFedAvgAggregator(lipschitz=10.0, q=1000.0).aggregate([update(7, [np.ones(2)], start_loss=2.3)], [np.zeros(2)])


@pytest.mark.parametrize(("name", "metric"), [("fednova", "normaliser"), ("qfedavg", "start_loss")])
@pytest.mark.parametrize("kind", [np.float32, np.int64, np.array, torch.tensor])
def test_metrics_of_other_libraries_are_numbers(name, metric, kind):
    found = [ALL[name]().aggregate([update(1, [np.ones(2)], **{metric: value})], [np.zeros(2)])[0].tolist()
             for value in (3, kind(3))]
    assert found[0] == found[1]


def test_norm_clipping_clips_each_update():
    """S-AGG-16: [6, 8] and [0.3, 0.4] clipped to norm 1 and averaged are [0.45, 0.6], wherever the start is."""
    for start in (np.zeros(2), np.array([5.0, -3.0])):
        updates = [update(1, [start + np.array([6, 8])]), update(2, [start + np.array([0.3, 0.4])])]
        found = NormClippingAggregator(clip_norm=1.0).aggregate(updates, [start])[0]
        np.testing.assert_allclose(found - start, [0.45, 0.6], rtol=1e-12)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_norm_clipping_bounds_a_huge_update(weighting):
    start, updates = cohort(5)
    updates.append(update(9, [array + 1e30 for array in start], 1))
    found = NormClippingAggregator(clip_norm=0.5, weighting=weighting).aggregate(updates, start)
    counts = [each.num_samples if weighting == "samples" else 1 for each in updates]
    expected = np.zeros(17)
    for each, count in zip(updates, counts, strict=True):
        difference = vector(each.weights) - vector(start)
        expected += count / sum(counts) * difference * min(1, 0.5 / np.linalg.norm(difference))
    np.testing.assert_allclose(vector(found) - vector(start), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("prefix", ["", "control."])
def test_scaffold_moves_model_and_control_variates(prefix):
    draw = np.random.default_rng(6)
    aggregator = ScaffoldAggregator(server_lr=0.5)
    model = Layout([prefix + "w", "mean"], [(4,), (2,)], [np.float64] * 2, buffers=["mean"])
    control = aggregator.shared(model)
    assert control.names == (f"control.{prefix}w",)
    layout = Layout(model.names + control.names, model.shapes + control.shapes, model.dtypes + control.dtypes, ["mean"])
    start, mean = (filled(layout, [draw.normal(size=shape) for shape in layout.shapes]) for _ in range(2))
    begun, given = [array.copy() for array in start], [array.copy() for array in mean]
    aggregator.step(start, mean, RoundStats(1, num_clients=8, num_updates=2, num_samples=5))
    np.testing.assert_allclose(mean[0], begun[0] + 0.5 * (given[0] - begun[0]), rtol=1e-13)
    np.testing.assert_array_equal(mean[1], given[1])
    np.testing.assert_allclose(mean[2], begun[2] + 2 / 8 * (given[2] - begun[2]), rtol=1e-13, atol=1e-15)


def test_scaffold_weighs_by_samples_where_it_is_told():
    updates = [update(1, [np.array([1.0])], 1), update(2, [np.array([5.0])], 3)]
    assert ScaffoldAggregator().aggregate(updates, [np.zeros(1)])[0].tolist() == [3.0]
    assert ScaffoldAggregator(weighting="samples").aggregate(updates, [np.zeros(1)])[0].tolist() == [4.0]


def test_model_and_control_variates_are_computed_in_float64():
    draw, names = np.random.default_rng(12), ["w", "control.w"]
    layout = Layout(names, [(2000,)] * 2, [np.float32] * 2)
    start, mean = (filled(layout, draw.normal(size=(2, 2000))) for _ in range(2))
    begun, given = ([array.astype(np.float64) for array in each] for each in (start, mean))
    ScaffoldAggregator(server_lr=0.3).step(start, mean, RoundStats(1, num_clients=7, num_updates=3, num_samples=5))
    for name, rate, before, after in zip(names, (0.3, 3 / 7), begun, given, strict=True):
        np.testing.assert_array_equal(mean[name], (before + rate * (after - before)).astype(np.float32))


def test_model_and_control_variates_of_bfloat16_are_rounded_once():
    """From 1 to 2 by a share of 2^-8 + 2^-30, which float32 would bring to the middle of two neighbours."""
    layout = Layout(["w", "control.w"], [(1,)] * 2, [ml_dtypes.bfloat16] * 2)
    start, mean = filled(layout, [[1], [1]]), filled(layout, [[2], [2]])
    stats = RoundStats(1, num_clients=2**30, num_updates=2**22 + 1, num_samples=5)
    ScaffoldAggregator(server_lr=2.0**-8 + 2.0**-30).step(start, mean, stats)
    assert [array.tolist() for array in mean] == [[1 + 2.0**-7]] * 2


def test_feddyn_follows_the_paper_over_rounds():
    draw, alpha, num_clients = np.random.default_rng(7), 0.3, 10
    aggregator, x, h = FedDynAggregator(alpha=alpha), draw.normal(size=6), np.zeros(6)
    for number in range(1, 6):
        clients = x + draw.normal(size=(3, 6))
        h = h - alpha / num_clients * (clients - x).sum(axis=0)
        expected = clients.mean(axis=0) - h / alpha
        layout = Layout(["w"], [(6,)], [np.float64])
        mean = filled(layout, [clients.mean(axis=0)])
        aggregator.step(filled(layout, [x]), mean, RoundStats(number, num_clients, 3, 30))
        np.testing.assert_allclose(mean[0], expected, rtol=1e-12, atol=1e-13)
        x = expected


def test_feddyn_counts_clients_alike():
    """Of all clients, h = -alpha (mean - x), so that the result is twice as far as the mean of the clients."""
    updates = [update(1, [np.array([1.0])], 1), update(2, [np.array([4.0])], 99)]
    assert FedDynAggregator(alpha=0.5).aggregate(updates, [np.zeros(1)])[0].tolist() == [5.0]


@pytest.mark.parametrize("name", ALL)
def test_zero_samples(name):
    start, updates = cohort(8)
    idle = update(99, [array + 1000 for array in start], 0, normaliser=None, start_loss=None)
    with pytest.raises(RoundError):
        ALL[name]().aggregate([idle], start)
    if name == "feddyn":  # who took part counts in it
        return
    np.testing.assert_array_equal(ALL[name]().aggregate([*updates, idle], start).buffer,
                                  ALL[name]().aggregate(updates, start).buffer)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_of_clients_changes_no_bit_and_dtypes_stay(name, dtype):
    start, updates = cohort(9, count=9, dtype=dtype)
    expected = ALL[name]().aggregate(updates, start)
    assert expected.layout.dtypes == start.layout.dtypes
    for seed in range(3):
        random.Random(seed).shuffle(updates)
        np.testing.assert_array_equal(ALL[name]().aggregate(updates, start).buffer, expected.buffer)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name, bad):
    start, updates = cohort(10)
    weights = updates[2].weights.copy()
    weights[1][3] = bad
    updates[2] = update(2, weights, 3)
    with pytest.raises(Diverged, match="client-2"):
        ALL[name]().aggregate(updates, start)


@pytest.mark.parametrize("name", ALL)
def test_buffers_and_integers_are_averaged(name):
    """S-AGG-02, S-AGG-08: running means 0 and 10 give 5 (7.5 with 1 and 3 samples), in no optimiser, distance or penalty."""
    counts_alike = name in ("qfedavg", "scaffold", "feddyn")
    layout = Layout(["w", "running_mean", "count"], [(2,), (1,), ()], [np.float32, np.float32, np.int64],
                    buffers=["running_mean", "count"])
    start, aggregator = filled(layout, [[1, 1], [0], 0]), ALL[name]()
    for _ in range(3):
        updates = [update(1, filled(layout, [start[0] + 0.5, [0], 4]), 1),
                   update(2, filled(layout, [start[0] + 0.5, [10], 8]), 3)]
        start = aggregator.aggregate(updates, start)
        assert start[1].tolist() == [5.0 if counts_alike else 7.5]
        assert start[2] == (6 if counts_alike else 7)
    huge, one = ([update(k, filled(layout, [[1.5, 1.5], [k * shift], 4]), 1) for k in (1, 2)] for shift in (1e6, 1))
    begun = filled(layout, [[1, 1], [0], 0])
    np.testing.assert_array_equal(ALL[name]().aggregate(huge, begun)[0], ALL[name]().aggregate(one, begun)[0])


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "feddyn"])
def test_state_survives_a_restart(name):
    start, aggregator = cohort(11, dtype=np.float32)[0], ALL[name]()
    for number in range(4):
        updates = cohort(20 + number, dtype=np.float32)[1]
        again = ALL[name]()
        again.load(aggregator.state())
        after = again.aggregate(updates, start)
        start = aggregator.aggregate(updates, start)
        np.testing.assert_array_equal(after.buffer, start.buffer)
    with pytest.raises(ValueError, match="another model"):
        aggregator.aggregate([update(1, [np.ones(2)])], [np.zeros(2)])
    reshaped = {"w": np.ones(2), "b": np.ones(5)}  # of the same names
    with pytest.raises(ValueError, match="another model"):
        aggregator.aggregate([update(1, reshaped)], reshaped)
    with pytest.raises(ValueError, match="nonsense"):
        ALL[name]().load({"nonsense": {}})


@pytest.mark.parametrize(("dtype", "wanted"), [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)])
def test_memory_is_in_float32_but_for_a_model_of_float64(dtype, wanted):
    aggregator = FedAdamAggregator()
    assert aggregator.state() == {}, "nothing before the first round"
    start, updates = cohort(13, dtype=dtype)
    aggregator.aggregate(updates, start)
    assert {array.dtype for arrays in aggregator.state().values() for array in arrays.values()} == {np.dtype(wanted)}


@pytest.mark.parametrize(("kind", "name"), [(FedAvgMAggregator, "momentum"), (FedAdamAggregator, "beta1"),
                                            (FedAdamAggregator, "beta2"), (FedYogiAggregator, "beta1"),
                                            (FedYogiAggregator, "beta2"), (FedAdagradAggregator, "beta1")])
def test_what_is_remembered_may_be_nothing(kind, name):
    kind(**{name: 0})


@pytest.mark.parametrize(("kind", "name", "values"), [
    (QFedAvgAggregator, "lipschitz", [0, -1, math.inf, math.nan]), (QFedAvgAggregator, "q", [-0.1, math.inf, math.nan]),
    (FedAvgMAggregator, "momentum", [-0.1, 1, math.nan]), (FedAdamAggregator, "beta1", [-0.1, 1, math.nan]),
    (FedAdamAggregator, "beta2", [-0.1, 1]), (FedYogiAggregator, "beta2", [-0.1, 1]),
    (FedAdagradAggregator, "tau", [0, -1, math.nan]), (FedAdamAggregator, "server_lr", [0, -1, math.inf, math.nan]),
    (FedAvgAggregator, "weighting", ["sample", None]), (FedProxAggregator, "weighting", ["sample"]),
    (FedAdamAggregator, "weighting", ["sample"]), (FedDynAggregator, "alpha", [0, -1, math.nan]),
    (FedNovaAggregator, "weighting", ["uniform"]), (NormClippingAggregator, "clip_norm", [0, -1, math.inf, math.nan])])
def test_settings_out_of_range_are_named(kind, name, values):
    others = {"lipschitz": 10.0} if kind is QFedAvgAggregator else {}
    for value in values:
        with pytest.raises(ConfigError, match=name):
            kind(**others | {name: value})


@pytest.mark.parametrize("rule", [QFedAvgAggregator(lipschitz=10.0, q=2.0), NormClippingAggregator(clip_norm=1e-3),
                                  FedNovaAggregator(), FedAdamAggregator()], ids=lambda rule: type(rule).__name__)
def test_integers_take_the_plain_mean_even_where_nobody_calls_them_buffers(rule):
    """S-AGG-08: a counter of 4 and 8 is 6, whatever weight the rule gives to parameters."""
    start = {"w": np.zeros(2, np.float32), "count": np.array(0)}
    updates = [ClientUpdate(f"client_{count}", {"w": np.full(2, count, np.float32), "count": np.array(count)}, 5,
                            {"normaliser": float(count), "start_loss": 1.0 / count}) for count in (4, 8)]
    assert int(rule.aggregate(updates, Weights.of(start))["count"]) == 6


def test_integers_are_rounded_to_even_and_booleans_are_true_above_a_half():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5])
    assert rounded(values, np.dtype(np.int32)).tolist() == [0, 2, 2, 0, -2]
    assert rounded(values, np.dtype(bool)).tolist() == [False, True, True, False, False]


def test_bfloat16_is_rounded_once():
    """float64 to bfloat16 by way of float32 would round 1 + 2^-8 + 2^-30 down, to the even neighbour of the middle."""
    value = np.array([1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-30, 1 + 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-30, np.inf, -0.0])
    assert rounded(value, np.dtype(ml_dtypes.bfloat16)).astype(float).tolist() == [
        1 + 2.0**-6, 1 + 2.0**-7, 1.0, 1 + 2.0**-7, np.inf, -0.0]
