"""Cohorts: their size and who is in them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.sampling import cohort_size_of, draw_cohort
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
