"""Sums of updates against fractions: the same integers in every order and grouping, and means rounded once."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.core.updates import Contribution, ExactSum, FloatSum, UpdateSum, make_sum
from federation.core.weights import Layout, Weights, aligned_empty
from federation.errors import Diverged, RoundError, UpdateError

BF16 = np.dtype(ml_dtypes.bfloat16)
REDUCTIONS = ["exact", "float32", "float64"]
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)

Update = tuple[list[np.ndarray], int]


def sum_of(start: Weights, updates: list[Update], reduction: str = "exact", **numbers: int) -> UpdateSum:
    plan = {"total_samples": max(1, sum(n for _, n in updates)), "cohort_size": max(1, len(updates))} | numbers
    total = make_sum(reduction, start.layout, start, **plan)
    for i, (arrays, n) in enumerate(updates):
        total.add(f"client_{i}", arrays, n)
    return total


def mean(start: Weights, updates: list[Update], reduction: str = "exact", **numbers: int) -> Weights:
    out = Weights.zeros(start.layout)
    sum_of(start, updates, reduction, **numbers).mean_into(out)
    return out


def reduced(parts: list[UpdateSum]) -> UpdateSum:
    """What a reduction over ranks does: the same number of limbs everywhere, their sums at the root."""
    root = parts[0]
    count = max(len(part.limbs) for part in parts)
    for part in parts:
        part.ensure_limbs(count)
    for limb, *others in zip(*(part.limbs for part in parts), strict=True):
        for other in others:
            limb += other
    root.num_samples = sum(part.num_samples for part in parts)
    root.divisor = sum(part.divisor for part in parts)
    return root


def zeros(*arrays: np.ndarray) -> Weights:
    return Weights.zeros(Layout.of(list(arrays)))


# ---- values


@every_reduction
def test_samples_weigh_and_clients_without_samples_do_not(reduction):
    """S-AGG-04: n=10 [1, 2], n=30 [3, 6], with and without n=0 [100, 100]."""
    updates = [([np.array([1, 2], np.float32)], 10), ([np.array([3, 6], np.float32)], 30)]
    start = zeros(np.zeros(2, np.float32))
    assert mean(start, updates, reduction)[0].tolist() == [2.5, 5.0]
    assert mean(start, [*updates, ([np.array([100, 100], np.float32)], 0)], reduction)[0].tolist() == [2.5, 5.0]


@every_reduction
def test_counters_stay_integers_and_are_rounded_to_nearest(reduction):
    """S-AGG-01: bn.num_batches_tracked 7 and 8 with 1 and 3 samples; running_mean [0, 4] and [4, 8]."""
    for start_value in (0, 7, 8, 10**6, 2**53):
        start = Weights.of({"bn.num_batches_tracked": np.array(start_value),
                            "bn.running_mean": np.zeros(2, np.float32)})
        updates = [([np.array(start_value + 7), np.array([0, 4], np.float32)], 1),
                   ([np.array(start_value + 8), np.array([4, 8], np.float32)], 3)]
        result = mean(start, updates, reduction)
        assert result["bn.num_batches_tracked"].dtype == np.int64
        assert result["bn.num_batches_tracked"].shape == ()
        assert result["bn.num_batches_tracked"] == start_value + 8
        assert result["bn.running_mean"].tolist() == [3.0, 7.0]


@every_reduction
@pytest.mark.parametrize("factor", [1, 1000, 10**9])
def test_half_precision_sums_neither_overflow_nor_stall(reduction, factor):
    """S-AGG-05: float16 with 40000 and 20000 samples; 512 times 1.0 in bfloat16."""
    updates = [([np.array([3.0], np.float16)], 40000 * factor), ([np.array([1.0], np.float16)], 20000 * factor)]
    assert mean(zeros(np.zeros(1, np.float16)), updates, reduction)[0][0] == np.float16(7 / 3)
    result = mean(zeros(np.zeros(1, BF16)), [([np.ones(1, BF16)], 1)] * 512, reduction)
    assert result[0].dtype == BF16
    assert float(result[0][0]) == 1.0


@every_reduction
def test_dtypes_without_a_sum_of_their_own(reduction):
    """S-COMM-04: bfloat16, bool and '>f8'."""
    start = Weights.of({"b": np.zeros(2, BF16), "mask": np.array([True, False, False]), "big": np.zeros(3, ">f8")})
    updates = [([np.array(pair, BF16), np.array([True, False, pair[0] > 1]), np.array([0, 1, 2], ">f8")], 1)
               for pair in ([1.0, 2.0], [3.0, 4.0])]
    result = mean(start, updates, reduction)
    assert result["b"].dtype == BF16
    assert result["b"].tolist() == [2.0, 3.0]
    assert result["mask"].dtype == bool
    assert result["mask"].tolist() == [True, False, False]  # true above 1/2
    assert result["big"].tolist() == [0.0, 1.0, 2.0]


@every_reduction
@pytest.mark.parametrize(("server", "clients"), [
    ("float64", ("float32", "float64")), ("float32", ("float64", "float16")), ("float32", (BF16, "int64")),
    ("float16", ("float64", "float32")), (BF16, ("float16", "bool")), ("int64", ("int32", "uint8")),
    ("int32", ("int64", "bool"))])
def test_clients_of_other_widths_are_averaged_in_the_servers_dtype(reduction, server, clients):
    """S-COMM-02: ones in two dtypes have the mean 1 in the server's dtype."""
    for start in (zeros(np.zeros(4, server)), Weights.of([np.ones(4, server)])):
        result = mean(start, [([np.ones(4, dtype)], 1) for dtype in clients], reduction)
        assert result[0].dtype == np.dtype(server)
        assert result[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("rearrange", [
    np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a[:, ::-1], lambda a: a.astype(">f4"),
    lambda a: np.asfortranarray(a.astype(np.float64)), lambda a: torch.from_numpy(a.T.copy()).t()])
@every_reduction
def test_memory_order_makes_no_difference(reduction, rearrange):
    """S-COMM-01: one client in Fortran order or strided, the other in C order."""
    values = np.array([[0, 1, 2], [3, 4, 5]], np.float32)
    other = rearrange(values)
    expected = (values + np.asarray(other).astype(np.float32)) / 2
    assert np.array_equal(mean(zeros(values), [([other], 1), ([values], 1)], reduction)[0], expected)


@every_reduction
def test_scalars_and_empty_arrays(reduction):
    """S-COMM-03: (), (0, 4), (1,) and a mask."""
    arrays = [np.array(7), np.zeros((0, 4), np.float32), np.array([0.1], np.float32), np.array([True, False, True])]
    result = mean(zeros(*arrays), [(arrays, 5)], reduction)
    for array, expected in zip(result, arrays, strict=True):
        assert array.shape == expected.shape
        assert array.dtype == expected.dtype
        assert array.tobytes() == expected.tobytes()


@every_reduction
def test_updates_are_read_and_left_alone(reduction):
    """S-AGG-06: 3, 6 and -1 have the mean 8/3, and still read 3, 6 and -1."""
    states = [np.array([value], np.float32) for value in (3, 6, -1)]
    start = Weights.of([np.array([2.0], np.float32)])
    result = mean(start, [([state], 1) for state in states], reduction)
    assert result[0][0] == np.float32(8 / 3)
    assert [state[0] for state in states] == [3, 6, -1]
    assert start[0][0] == 2.0


@pytest.mark.parametrize("numbers", [(1e8, 1, -1e8), (1e30, 1, -1e30), (3e38, 0.7, -3e38), (1e12, -1e6, -3)])
def test_the_mean_does_not_depend_on_the_order_of_arrival(numbers):
    """S-AGG-14: 1e8, 1, -1e8 in all six orders give 1/3."""
    start = zeros(np.zeros(1, np.float32))
    clients = [np.array([number], np.float32) for number in numbers]
    expected = np.float32(sum(Fraction(float(client[0])) for client in clients) / 3)
    results = {mean(start, [([client], 1) for client in order])[0].tobytes()
               for order in itertools.permutations(clients)}
    assert results == {expected.tobytes()}
    if numbers == (1e8, 1, -1e8):
        assert expected == np.float32(1 / 3)


ordinary = st.floats(-100, 100, width=32)
wild = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), start_values=st.lists(ordinary, min_size=1, max_size=5))
def test_any_order_and_any_split_over_ranks_gives_the_same_integers(data, start_values):
    size = len(start_values)
    vectors = st.lists(ordinary | ordinary | wild, min_size=size, max_size=size)
    clients = data.draw(st.lists(st.tuples(vectors, st.integers(0, 10**6)), min_size=1, max_size=8))
    updates = [([np.array(vector, np.float32), np.array(vector[:1])], n) for vector, n in clients]
    start = Weights.of([np.array(start_values, np.float32), np.array(start_values[:1])])
    plan = {"total_samples": max(1, sum(n for _, n in updates)), "cohort_size": len(updates)}
    whole = sum_of(start, updates, **plan)
    integers = whole_integers(whole)
    if not whole.num_samples:
        return
    result = Weights.zeros(start.layout)
    whole.mean_into(result)

    order = data.draw(st.permutations(updates))
    ranks = data.draw(st.integers(1, 4))
    places = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(updates), max_size=len(updates)))
    parts = [sum_of(start, [u for u, place in zip(order, places, strict=True) if place == rank], **plan)
             for rank in range(ranks)]
    root = reduced(data.draw(st.permutations(parts)))
    assert whole_integers(root) == integers
    again = Weights.zeros(start.layout)
    root.mean_into(again)
    assert again.sha256() == result.sha256()


