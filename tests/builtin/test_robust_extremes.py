"""The robust rules where arithmetic is hard: far from the start, close to each other, out of all proportion, and ties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from federation.assemble import assemble
from federation.builtin import (
    BulyanAggregator,
    CentredClippingAggregator,
    FLTrustAggregator,
    GeometricMedianAggregator,
    KrumAggregator,
    MedianAggregator,
    MultiKrumAggregator,
    TrimmedMeanAggregator,
)
from federation.config import load_config_from_dict
from federation.core.gram import Geometry, GramSum
from federation.core.types import ClientUpdate
from federation.errors import ConfigError, RoundError, UpdateError

SELECTING = [MedianAggregator(), TrimmedMeanAggregator(0.3), KrumAggregator(1), MultiKrumAggregator(1), BulyanAggregator(1)]


def result(aggregator, rows, start=None, ids=None, counts=None):
    ids = ids or [f"client_{k}" for k in range(len(rows))]
    updates = [ClientUpdate(name, [np.atleast_1d(row)], 1 if counts is None else counts[k])
               for k, (name, row) in enumerate(zip(ids, rows, strict=True))]
    return aggregator.aggregate(updates, None if start is None else [np.atleast_1d(start)])[0]


def exact_scores(rows, f):
    exact = [[Fraction(float(value)) for value in row] for row in rows]
    found = []
    for k, row in enumerate(exact):
        squares = sorted(sum((a - b) ** 2 for a, b in zip(row, other, strict=True))
                         for j, other in enumerate(exact) if j != k)
        found.append(sum(squares[:max(1, len(rows) - f - 2)]))
    return found


def exact_krum(rows, f):
    scores = exact_scores(rows, f)
    return rows[scores.index(min(scores))]


def test_krum_far_from_the_start():
    """S-AGG-09: scores 2.44, 0.20, 0.08, 0.20, 151.4, and the same at any distance from the start."""
    values = np.array([0, 1, 1.2, 1.4, 10])
    assert np.allclose([float(score) for score in exact_scores(values[:, None], 1)], [2.44, 0.20, 0.08, 0.20, 151.4])
    for dtype, offsets in ((np.float32, (0, -300, 1e4)), (np.float64, (0, 1e6, -1e9, 1e13))):
        for offset in offsets:
            rows = (values + offset).astype(dtype)
            for start in (None, dtype(0), dtype(offset), dtype(-offset)):
                assert result(KrumAggregator(1), rows, start) == rows[2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(8))
def test_selection_is_exact_at_every_scale(dtype, seed):
    """Spreads down to the last bits of the values; attackers far away, together, or next to an honest client."""
    draw = np.random.default_rng(seed)
    f = 1 + seed % 2
    count = 2 * f + 3 + int(draw.integers(3))
    for spread in (1.0, 1e-3, 1e-6, 1e-12):
        start = 10 * draw.normal(size=6)
        honest = (start + 10 * draw.normal(size=6) + spread * draw.normal(size=(count - f, 6))).astype(dtype)
        for attack in ([1e30] * 6, 1e5 * draw.normal(size=6), honest[0], np.nextafter(honest[-1], dtype(np.inf))):
            rows = np.vstack([np.tile(attack, (f, 1)).astype(dtype), honest])
            scores = exact_scores(rows, f)
            ordered = sorted(scores)
            if ordered[1] - ordered[0] <= ordered[0] / 10**9 and ordered[0]:
                continue  # a tie in all but the last digits
            for begin in (None, start.astype(dtype)):
                assert np.array_equal(result(KrumAggregator(f), rows, begin), exact_krum(rows, f))


@pytest.mark.parametrize("aggregator", SELECTING, ids=lambda aggregator: type(aggregator).__name__)
@pytest.mark.parametrize("huge", [1e60, 1e200, 1.7e308])
def test_no_finite_update_is_too_much_for_a_rule_that_selects(aggregator, huge):
    """float64 squares overflow here."""
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(9, 8))
    rows[4] = huge * np.sign(rows[4])
    assert np.abs(result(aggregator, rows, np.zeros(8))).max() <= np.abs(np.delete(rows, 4, axis=0)).max()


@pytest.mark.parametrize("aggregator", [GeometricMedianAggregator(), CentredClippingAggregator(1.0), FLTrustAggregator("client_0")],
                         ids=["geometric_median", "centred_clipping", "fltrust"])
def test_rules_that_weigh_by_distance_name_who_is_too_far(aggregator):
    rows = np.random.default_rng(1).normal(size=(5, 8))
    for huge in (1e30, 1e45):
        rows[3] = huge
        assert np.abs(result(aggregator, rows, np.zeros(8))).max() < 10
    for huge in (1e60, 1e200, 1.7e308):
        rows[3] = huge
        with pytest.raises(UpdateError, match=r"client_3.*too far"):
            result(aggregator, rows, np.zeros(8))


def test_ties_go_to_the_lowest_client_id():
    """S-AGG-09: in whatever order updates are given; client_9 is below client_10."""
    rows = np.array([0, 1, 2, 3, 4], np.float32)  # scores 5, 2, 2, 2, 5
    ids = ["client_8", "client_11", "client_9", "client_10", "client_12"]
    draw = np.random.default_rng(0)
    for order in [np.arange(5), *(draw.permutation(5) for _ in range(10))]:
        assert result(KrumAggregator(1), rows[order], ids=[ids[k] for k in order]) == 2.0
    names = ["b", "c", "d", "a", "e"]
    assert result(KrumAggregator(1), rows, ids=names) == 3.0


@pytest.mark.parametrize("aggregator", [*SELECTING, GeometricMedianAggregator(), CentredClippingAggregator(1.0)],
                         ids=lambda aggregator: type(aggregator).__name__)
def test_the_order_in_which_updates_are_given_makes_no_difference(aggregator):
    """To the last bit of float64, ties included."""
    draw = np.random.default_rng(2)
    rows = draw.normal(size=(11, 40))
    rows[7] = rows[2]
    ids, counts = [f"client_{k}" for k in range(11)], draw.integers(1, 9, size=11).tolist()
    expected = result(aggregator, rows, None, ids, counts)
    for _ in range(5):
        order = draw.permutation(11)
        found = result(aggregator, rows[order], None, [ids[k] for k in order], [counts[k] for k in order])
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("f", [0, 1, 3])
def test_f_at_its_limit(f):
    """S-AGG-09: one client fewer is an error that gives the numbers."""
    rows = np.arange(4 * f + 3, dtype=np.float32)
    for aggregator, least in ((KrumAggregator(f), 2 * f + 3), (MultiKrumAggregator(f), 2 * f + 3),
                              (BulyanAggregator(f), 4 * f + 3)):
        assert aggregator.min_updates == least
        assert 0 <= result(aggregator, rows[:least]) <= least - 1
        formula = "4f" if isinstance(aggregator, BulyanAggregator) else "2f"
        for count in range(1, least):
            with pytest.raises(RoundError, match=rf"num_byzantine={f} needs n >= {formula} \+ 3 = {least} updates, and "
                                                 rf"there are {count}$"):
                result(aggregator, rows[:count])


def test_numbers_of_clients_are_whole():
    for value in (1.0, True, "1", -1):
        with pytest.raises(ConfigError, match="num_byzantine"):
            KrumAggregator(value)
    with pytest.raises(RoundError, match="num_selected=5 is more than n - f = 4 of the 5 updates"):
        result(MultiKrumAggregator(1, num_selected=5), np.arange(5.0))
    rows = np.array([0, 1, 1.25, 1.5, 10])
    assert result(MultiKrumAggregator(1, num_selected=1), rows) == 1.25
    assert result(MultiKrumAggregator(1, num_selected=4), rows) == rows[:4].mean()


@pytest.mark.parametrize(("aggregator", "settings", "words"), [
    ("krum", {"num_byzantine": 2}, "a cohort of 6 clients: .* needs n >= 2f"),
    ("bulyan", {}, "a cohort of 6 clients: .* needs n >= 4f"),
    ("multikrum", {"num_selected": 6}, "a cohort of 6 clients: num_selected=6 is more than n - f = 5 of the 6")])
def test_a_cohort_that_is_always_too_small_is_refused_before_it_trains(aggregator, settings, words):
    """A wrong configuration, and no round that fails after its training."""
    config = load_config_from_dict({"components": {"aggregator": f"federated.aggregator.{aggregator}"},
                                    "aggregator_config": settings, "trainer_config": {"cohort_size": 6}})
    with pytest.raises(ConfigError, match=words):
        assemble(config)


# ---- the geometric median


def reference(rows, shares):
    """Weiszfeld's algorithm in extended precision, from the coordinate-wise median."""
    wide = rows.astype(np.longdouble)
    point = np.median(wide, axis=0)
    for _ in range(20_000):
        weights = shares / np.maximum(np.sqrt(((wide - point) ** 2).sum(axis=1)), np.longdouble(1e-15))
        point, before = (weights[:, None] * wide).sum(axis=0) / weights.sum(), point
        if np.array_equal(point, before):
            break
    return point


