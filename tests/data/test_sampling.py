"""Cohorts: their size and who is in them."""

from __future__ import annotations

import itertools
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.sampling import (
    SAMPLERS,
    cohort_size_of,
    draw_cohort,
    over_selected,
    round_robin,
    uniform,
    weighted,
)
from federation.errors import ConfigError

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("fraction", "num_clients", "size"), [
    (0.29, 100, 29), (0.1, 5, 1), (1.0, 7, 7), (0.57, 100, 57), (0.3, 10, 3), (0.999, 1000, 999), (1, 3, 3),
    (0.001, 10, 1), (Decimal("0.29"), 100, 29), (Fraction(1, 3), 9, 3), (np.float32(0.29), 100, 29), (1e-3, 4000, 4),
])
def test_cohort_size_is_exact_in_the_decimal_number(fraction: float, num_clients: int, size: int) -> None:
    """S-PART-07: 0.29 of 100 is 29, though int(0.29 * 100) is 28."""
    assert cohort_size_of(fraction, num_clients) == size


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.1, 1.0000001, float("nan"), float("inf"), True, "0.3", None, 1j])
def test_fractions_outside_0_to_1_are_refused(fraction: object) -> None:
    """S-PART-07: 0.0 and 1.5 are refused, by name and value."""
    with pytest.raises(ConfigError, match=r"fraction: .* above 0 and at most 1"):
        cohort_size_of(fraction, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_clients", [0, -1, 2.0, True])
def test_num_clients_must_be_a_count(num_clients: object) -> None:
    with pytest.raises(ConfigError, match="num_clients"):
        cohort_size_of(0.5, num_clients)  # type: ignore[arg-type]


@given(hundredths=st.integers(1, 100), num_clients=st.integers(1, 10_000))
def test_cohort_size_agrees_with_integer_arithmetic(hundredths: int, num_clients: int) -> None:
    """S-PART-07: for every percentage, the floor of the product of whole numbers."""
    assert cohort_size_of(hundredths / 100, num_clients) == max(1, hundredths * num_clients // 100)


@given(seed=st.integers(0, 2**63), round=st.integers(0, 10**6), num_clients=st.integers(1, 10**6), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_cohort_is_distinct_sorted_and_fixed_by_seed_and_round(seed: int, round: int, num_clients: int,
                                                                 data: st.DataObject) -> None:
    """S-PART-07: the chosen ids."""
    size = data.draw(st.integers(1, min(num_clients, 2000)))
    cohort = draw_cohort(seed, round, num_clients, size)
    assert cohort.dtype == np.int64
    assert len(cohort) == size
    assert (np.diff(cohort) > 0).all()
    assert cohort[0] >= 0
    assert cohort[-1] < num_clients
    np.testing.assert_array_equal(cohort, draw_cohort(seed, round, num_clients, size))


def test_rounds_and_seeds_draw_different_cohorts() -> None:
    cohorts = {tuple(draw_cohort(seed, round, 1000, 10)) for seed in range(5) for round in range(20)}
    assert len(cohorts) == 100


@pytest.mark.parametrize(("num_clients", "size"), [(5, 2), (12, 2)])  # the two ways to draw
def test_every_cohort_is_equally_likely(num_clients: int, size: int) -> None:
    counts: dict[tuple[int, ...], int] = {}
    for round in range(6600):
        cohort = tuple(draw_cohort(7, round, num_clients, size).tolist())
        counts[cohort] = counts.get(cohort, 0) + 1
    assert len(counts) == num_clients * (num_clients - 1) // 2
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_clients_without_samples_are_not_drawn() -> None:
    """S-PART-05: a client with 0 samples is not selected; where too few are left, all of those are the cohort."""
    eligible = np.array([1, 4, 5, 8])
    drawn = {int(client) for round in range(50) for client in draw_cohort(1, round, 10, 2, eligible)}
    assert drawn == {1, 4, 5, 8}
    assert draw_cohort(1, 0, 10, 6, eligible).tolist() == [1, 4, 5, 8]
    with pytest.raises(ConfigError, match="none of the 10 clients has samples"):
        draw_cohort(1, 0, 10, 2, np.empty(0, np.int64))


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_cohort_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"cohort_size: {size} clients cannot be drawn from 10"):
        draw_cohort(0, 0, 10, size)


def test_memory_follows_the_cohort_not_the_clients() -> None:
    import tracemalloc

    draw_cohort(0, 0, 10**9, 1000)  # whatever is allocated once
    tracemalloc.start()
    try:
        draw_cohort(0, 1, 10**9, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


# -- samplers --------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 5) | st.sampled_from([10**6, 2**48]), min_size=1, max_size=60).filter(any)


@pytest.mark.parametrize("name", SAMPLERS)
@given(seed=st.integers(0, 2**63 - 1), round=st.integers(1, 10**6), sizes=SIZES, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_sampler_draws_distinct_clients_with_samples(name: str, seed: int, round: int, sizes: list[int],
                                                       data: st.DataObject) -> None:
    """S-PART-05, S-PART-07: never a client twice, never one with 0 samples, the same again; all where few are left."""
    size = data.draw(st.integers(1, len(sizes)))
    drawn = SAMPLERS[name](seed, round, np.array(sizes), size)
    assert drawn.dtype == np.int64
    assert len(drawn) == min(size, np.count_nonzero(sizes))
    assert (np.diff(drawn) > 0).all()
    assert all(sizes[index] for index in drawn)
    SAMPLERS[name](seed, round + 1, np.array(sizes), size)  # what is drawn in between makes no difference
    np.testing.assert_array_equal(drawn, SAMPLERS[name](seed, round, np.array(sizes), size))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_refuse_what_cannot_be_drawn(name: str) -> None:
    for size in (0, -1, 4):
        with pytest.raises(ConfigError, match=f"cohort_size: {size} clients cannot be drawn from 3"):
            SAMPLERS[name](0, 1, np.array([1, 2, 0]), size)
    with pytest.raises(ConfigError, match="none of the 3 clients has samples"):
        SAMPLERS[name](0, 1, np.zeros(3, np.int64), 1)


@pytest.mark.parametrize(("name", "expected"), [
    ("uniform", [[4, 50, 54, 59, 74], [13, 15, 17, 54, 93], [33, 48, 66, 75, 89]]),
    ("weighted", [[5, 50, 54, 59, 74], [13, 16, 18, 54, 93], [34, 48, 67, 75, 89]]),
    ("round_robin", [[29, 31, 40, 54, 71], [37, 61, 67, 81, 88], [30, 45, 62, 72, 90]]),
])
def test_cohorts_stay_what_they_are(name: str, expected: list[list[int]]) -> None:
    """Runs of earlier versions and of other platforms can be repeated."""
    sizes = np.arange(100) % 7 * 3
    assert [SAMPLERS[name](11, round, sizes, 5).tolist() for round in (1, 2, 1000)] == expected


def test_weighted_cohorts_stay_what_they_are_where_one_client_has_most() -> None:
    """Its repeats leave places that are filled by key, among those with samples who are left."""
    sizes = np.array([0, 1, 2, 0, 10**6, 3, 0, 4, 5])
    assert [weighted(11, round, sizes, 4).tolist() for round in range(1, 7)] == [
        [2, 4, 5, 8], [4, 5, 7, 8], [2, 4, 5, 8], [2, 4, 5, 7], [4, 5, 7, 8], [1, 2, 4, 7]]


def test_the_two_ways_to_draw_change_where_they_did() -> None:
    """A quarter of the clients is still drawn one by one."""
    assert [draw_cohort(11, round, 8, 2).tolist() for round in (1, 2, 3)] == [[0, 4], [1, 7], [3, 4]]


def test_uniform_is_the_plain_draw() -> None:
    np.testing.assert_array_equal(uniform(3, 4, np.ones(50, np.int64), 9), draw_cohort(3, 4, 50, 9))
    np.testing.assert_array_equal(uniform(3, 4, np.array([0, 1, 1, 0, 1, 1]), 2),
                                  draw_cohort(3, 4, 6, 2, np.array([1, 2, 4, 5])))


def _probabilities(sizes: list[int], count: int) -> dict[tuple[int, ...], float]:
    """Of every set, exactly: one client after the other, with probability by samples among those that are left."""
    found: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(range(len(sizes)), count):
        left, chance = Fraction(sum(sizes)), Fraction(1)
        for client in order:
            chance *= sizes[client] / left
            left -= sizes[client]
        found[tuple(sorted(order))] += chance  # type: ignore[assignment]
    return {clients: float(chance) for clients, chance in found.items()}


@pytest.mark.parametrize(("sizes", "count"), [
    ([1, 2, 3, 4, 10], 1), ([1, 2, 3, 4, 10], 2), ([1, 2, 3, 4, 10], 3), ([5, 5, 5, 5], 2),
    ([1, 2, 3, 1000], 2),  # the large client comes again and again, so that the others are drawn by their keys
    ([1, 2, 3, 10**12], 3),
])
def test_weighted_draws_have_the_exact_distribution(sizes: list[int], count: int) -> None:
    expected = _probabilities(sizes, count)
    assert sum(expected.values()) == pytest.approx(1)
    rounds = 3000
    seen = Counter(tuple(weighted(5, round, np.array(sizes), count).tolist()) for round in range(rounds))
    likely = {clients: chance for clients, chance in expected.items() if chance * rounds >= 5}
    observed = [seen[clients] for clients in likely]
    rest = rounds - sum(observed)
    assert rest <= 20 + 3 * rounds * (1 - sum(likely.values()))
    wanted = np.array(list(likely.values()))
    assert stats.chisquare(observed, wanted / wanted.sum() * sum(observed)).pvalue > 1e-3


def test_weighted_draws_with_equal_sizes_reach_every_client_equally() -> None:
    counts = np.zeros(30)
    for round in range(2000):
        counts[weighted(2, round, np.full(30, 7), 6)] += 1
    # 400 times each on average, with a standard deviation of sqrt(2000 * 0.2 * 0.8) = 18
    assert abs(counts - 400).max() < 5 * 18


@given(seed=st.integers(0, 99), first=st.integers(1, 10**9), rounds=st.integers(1, 30), sizes=SIZES, data=st.data())
@settings(max_examples=100, deadline=None)
def test_round_robin_serves_everybody_before_anybody_again(seed: int, first: int, rounds: int, sizes: list[int],
                                                           data: st.DataObject) -> None:
    """Over any consecutive rounds, no client is drawn more than once oftener than another."""
    size = data.draw(st.integers(1, np.count_nonzero(sizes)))
    counts = np.zeros(len(sizes), int)
    for round in range(first, first + rounds):
        counts[round_robin(seed, round, np.array(sizes), size)] += 1
    served = counts[np.array(sizes) > 0]
    assert served.sum() == rounds * size
    assert served.max() - served.min() <= 1


def test_turns_are_shuffled_by_the_seed() -> None:
    orders = {tuple(tuple(round_robin(seed, round, np.ones(12), 3).tolist()) for round in range(1, 5))
              for seed in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize(("cohort_size", "factor", "drawn"), [
    (10, 1.3, 13), (50, 1.1, 55), (100, 1.1, 110), (8, 1.3, 11), (1, 1.0, 1), (1, 1.01, 2), (7, 2, 14),
    (3, Decimal("1.1"), 4), (3, Fraction(4, 3), 4),
])
def test_over_selection_is_exact_in_the_decimal_number(cohort_size: int, factor: float, drawn: int) -> None:
    """1.1 times 50 is 55, though ceil(1.1 * 50) is 56."""
    assert over_selected(cohort_size, factor) == drawn


@pytest.mark.parametrize("factor", [0.99, 0, -1, float("nan"), float("inf"), True, "1.3", None])
def test_over_selection_below_1_is_refused(factor: object) -> None:
    with pytest.raises(ConfigError, match=r"over_select: .* is not a number of at least 1"):
        over_selected(10, factor)  # type: ignore[arg-type]