def whole_values(total: UpdateSum) -> list[float] | list[int]:
    return total.limbs[0].tolist() if isinstance(total, FloatSum) else whole_integers(total)


def whole_integers(total: UpdateSum) -> list[int]:
    return [sum(int(limb[i]) << (40 * level) for level, limb in enumerate(total.limbs))
            for i in range(total.layout.num_slots)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", ["float16", BF16, "float32"], ids=["float16", "bfloat16", "float32"])
def test_the_mean_is_the_true_one_rounded_once(dtype, data):
    dtype = np.dtype(dtype)
    start_value = data.draw(st.floats(-4, 4, width=16))
    clients = data.draw(st.lists(st.tuples(st.floats(-1000, 1000, width=16), st.integers(1, 10**5)), min_size=1,
                                 max_size=12))
    updates = [([np.array([value]).astype(dtype)], n) for value, n in clients]
    start = Weights.of([np.array([start_value]).astype(dtype)])
    result = Fraction(float(mean(start, updates)[0][0]))
    true = sum(Fraction(float(arrays[0][0])) * n for arrays, n in updates) / sum(n for _, n in updates)
    nearest = np.array([float(true)]).astype(dtype)
    spacing = Fraction(float(np.spacing(np.abs(nearest).astype(np.float32)).astype(np.float64)[0]))
    if dtype != np.float32:
        bits, lowest = (10, -14) if dtype == np.float16 else (7, -126)
        exponent = max(math.frexp(float(nearest[0]))[1] - 1, lowest) if nearest[0] else lowest
        spacing = Fraction(2) ** (exponent - bits)
    # The fixed point adds at most its own resolution to half a unit in the last place.
    resolution = Fraction(len(updates) * 2, 2**50) * max(abs(Fraction(start_value)), Fraction(1, 1024))
    assert abs(result - true) <= spacing / 2 + resolution


@settings(max_examples=100, deadline=None)
@given(start_value=st.integers(-(2**40), 2**40),
       clients=st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(1, 1000)), min_size=1, max_size=8))
