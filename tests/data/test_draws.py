"""The draws of the data layer, against NumPy's functions and the distributions' formulas."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from federation.data import draws
from federation.errors import DataError

stats = pytest.importorskip("scipy.stats")


def philox(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key))


def ulps(found: np.ndarray, right: np.ndarray) -> float:
    return float((np.abs(found - right) / np.spacing(np.abs(right))).max())


def test_log_is_within_4_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    wide = np.ldexp(rng.uniform(0.5, 1, 50_000), rng.integers(-1000, 1000, 50_000))
    near_one = 1 + rng.uniform(-1e-4, 1e-4, 50_000)
    for x in (wide, near_one, np.array([1e-300, 0.5, 0.7071067811865475, 0.7071067811865476, 2.0])):
        assert ulps(draws.log(x), np.log(x)) <= 4
    assert draws.log(np.array([1.0]))[0] == 0


def test_exp_is_within_4_units_in_the_last_place() -> None:
    x = np.random.default_rng(0).uniform(-699, 50, 100_000)
    assert ulps(draws.exp(x), np.exp(x)) <= 4
    assert draws.exp(np.array([0.0, -1e9, -np.inf])).tolist() == [1.0, 0.0, 0.0]


def test_single_numbers_have_the_bits_of_arrays() -> None:
    rng = np.random.default_rng(2)
    near_1 = 1 + 1e-9 * rng.random(100)
    x = np.concatenate([np.exp(rng.uniform(-700, 700, 3000)), rng.random(3000), near_1, [1.0, 5e-324]])
    assert [draws.log_of(value) for value in x.tolist()] == draws.log(x).tolist()
    y = np.concatenate([rng.uniform(-720, 720, 3000), rng.uniform(-2, 2, 3000), [0.0, 700.0, -700.0, -700.1, 800.0]])
    assert [draws.exp_of(value) for value in y.tolist()] == draws.exp(y).tolist()


def test_uniforms_are_open_and_uniform() -> None:
    u = draws.uniforms(philox(1), 100_000)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_below_reaches_every_value_equally_often() -> None:
    counts = np.bincount(draws.below(philox(2), 7, 70_000), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_normals_are_normal() -> None:
    for count in (1, 2, 99_999):
        assert draws.normals(philox(3), count).shape == (count,)
    z = draws.normals(philox(3), 100_000)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.015


@pytest.mark.parametrize("shape", [0.05, 0.3, 1.0, 2.5, 40.0, 1e5])
def test_gamma_variates_follow_the_gamma_distribution(shape: float) -> None:
    logs = draws._log_gammas(philox(4), np.full(40_000, shape))
    assert stats.kstest(np.exp(logs), stats.gamma(shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize("concentration", [[0.1, 0.1, 0.1, 0.1], [0.5, 1.0, 4.0], [30.0, 10.0]])
def test_dirichlet_proportions_have_the_moments_of_the_formula(concentration: list[float]) -> None:
    a = np.array(concentration)
    rows = draws.dirichlet_rows(philox(5), a, 60_000)
    total = a.sum()
    mean = a / total
    covariance = (np.diag(mean) - np.outer(mean, mean)) / (total + 1)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(rows.mean(axis=0), mean, atol=5 * np.sqrt(covariance.diagonal().max() / len(rows)))
    np.testing.assert_allclose(np.cov(rows.T), covariance, atol=0.02 * covariance.max())


def test_dirichlet_marginals_are_beta() -> None:
    rows = draws.dirichlet_rows(philox(6), np.full(5, 0.3), 20_000)
    edges = np.linspace(0, 1, 11)
    expected = np.diff(stats.beta(0.3, 1.2).cdf(edges)) * len(rows)
    assert stats.chisquare(np.histogram(rows[:, 2], edges)[0], expected).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-9, 1e-4, 1e9])
def test_extreme_concentrations_give_proportions(alpha: float) -> None:
    rows = draws.dirichlet_rows(philox(7), np.full(6, alpha), 200)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-12)
    if alpha < 1:  # one entry has it all, and each is that one about as often as any other
        winners = np.bincount(rows.argmax(axis=1), minlength=6)
        assert rows.max(axis=1).min() > 0.9 or alpha == 1e-4
        assert stats.chisquare(winners).pvalue > 1e-3
    else:
        np.testing.assert_allclose(rows, 1 / 6, rtol=1e-3)


def test_every_permutation_is_equally_likely() -> None:
    rng = philox(8)
    seen = {order: 0 for order in itertools.permutations(range(4))}
    for _ in range(4800):
        seen[tuple(draws.shuffled(rng, 4).tolist())] += 1
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, draws._KEYS, draws._KEYS + 1, 3 * draws._KEYS - 1])
def test_shuffled_is_a_permutation(count: int) -> None:
    order = draws.shuffled(philox(9), count)
    assert order.dtype == np.int64
    assert np.sort(order).tolist() == list(range(count))


def test_shuffled_by_groups_items_in_random_order() -> None:
    group = np.array([2, 0, 2, 2, 4, 0])
    items = np.array([5, 3, 1, 0, 2, 4])
    orders = set()
    for key in range(100):
        order, offsets = draws.shuffled_by(philox(key), group, 5, items)
        assert offsets.tolist() == [0, 2, 2, 5, 5, 6]
        groups = [set(order[a:b].tolist()) for a, b in itertools.pairwise(offsets)]
        assert groups == [{3, 4}, set(), {0, 1, 5}, set(), {2}]
        orders.add(tuple(order))
    assert len(orders) == 12  # 2! x 3!, all of them met


@pytest.mark.parametrize("count", [7, 2 * draws._KEYS + 5])
def test_groups_that_are_not_asked_for_are_empty_and_the_others_as_ever(count: int) -> None:
    group, only = np.random.default_rng(0).integers(0, 4, count), np.array([True, False, True, False])
    everything, ends = draws.shuffled_by(philox(5), group, 4)
    order, offsets = draws.shuffled_by(philox(5), group, 4, only=only)
    sizes = np.bincount(group, minlength=4)
    assert np.diff(offsets).tolist() == [sizes[0], 0, sizes[2], 0]
    for wanted in (0, 2):
        np.testing.assert_array_equal(order[offsets[wanted]:offsets[wanted + 1]], everything[ends[wanted]:ends[wanted + 1]])


def test_more_groups_than_keys_can_tell_apart_are_refused() -> None:
    with pytest.raises(DataError, match="too many"):
        draws.shuffled_by(philox(0), np.zeros(1 << 10, np.int64), 1 << 50)


def test_global_generators_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].copy()
    draws.shuffled(philox(1), 10)
    draws.normals(philox(1), 10)
    draws.dirichlet_rows(philox(1), np.ones(3), 3)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_draws_are_pinned() -> None:
    """A change of these figures would change every run that anyone wants to repeat."""
    assert draws.shuffled(philox(2024), 8).tolist() == PINNED_ORDER
    assert [value.hex() for value in draws.normals(philox(2024), 3)] == PINNED_NORMALS
    assert [value.hex() for value in draws.dirichlet_rows(philox(2024), np.full(3, 0.3), 1)[0]] == PINNED_PROPORTIONS


PINNED_ORDER = [2, 0, 5, 6, 1, 4, 3, 7]
PINNED_NORMALS = ["-0x1.5f1fb7844d0bfp-1", "0x1.ba3b8c7065a75p-1", "0x1.5b42fa2738b0bp+0"]
PINNED_PROPORTIONS = ["0x1.3c25bc0ef2654p-4", "0x1.d87b0c43c0ba5p-1", "0x1.e1d307c83291ep-20"]