@pytest.mark.parametrize("distance", [1.0, 1e4, 1e7])
@pytest.mark.parametrize("far", [1.0, 1e5, 1e30])
def test_geometric_median_of_clients_that_moved_far_together(distance, far):
    """Against extended precision: as exact as the distance from the start leaves it."""
    draw = np.random.default_rng(7)
    rows = distance * draw.normal(size=20) + draw.normal(size=(9, 20))
    rows[:4] = far * draw.normal(size=20)
    found = result(GeometricMedianAggregator(), rows, np.zeros(20))
    assert np.linalg.norm((found - reference(rows, np.ones(9))).astype(np.float64)) < 1e-6


def test_most_of_the_samples_decide():
    rows = np.array([[0.0, 0], [4, 0], [0, 4]])
    assert result(GeometricMedianAggregator(), rows, counts=[5, 2, 2]).tolist() == pytest.approx([0, 0], abs=1e-4)
    equal = np.array([[1.0, 2], [1, 2], [9, 9], [-7, 0]])
    assert result(GeometricMedianAggregator(), equal, counts=[2, 2, 2, 1]).tolist() == [1, 2]
    # Half is not most: any point between is a median, and nobody is preferred.
    assert result(GeometricMedianAggregator(), np.array([[1.0, 1], [3, 3]])).tolist() == [2, 2]
    # Fermat's point of a triangle with 120 degrees and more is that corner; else all sides are seen under 120 degrees.
    assert result(GeometricMedianAggregator(), np.array([[0.0, 0], [1, 0.1], [-1, 0.1]])) == pytest.approx(0, abs=1e-5)
    corner = result(GeometricMedianAggregator(), np.array([[0.0, 0], [1, 0], [0.5, 3**0.5 / 2]]))
    assert corner == pytest.approx(np.array([0.5, 3**0.5 / 6]))