def test_means_of_integers_are_exact_before_they_are_rounded(start_value, clients):
    updates = [([np.array([value])], n) for value, n in clients]
    total = sum(n for _, n in clients)
    true = Fraction(sum(value * n for value, n in clients), total)
    result = int(mean(Weights.of([np.array([start_value])]), updates)[0][0])
    if (2 * true).denominator == 1 or abs(true - math.floor(true) - Fraction(1, 2)) > Fraction(1, 1000):
        assert result == round(true)
    else:
        assert abs(result - true) <= Fraction(501, 1000)


def test_integers_of_another_kind_are_compared_as_integers():
    """In float64, both would be 2**60."""
    assert mean(Weights.of([np.array([2**60 + 1])]), [([np.array([2**60 + 3], np.uint64)], 1)])[0].tolist() == [2**60 + 3]


@pytest.mark.parametrize("peak", [0.0, 2.0**-10, 0.75, 1.0, 3.0])
@pytest.mark.parametrize("planned", [1, 4, 5])
def test_the_integers_are_those_of_the_formula(peak, planned):
    """C and B of the module's docstring: all ranks and versions have to agree on them."""
    start = Weights.of([np.array([-peak, 0.0]), np.array(7)])
    total = sum_of(start, [([np.array([-peak, 0.125]), np.array(4)], 3)], total_samples=planned, cohort_size=1)
    c = next(2**k for k in range(9) if 2**k >= planned)
    b = next(2**k for k in range(99) if 2**k >= 2**10 * peak)
    values = total.limbs[0].tolist()
    assert values[:2] == [0, Fraction(1, 8) * 3 * Fraction(2**61, b * c)]
    assert values[8] == -3 * 3 * Fraction(2**41, c)


