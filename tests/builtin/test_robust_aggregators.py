"""The robust rules, each against its paper's formula on whole vectors in float64."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from federation.builtin.aggregators.bulyan import BulyanAggregator
from federation.builtin.aggregators.centred_clipping import CentredClippingAggregator
from federation.builtin.aggregators.geometric_median import GeometricMedianAggregator, midst
from federation.builtin.aggregators.krum import KrumAggregator
from federation.builtin.aggregators.krum_scores import krum_scores
from federation.builtin.aggregators.median import MedianAggregator
from federation.builtin.aggregators.multikrum import MultiKrumAggregator
from federation.builtin.aggregators.trimmed_mean import TrimmedMeanAggregator
from federation.core.types import ClientUpdate
from federation.core.weights import Layout, Weights
from federation.errors import ConfigError, Diverged, RoundError

ALL = {
    "median": MedianAggregator, "trimmed_mean": TrimmedMeanAggregator, "krum": KrumAggregator,
    "multikrum": MultiKrumAggregator, "bulyan": BulyanAggregator, "geometric_median": GeometricMedianAggregator,
    "centred_clipping": lambda: CentredClippingAggregator(clip_norm=1.0),
}


def updates_of(rows, counts=None):
    return [ClientUpdate(f"client-{k}", [np.atleast_1d(row)], 1 if counts is None else counts[k])
            for k, row in enumerate(rows)]


def result(aggregator, rows, start=None, counts=None):
    rows = np.asarray(rows)
    begun = np.zeros_like(np.atleast_1d(rows[0])) if start is None else start
    return aggregator.aggregate(updates_of(rows, counts), [begun])[0]


def scores_of(rows, f):
    """By whole vectors and Python loops: the n - f - 2 closest others of each."""
    found = []
    for k, row in enumerate(rows):
        others = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != k)
        found.append(sum(others[:max(1, len(rows) - f - 2)]))
    return found


def test_median_and_trimmed_mean_known_answers():
    """S-AGG-15: 2.5 and 3.0; a cut that leaves nobody is refused; float32 stays float32."""
    found = result(MedianAggregator(), np.array([1, 2, 3, 4], np.float32))
    assert found.tolist() == [2.5]
    assert found.dtype == np.float32
    found = result(TrimmedMeanAggregator(0.2), np.array([100, 1, 2, 3, 4], np.float32))
    assert found.tolist() == [3.0]
    assert found.dtype == np.float32
    for cut in (0.5, 0.7, -0.1, math.nan):
        with pytest.raises(ConfigError, match="trim_fraction"):
            TrimmedMeanAggregator(cut)


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_median_and_trimmed_mean_against_numpy(count):
    rows = np.random.default_rng(count).normal(size=(count, 300))
    rows[count // 2:, ::3] = 1e30
    np.testing.assert_array_equal(result(MedianAggregator(), rows), np.median(rows, axis=0))
    for cut in (0.0, 0.1, 0.2, 0.3, 0.49):
        trim = math.floor(Fraction(str(cut)) * count)
        expected = np.sort(rows, axis=0)[trim:count - trim].mean(axis=0)
        np.testing.assert_allclose(result(TrimmedMeanAggregator(cut), rows), expected, rtol=1e-13)


def test_what_is_trimmed_is_exact_in_the_decimal_number():
    """0.29 of 100 clients are 29, though int(0.29 * 100) is 28."""
    rows = np.random.default_rng(0).normal(size=(100, 5))
    np.testing.assert_allclose(result(TrimmedMeanAggregator(0.29), rows), np.sort(rows, axis=0)[29:71].mean(axis=0), rtol=1e-13)


def test_krum_known_answers():
    """S-AGG-09: 1.2 of 0, 1, 1.2, 1.4, 10; too few are refused with the numbers; of equal scores the first counts."""
    assert result(KrumAggregator(1), [0.0, 1.0, 1.2, 1.4, 10.0]).tolist() == [1.2]
    for rows in ([0.0, 1.0, 10.0], [0.0, 1.0]):
        with pytest.raises(RoundError, match=rf"2f \+ 3 = 5\D.* {len(rows)}\b"):
            result(KrumAggregator(1), rows)
        with pytest.raises(RoundError, match=rf"4f \+ 3 = 7\D.* {len(rows)}\b"):
            result(BulyanAggregator(1), rows)
    # Two pairs as close to each other, and 0 in the middle: every score of the inner pair is the same.
    assert result(KrumAggregator(1), [1.0, -1.0, 1.0, -1.0, 0.0]).tolist() == [1.0]


@pytest.mark.parametrize("count", [1, 2, 9, 40, 150])
def test_distances_are_added_one_after_the_other(count):
    """From the smallest on, whatever the number of rows; from eight on, numpy.sum would begin to add in another order."""
    distances = np.random.default_rng(count).random((count, count))
    wanted = [0.0] * count
    for row in range(count):
        for distance in sorted(np.delete(distances[row], row).tolist())[:max(1, count - 3)]:
            wanted[row] += distance
    assert krum_scores(distances, np.int64(1)).tolist() == wanted
    assert KrumAggregator(np.int64(1)).min_updates == 5


@pytest.mark.parametrize("f", [0, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_krum_family_against_whole_vectors(f, seed):
    draw = np.random.default_rng(seed)
    count = 4 * f + 3 + seed % 3
    start = draw.normal(size=40)
    rows = start + draw.normal(size=(count, 40))
    # Far from each other as well: those that agree would be each other's neighbour in Bulyan's last selections.
    rows[count - f:] *= draw.choice([3.0, 1e15, 1e30]) * np.arange(1, f + 1)[:, None]
    scores = scores_of(rows, f)
    np.testing.assert_array_equal(result(KrumAggregator(f), rows, start), rows[int(np.argmin(scores))])
    best = np.argsort(scores, kind="stable")
    np.testing.assert_allclose(result(MultiKrumAggregator(f), rows, start), rows[best[:count - f]].mean(axis=0),
                               rtol=1e-12, atol=1e-14)
    left, selected = list(range(count)), []
    while len(selected) < count - 2 * f:
        now = scores_of(rows[left], f) if len(left) > 1 else [0]
        selected.append(left.pop(int(np.argmin(now))))
    expected = []
    for column in rows[selected].T:
        middle = float(np.median(column))
        expected.append(np.mean(sorted(column, key=lambda value: (abs(value - middle), value))[:count - 4 * f]))
    np.testing.assert_allclose(result(BulyanAggregator(f), rows, start), expected, rtol=1e-12, atol=1e-14)


def weiszfeld(rows, shares):
    """On whole vectors; from the coordinate-wise median, which no minority moves far."""
    point = np.median(rows, axis=0)
    for _ in range(5000):
        weights = shares / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-12)
        point = weights @ rows / weights.sum()
    return point


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("seed", range(4))
def test_geometric_median_is_optimal(weighting, seed):
    draw = np.random.default_rng(seed)
    start = draw.normal(size=30)
    rows, counts = start + draw.normal(size=(9, 30)), draw.integers(1, 4, size=9).tolist()
    shares = np.array(counts if weighting == "samples" else [1] * 9, np.float64)
    found = result(GeometricMedianAggregator(weighting), rows, start, counts)
    units = (rows - found) / np.linalg.norm(rows - found, axis=1)[:, None]
    assert np.linalg.norm(shares @ units) < 1e-6 * shares.sum()
    np.testing.assert_allclose(found, weiszfeld(rows, shares), atol=1e-6)


@pytest.mark.parametrize("far", [1e3, 1e10, 1e30])
@pytest.mark.parametrize("count", [3, 5, 9])
def test_a_minority_moves_the_geometric_median_no_further_than_its_honest_scale(far, count):
    rows = np.random.default_rng(count).normal(size=(count, 20))
    outliers = (count - 1) // 2
    rows[:outliers] = far * np.ones(20)
    honest = rows[outliers:]
    widest = np.linalg.norm(honest, axis=1).max()
    # Lopuhaa and Rousseeuw 1991, theorem 2.2: 2 (1 - share) / (1 - 2 share) times the largest honest norm.
    share = outliers / count
    found = result(GeometricMedianAggregator(), rows)
    assert np.linalg.norm(found) <= 2 * (1 - share) / (1 - 2 * share) * widest


@pytest.mark.parametrize("settings", [{"smoothing": 5.0}, {"tolerance": 1e-2}])
def test_the_geometric_median_has_no_unit(settings):
    """Smoothing and tolerance are shares of the scale, so that a power of two changes no bit of the mantissas."""
    rows, rule = np.random.default_rng(3).normal(size=(5, 12)), GeometricMedianAggregator(**settings)
    np.testing.assert_array_equal(result(rule, rows * 2.0**20), result(rule, rows) * 2.0**20)


@pytest.mark.parametrize("seed", range(8))
def test_the_midst_is_where_more_than_half_of_the_weight_is_closest(seed):
    """Tried for every row and every distance."""
    draw = np.random.default_rng(seed)
    points, counts = draw.integers(0, 6, size=(7, 2)), draw.integers(1, 9, size=7).tolist()
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    radii = [min(radius for radius in row if 2 * sum(np.array(counts)[row <= radius]) > sum(counts)) for row in distances]
    assert midst(distances, counts) == (radii.index(min(radii)), min(radii))


def test_geometric_median_of_equal_rows_is_the_row():
    row = np.random.default_rng(1).normal(size=10)
    np.testing.assert_array_equal(result(GeometricMedianAggregator(), [row] * 4), row)
    np.testing.assert_array_equal(result(GeometricMedianAggregator(), [row, row, row + 1, row, row - 1e9]), row)
    np.testing.assert_array_equal(result(GeometricMedianAggregator(), [row]), row)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("far", [1.0, 1e30])
def test_centred_clipping_against_whole_vectors(iterations, far):
    draw = np.random.default_rng(iterations)
    start = draw.normal(size=25)
    rows = start + draw.normal(size=(6, 25))
    rows[0] += far
    point = start.copy()
    for _ in range(iterations):
        differences = rows - point
        scales = np.minimum(1, 2.0 / np.linalg.norm(differences, axis=1))
        point = point + (scales[:, None] * differences).mean(axis=0)
    np.testing.assert_allclose(result(CentredClippingAggregator(2.0, iterations), rows, start), point, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_idle_clients_and_what_is_not_finite(name):
    draw = np.random.default_rng(2)
    rows = draw.normal(size=(8, 12))
    expected = result(ALL[name](), rows[:7], None, [3] * 7)
    np.testing.assert_array_equal(result(ALL[name](), rows, None, [3] * 7 + [0]), expected)
    with pytest.raises(RoundError):
        result(ALL[name](), rows, None, [0] * 8)
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = rows.copy()
        spoiled[4, 7] = bad
        with pytest.raises(Diverged, match="client-4"):
            result(ALL[name](), spoiled)


@pytest.mark.parametrize("name", ALL)
def test_order_of_clients_changes_no_bit(name):
    draw = np.random.default_rng(3)
    updates = updates_of(draw.normal(size=(12, 50)).astype(np.float32), draw.integers(1, 9, size=12).tolist())
    start = [np.zeros(50, np.float32)]
    expected = ALL[name]().aggregate(updates, start)
    for _ in range(3):
        shuffled = [updates[index] for index in draw.permutation(12)]
        np.testing.assert_array_equal(ALL[name]().aggregate(shuffled, start).buffer, expected.buffer)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes_stay_and_buffers_choose_nothing(name, dtype):
    """S-AGG-02: buffers and integers are aggregated, but take no part in a distance."""
    layout = Layout(["w", "mean", "count", "flag"], [(6,), (2,), (), ()], [dtype, np.float32, np.int64, np.bool_],
                    buffers=["mean"])
    draw = np.random.default_rng(4)
    given = [draw.normal(size=6) for _ in range(7)]
    found = []
    for shift in (1.0, 1e9):
        updates = []
        for k, row in enumerate(given):
            weights = Weights.zeros(layout)
            weights[0][...] = row.astype(dtype)
            weights[1][...] = k * shift
            weights[2][...] = 4
            weights[3][...] = True
            updates.append(ClientUpdate(f"client-{k}", weights, 1))
        # A start at the integer's and the flag's value: coefficients need not add up to one.
        start = Weights.zeros(layout)
        start[2][...], start[3][...] = 4, True
        found.append(ALL[name]().aggregate(updates, start))
    assert found[0].layout.dtypes == layout.dtypes
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][2] == 4
    assert found[0][3]
    assert found[0][1][0] > 0


@pytest.mark.parametrize(("kind", "name", "values"), [
    (KrumAggregator, "num_byzantine", [-1]), (BulyanAggregator, "num_byzantine", [-1]),
    (MultiKrumAggregator, "num_selected", [0, -1]), (GeometricMedianAggregator, "max_iterations", [0, -1, 2.5]),
    (GeometricMedianAggregator, "smoothing", [0, -1, math.nan]), (GeometricMedianAggregator, "tolerance", [-1, 1]),
    (GeometricMedianAggregator, "weighting", ["sample"]), (CentredClippingAggregator, "iterations", [0, 2.5]),
    (CentredClippingAggregator, "clip_norm", [0, -1, math.inf, math.nan])])
def test_settings_out_of_range_are_named(kind, name, values):
    others = {"clip_norm": 1.0} if kind is CentredClippingAggregator else {}
    for value in values:
        with pytest.raises(ConfigError, match=name):
            kind(**others | {name: value})