# ---- inner products and distances


def test_products_around_a_row_against_fractions():
    draw = np.random.default_rng(3)
    rows = 1e6 * draw.normal(size=8) + draw.normal(size=(5, 8))
    rows[4] = 1e30 * draw.normal(size=8)
    geometry = geometry_of(rows)
    exact = [[Fraction(value) for value in row] for row in rows]
    for row in range(4):
        around = [[a - b for a, b in zip(other, exact[row], strict=True)] for other in exact]
        found = geometry.products_around(row)
        for j, left in enumerate(around):
            for k, right in enumerate(around):
                wanted = sum(a * b for a, b in zip(left, right, strict=True))
                lengths = [float(sum(a * a for a in side)) ** 0.5 for side in (left, right)]
                # Between those near each other nothing is lost; a far one is seen from the start, 1e6 away.
                near = 4 not in (j, k)
                unit = (lengths[0] + 10) * (lengths[1] + 10) if near else (lengths[0] + 1e7) * (lengths[1] + 1e7)
                assert abs(found[j, k] - float(wanted)) <= 1e-14 * unit


def test_distances_keep_their_digits():
    draw = np.random.default_rng(4)
    rows = 1e8 * draw.normal(size=30) + draw.normal(size=(6, 30)) * 10.0 ** -np.arange(0, 12, 2)[:, None]
    rows[5] = rows[2]
    found = geometry_of(rows).squared_distances
    for j, left in enumerate(rows):
        for k, right in enumerate(rows):
            wanted = float(sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(left, right, strict=True)))
            assert found[j, k] == pytest.approx(wanted, rel=1e-11, abs=0)
    assert found[2, 5] == 0


def geometry_of(rows) -> Geometry:
    total = GramSum(len(rows))
    total.add(rows, np.zeros_like(rows[0]))
    return total.result()