def test_many_small_updates_of_float32_are_rounded_correctly():
    rng = np.random.default_rng(0)
    start = Weights.of([(rng.normal(size=500) * 0.05).astype(np.float32)])
    updates = [([(start[0] + rng.normal(size=500) * 0.01).astype(np.float32)], int(rng.integers(1, 500)))
               for _ in range(60)]
    result = mean(start, updates)[0]
    total = sum(n for _, n in updates)
    for i in range(500):
        true = sum(Fraction(float(arrays[0][i])) * n for arrays, n in updates) / total
        error = abs(Fraction(float(result[i])) - true) / Fraction(float(np.spacing(np.abs(result[i]))))
        assert error <= Fraction(501, 1000)


@every_reduction
def test_a_mean_of_equal_updates_is_that_update(reduction):
    rng = np.random.default_rng(1)
    values = rng.normal(size=1000).astype(np.float32)
    for start in (zeros(values), Weights.of([values]), Weights.of([values * 3])):
        result = mean(start, [([values], n) for n in (1, 7, 1000, 12345)], reduction)
        assert np.allclose(result[0], values, rtol=1e-6 if reduction == "float32" else 2.0**-23, atol=0)
        if reduction == "exact":
            assert np.array_equal(result[0], values)


@pytest.mark.parametrize(("reduction", "tolerance"), [("float32", 1e-6), ("float64", 1e-15)])
def test_float_sums_are_as_precise_as_their_name(reduction, tolerance):
    rng = np.random.default_rng(2)
    start = Weights.of([rng.normal(size=200)])
    updates = [([rng.normal(size=200)], int(rng.integers(1, 100))) for _ in range(10)]
    expected = sum(arrays[0] * n for arrays, n in updates) / sum(n for _, n in updates)
    assert np.allclose(mean(start, updates, reduction)[0], expected, rtol=0, atol=tolerance)
    parts = [sum_of(start, updates[:4], reduction, total_samples=1000, cohort_size=10),
             sum_of(start, updates[4:], reduction, total_samples=1000, cohort_size=10)]
    out = Weights.zeros(start.layout)
    reduced(parts).mean_into(out)
    assert np.allclose(out[0], expected, rtol=0, atol=tolerance)


# ---- refusals


@every_reduction
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", BF16])
def test_a_diverged_client_leaves_no_trace(reduction, bad, dtype):
    """S-AGG-10: [1, 1], [3, 3] and [NaN, 2] have the mean [2, 2]; the client and the parameter are named."""
    start = Weights.of({"a": np.zeros(2, dtype), "b": np.zeros(2, dtype), "n": np.array(3)})
    total = make_sum(reduction, start.layout, start, total_samples=3, cohort_size=3)
    total.add("client_0", [np.array([1, 1], dtype), np.array([1, 1], dtype), np.array(5)], 1)
    before = whole_values(total)
    with pytest.raises(Diverged, match="client_1") as error:
        total.add("client_1", [np.array([0.5, 0.5], dtype), np.array([bad, 2], dtype), np.array(9)], 1)
    assert (error.value.client_id, error.value.parameter) == ("client_1", "b")
    assert whole_values(total) == before
    assert (total.num_samples, total.count) == (1, 1)
    total.add("client_2", [np.array([3, 3], dtype), np.array([3, 3], dtype), np.array(5)], 1)
    out = Weights.zeros(start.layout)
    total.mean_into(out)
    assert [array.tolist() for array in out] == [[2, 2], [2, 2], 5]


def test_a_diverged_client_takes_back_what_went_to_further_limbs():
    """S-AGG-10: a huge first array, then a NaN."""
    start = zeros(np.zeros(3, np.float32), np.zeros(1, np.float32))
    total = make_sum("exact", start.layout, start, total_samples=2, cohort_size=2)
    with pytest.raises(Diverged):
        total.add("client_0", [np.array([1e30, 1, -2], np.float32), np.array([math.nan], np.float32)], 1)
    assert not any(limb.any() for limb in total.limbs)
    total.add("client_1", [np.array([1, 2, 3], np.float32), np.array([4], np.float32)], 2)
    out = Weights.zeros(start.layout)
    total.mean_into(out)
    assert [array.tolist() for array in out] == [[1, 2, 3], [4]]


@every_reduction
@pytest.mark.parametrize("peak", [1.0, 1e6, 1e30], ids=["near", "further limbs", "yet further limbs"])
def test_a_model_in_one_buffer_counts_as_its_arrays_do(reduction, peak):
    start = Weights.of([np.ones((3, 5), np.float32), np.ones(7, BF16), np.full(4, 3, np.int64)])
    update = start.copy()
    update[0][1, 2] = peak
    update[2][:] = 5
    whole, parts = (sum_of(start, [(given, 3), (start, 2)], reduction) for given in (update, list(update)))
    assert len(whole.limbs) == len(parts.limbs)
    assert all((one == other).all() for one, other in zip(whole.limbs, parts.limbs, strict=True))
    assert any(limb.any() for limb in whole.limbs)


@every_reduction
def test_a_model_in_another_order_counts_by_name(reduction):
    update = Weights.of({"b": np.float32([0.75, 1]), "a": np.float32([0.25, 0.5])})
    start = Weights.of({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    assert [array.tolist() for array in mean(start, [(update, 5)], reduction)] == [[0.25, 0.5], [0.75, 1]]


@pytest.mark.parametrize("counts", [Contribution(1e300, 1.0), Contribution(-1e300, 1.0), Contribution(1.0, 1e300),
                                    Contribution(math.inf, 1.0), Contribution(math.nan, 1.0)])
@pytest.mark.parametrize("reduction", ["exact", "float64"])
def test_a_weight_that_leaves_no_scale_is_refused(counts, reduction):
    """A rule that divides by what a client reports gets there; it was a bare OverflowError."""
    start = Weights.of([np.zeros(2, np.float32)])
    total = make_sum(reduction, start.layout, start, total_samples=1, cohort_size=1)
    with pytest.raises(UpdateError, match=r"c: its weight in the mean, .* must be below 8\.45e\+270"):
        total.add("c", [np.ones(2, np.float32)], 1, counts)


@every_reduction
def test_no_samples_is_an_error_and_changes_nothing(reduction):
    """S-AGG-03: all clients report 0 samples."""
    start = Weights.of([np.array([5, 1], np.float32)])
    out = start.copy()
    total = sum_of(start, [([np.array([2, 8], np.float32)], 0)] * 2, reduction)
    with pytest.raises(RoundError, match=r"total number of samples is 0 \(2 updates"):
        total.mean_into(out)
    total = make_sum(reduction, start.layout, start, total_samples=1, cohort_size=1)
    total.add("client_0", [np.array([2, 8], np.float32)], 1, Contribution(1.0, -1.0))
    with pytest.raises(RoundError, match=r"adds up to -1\.0"):
        total.mean_into(out)
    assert out[0].tolist() == [5, 1]


@every_reduction
@pytest.mark.parametrize("count", [True, False, 1.0, 2.5, -1, 2**48 + 1, "3", None, np.float64(3), np.bool_(True),
                                   math.nan, np.array([1, 2])])
def test_numbers_of_samples_must_be_integers_from_zero(reduction, count):
    """S-AGG-04: what cannot be a weight is refused by client and value."""
    start = zeros(np.zeros(2, np.float32))
    total = make_sum(reduction, start.layout, start, total_samples=3, cohort_size=3)
    with pytest.raises(UpdateError, match="client_7: num_samples must be"):
        total.add("client_7", [np.ones(2, np.float32)], count)
    assert (total.count, total.num_samples, total.limbs[0].any()) == (0, 0, False)
    for good in (np.int32(3), np.uint64(4), 2**48, 0):
        total.reset(start)
        total.add("client_7", [np.ones(2, np.float32)], good)
        assert total.num_samples == good


@every_reduction
@pytest.mark.parametrize("bad", [
    {"w": np.ones((1, 3), np.float32), "b": np.ones(3, np.float32)}, {"w": np.ones((3, 1), np.float32)},
    {"w": np.ones((3, 1), np.float32), "b": np.ones(2, np.float32)},
    {"w": np.ones((3, 1), np.float32), "b": np.ones(3, np.float32), "extra": np.ones(1)},
    {"w": np.ones((3, 1), np.float32), "b": np.ones(3, np.complex64)},
    {"w": np.ones((3, 1), np.float32), "b": np.array([1, 1, 1e39])}, [np.ones(3)], np.ones((2, 3)), None])
def test_updates_that_do_not_fit_are_refused_before_anything_is_added(reduction, bad):
    """S-AGG-11, S-COMM-08: shapes, names, counts, dtypes and ranges."""
    start = Weights.of({"w": np.zeros((3, 1), np.float32), "b": np.zeros(3, np.float32)})
    total = make_sum(reduction, start.layout, start, total_samples=3, cohort_size=3)
    with pytest.raises(UpdateError, match="client_2"):
        total.add("client_2", bad, 1)
    assert not total.limbs[0].any()
    assert total.count == 0


def test_a_value_too_far_for_an_exact_sum_is_refused_with_its_magnitude():
    start = zeros(np.zeros(2))
    total = make_sum("exact", start.layout, start, total_samples=2, cohort_size=2)
    with pytest.raises(UpdateError, match=r"client_0: parameter '0' holds a value of magnitude 1e\+200"):
        total.add("client_0", [np.array([1e200, 1])], 1)
    assert not any(limb.any() for limb in total.limbs)
    total.add("client_0", [np.array([1e45, 1])], 1)
    total.add("client_1", [np.array([-1e45, 2])], 1)
    out = Weights.zeros(start.layout)
    total.mean_into(out)
    assert out[0].tolist() == [0.0, 1.5]


def test_a_value_beyond_float32_has_no_sum_in_it():
    start = zeros(np.zeros(2))
    total = make_sum("float32", start.layout, start, total_samples=1, cohort_size=1)
    with pytest.raises(UpdateError, match=r"client_0: parameter '0' holds a value of magnitude 1e\+200"):
        total.add("client_0", [np.array([1e200, 1])], 1)
    assert not total.limbs[0].any()


@every_reduction
@pytest.mark.parametrize(("begun", "values"), [(-2**62, [2**62, 2**61]), (2**62, [-2**62, -2**63]),
                                               (np.uint64(0), [2**63, 2**62])])
def test_integers_that_are_far_apart(reduction, begun, values):
    """Further than a signed integer of 64 bits goes."""
    start = Weights.of([np.array([begun])])
    updates = [([np.array([value], start[0].dtype)], 1) for value in values]
    assert mean(start, updates, reduction)[0].tolist() == [sum(values) // 2]


@every_reduction
def test_more_updates_than_planned_are_refused(reduction):
    start = zeros(np.zeros(2, np.float32))
    total = sum_of(start, [([np.ones(2, np.float32)], 1)] * 2, reduction)
    with pytest.raises(UpdateError, match="client_9: 2 updates were added already"):
        total.add("client_9", [np.ones(2, np.float32)], 1)
    for numbers in ({"total_samples": 0, "cohort_size": 1}, {"total_samples": 1, "cohort_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1, not 0"):
            make_sum(reduction, start.layout, start, **numbers)


def test_more_samples_than_planned_keep_the_mean_right():
    start = zeros(np.zeros(1, np.float32))
    updates = [([np.array([0.9], np.float32)], 2**40), ([np.array([-0.3], np.float32)], 2**41)]
    expected = np.float32((Fraction(float(np.float32(0.9))) - 2 * Fraction(float(np.float32(0.3)))) / 3)
    assert mean(start, updates, total_samples=1)[0][0] == pytest.approx(expected, abs=1e-15)
    # Each fits into 64 bits, as one of so many may; all of them together would not.
    assert mean(start, [([np.array([0.9], np.float32)], 1)] * 8, total_samples=1)[0][0] == np.float32(0.9)


def test_the_largest_cohort_cannot_overflow():
    start = Weights.of([np.ones(1, np.float32)])
    total = ExactSum(start.layout, start, total_samples=1, cohort_size=2**40)
    for i in range(64):  # each counts far more than planned, and goes to further limbs by itself
        total.add(f"client_{i}", [np.array([1e3], np.float32)], 2**48)
    out = Weights.zeros(start.layout)
    total.mean_into(out)
    assert out[0][0] == 1e3
    assert all(abs(int(limb[0])) <= 2**61 for limb in total.limbs)


@every_reduction
def test_global_weights_that_are_not_finite_are_refused(reduction):
    for bad in (math.nan, math.inf):
        start = Weights.of({"w": np.array([1.0, bad])})
        with pytest.raises(UpdateError, match="global weights hold NaN or infinity in 'w'"):
            make_sum(reduction, start.layout, start, total_samples=1, cohort_size=1)
    start = Weights.of({"w": np.array([1.0, math.nextafter(2.0**900, math.inf)])})
    with pytest.raises(UpdateError, match=r"hold 8\.45e\+270 in 'w', beyond"):
        make_sum(reduction, start.layout, start, total_samples=1, cohort_size=1)


def test_layouts_of_start_and_mean_must_be_the_sums():
    start, other = zeros(np.zeros(2)), zeros(np.zeros(3))
    with pytest.raises(ValueError, match="the sum is for"):
        ExactSum(other.layout, start, 1, 1)
    total = ExactSum(start.layout, start, 1, 1)
    total.add("c", [np.ones(2)], 1)
    with pytest.raises(ValueError, match="the sum is for"):
        total.mean_into(other)
    with pytest.raises(ValueError, match="float32 or float64, not float16"):
        FloatSum(start.layout, start, 1, 1, dtype="float16")


# ---- memory


@every_reduction
def test_rounds_reuse_the_same_memory(reduction):
    """S-LIFE-07: nothing is allocated after the first rounds, wide updates included."""
    taken: list[int] = []

    def allocate(nbytes: int) -> np.ndarray:
        taken.append(nbytes)
        memory = aligned_empty(nbytes)
        memory.fill(255)  # what is given need not be zero
        return memory

    start = zeros(np.zeros(100, np.float32))
    total = make_sum(reduction, start.layout, start, total_samples=2, cohort_size=2, allocate=allocate)
    out = Weights.zeros(start.layout)
    for round in range(20):
        size = 1e20 if round % 3 == 1 else 1.0
        total.reset(start)
        assert (len(total.limbs), total.count, total.num_samples) == (1, 0, 0)
        for sign in (1, -1):
            total.add(f"client_{sign}", [np.full(100, sign * size + (1 if size == 1.0 else 0), np.float32)], 1)
        total.mean_into(out)
        assert out[0].tolist() == [0.0 if size > 1 else 1.0] * 100
    slots = start.layout.num_slots
    assert taken == ([8 * slots] * 3 if reduction == "exact" else [slots * (4 if reduction == "float32" else 8)])


def test_reset_takes_new_weights_and_numbers():
    start = Weights.of([np.array([1.0], np.float32)])
    total = sum_of(start, [([np.array([2.0], np.float32)], 3)])
    start[0][0] = 1e6
    total.reset(start, total_samples=10, cohort_size=2)
    total.add("a", [np.array([1e6 + 1], np.float32)], 4)
    total.add("b", [np.array([1e6 + 2], np.float32)], 4)
    total.mean_into(start)  # in place
    assert start[0][0] == np.float32(1e6 + 1.5)


@every_reduction
@pytest.mark.parametrize("first", ["a whole model", "arrays", "one that diverges", "one that is far away", "nothing"])
def test_a_round_on_used_memory_begins_from_zero(reduction, first):
    """Whatever comes first in it; with peaks that are told, or looked for."""
    start = Weights.of({"w": np.linspace(-1, 1, 40, dtype=np.float32).reshape(4, 10), "b": np.ones(3, np.float32)})
    near, far, bad = (start.copy() for _ in range(3))
    near[0][1, 1], far[1][2], bad[1][1] = 1.25, 1e9, math.nan
    used = sum_of(start, [(far, 3), (near, 2)], reduction, total_samples=1000, cohort_size=20)
    new = make_sum(reduction, start.layout, start, total_samples=5, cohort_size=2)
    used.reset(start, 5, 2, start.peaks())
    for total in (used, new):
        if first == "one that diverges":
            with pytest.raises(Diverged):
                total.add("client_0", bad, 3)
        elif first != "nothing":
            total.add("client_0", {"a whole model": near, "arrays": list(near), "one that is far away": far}[first], 3)
        if first != "nothing":
            total.add("client_1", near, 2)
    assert [limb.tolist() for limb in used.limbs] == [limb.tolist() for limb in new.limbs]
    assert any(limb.any() for limb in new.limbs) == (first != "nothing")


@every_reduction
@pytest.mark.parametrize("own", [[], [([np.array([3.0, 1.0])], 1)]], ids=["nothing of its own", "an update of its own"])
def test_sums_of_others_are_taken_in(reduction, own):
    """On used memory."""
    start, plan = Weights.of([np.array([1.0, 2.0])]), {"total_samples": 8, "cohort_size": 8}
    updates = [([np.array([2.0, 4.0])], 2), ([np.array([0.5, 0.0])], 3)]
    total = sum_of(start, [([np.array([9.0, 9.0])], 1)], reduction, **plan)
    total.reset(start)
    for arrays, count in own:
        total.add("own", arrays, count)
    total.take_in([sum_of(start, [update], reduction, **plan).limbs[0] for update in updates])
    assert total.limbs[0].tolist() == sum_of(start, [*own, *updates], reduction, **plan).limbs[0].tolist()


def test_the_peaks_of_weights():
    weights = Weights.of({"w": np.array([1, -2.5, 0], np.float32), "none": np.empty(0), "i": np.array([-7, 3])})
    assert weights.peaks() == [2.5, 0.0, 7.0]
    for bad in (math.nan, math.inf, -math.inf):
        weights[0][2] = bad
        assert weights.peaks() == [math.inf, 0.0, 7.0]


def test_limbs_can_be_asked_for_and_change_nothing():
    start = Weights.of([np.array([0.3, -7.0], np.float32)])
    updates = [([np.array([0.1, 5.0], np.float32)], 3), ([np.array([0.7, -2.0], np.float32)], 4)]
    digests = set()
    for count in range(6):
        total = sum_of(start, updates)
        total.ensure_limbs(count)
        assert len(total.limbs) == max(1, count)
        out = Weights.zeros(start.layout)
        total.mean_into(out)
        digests.add(out.sha256())
    assert len(digests) == 1
    with pytest.raises(ValueError, match="1 to 5 limbs, not 6"):
        total.ensure_limbs(6)
    with pytest.raises(ValueError, match="1 vector, not 2"):
        sum_of(start, updates, "float32").ensure_limbs(2)
