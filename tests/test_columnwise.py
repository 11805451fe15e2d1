"""The columnwise kernels against sorting in Python and sums in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import columnwise, kernels

DTYPES = [np.float32, np.float64]
COUNTS = [1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 100, 161, 300]  # 161 and more rows are sorted column by column


@pytest.fixture(params=kernels.variants())
def variant(request):
    before = kernels.variant()
    kernels.select_variant(request.param)
    yield request.param
    kernels.select_variant(before)


def order(value):
    """Numbers, -0.0 before 0.0, then NaN."""
    return (math.isnan(value), 0.0 if math.isnan(value) else value, math.copysign(1, value))


def mean(values, dtype):
    """Added in float64 from the smallest to the largest, rounded once to `dtype`."""
    if len(values) == 1:
        return dtype(values[0])
    total = values[0]
    for value in values[1:]:
        total += value
    with np.errstate(over="ignore"):
        return dtype(np.float64(total) / len(values))


def median_of(ordered):
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    low, high = ordered[half - 1], ordered[half]
    if math.isfinite(low) and math.isfinite(high):
        return float((Fraction(low) + Fraction(high)) / 2)
    return (low + high) / 2


def around(ordered, count, dtype):
    """What is left when the farther end is taken away again and again, of two as far the larger."""
    centre = median_of(ordered)
    if math.isnan(centre):
        return dtype(np.nan)

    def distance(value):
        return 0.0 if value == centre else math.inf if math.isnan(value) else abs(value - centre)

    left = list(ordered)
    while len(left) > count:
        one_side = left[-1] < centre
        left.pop(-1 if not one_side and distance(left[-1]) >= distance(left[0]) else 0)
    return mean(left, dtype)


def columns(rows):
    return [sorted((float(value) for value in column), key=order) for column in rows.T]


def same(found, wanted):
    found, wanted = np.asarray(found), np.asarray(wanted, found.dtype)
    assert np.array_equal(found, wanted, equal_nan=True), np.flatnonzero((found != wanted) & ~(np.isnan(found) & np.isnan(wanted)))


def check_all(rows):
    dtype = rows.dtype.type
    count = len(rows)
    ordered = columns(rows)
    out = np.empty(rows.shape[1], rows.dtype)
    columnwise.median(rows, out)
    with np.errstate(over="ignore", invalid="ignore"):
        same(out, [dtype(median_of(column)) for column in ordered])
        for trim in {0, 1, count // 4, (count - 1) // 2}:
            if 2 * trim < count:
                columnwise.trimmed_mean(rows, out, trim)
                same(out, [mean(column[trim:count - trim], dtype) for column in ordered])
        for kept in {1, (count + 1) // 2, max(1, count - 1), count}:
            columnwise.mean_around_median(rows, out, kept)
            same(out, [around(column, kept, dtype) for column in ordered])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_random_values(variant, dtype, count):
    generator = np.random.default_rng(count)
    check_all(generator.normal(size=(count, 71)).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 6, 9, 33, 200])
def test_ties_infinities_and_huge_values(variant, dtype, count):
    """S-AGG-15: few different values, so that most are tied; NaN, infinities and the largest numbers among them."""
    generator = np.random.default_rng(count)
    top = np.finfo(dtype).max
    pool = np.array([0.0, -0.0, 1, 1, 2, -1, 0.5, np.inf, -np.inf, np.nan, top, -top, np.finfo(dtype).tiny], dtype)
    check_all(pool[generator.integers(0, len(pool), size=(count, 150))])
    check_all(pool[generator.integers(0, 7, size=(count, 150))])


def test_median_and_trimmed_mean_of_the_case():
    """S-AGG-15: 1, 2, 3, 4 have the median 2.5; 1, 2, 3, 4, 100 without one on either side the mean 3."""
    out = np.empty(1, np.float32)
    columnwise.median(np.array([[1], [2], [3], [4]], np.float32), out)
    assert out == 2.5
    columnwise.trimmed_mean(np.array([[1], [2], [3], [4], [100]], np.float32), out, 1)
    assert out == 3.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_huge_values_do_not_overflow(variant, dtype):
    top = np.finfo(dtype).max
    out = np.empty(1, dtype)
    columnwise.median(np.full((2, 1), top, dtype), out)
    assert out[0] == top


@given(st.lists(st.floats(width=32), min_size=1, max_size=12), st.randoms())
def test_the_order_of_rows_does_not_show(values, chance):
    """Bit for bit, zeros of either sign and NaN included."""
    results = []
    for _ in range(3):
        chance.shuffle(values)
        rows = np.array(values, np.float32)[:, None]
        out = np.empty((3, 1), np.float32)
        columnwise.median(rows, out[0])
        columnwise.trimmed_mean(rows, out[1], (len(values) - 1) // 2)
        columnwise.mean_around_median(rows, out[2], (len(values) + 1) // 2)
        results.append(out.tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 6, 40, 170])
def test_variants_agree(dtype, count):
    rows = np.random.default_rng(3).normal(size=(count, 1000)).astype(dtype)
    before, results = kernels.variant(), []
    for name in kernels.variants():
        kernels.select_variant(name)
        out = np.empty((3, 1000), dtype)
        columnwise.median(rows, out[0])
        columnwise.trimmed_mean(rows, out[1], (count - 1) // 3)
        columnwise.mean_around_median(rows, out[2], (count + 1) // 2)
        results.append(out.tobytes())
    kernels.select_variant(before)
    assert len(set(results)) == 1


def test_one_row_comes_back_as_it_is(variant):
    row = np.array([[-0.0, 0.0, 1e-45, -np.inf, 3.5]], np.float32)
    out = np.empty(5, np.float32)
    columnwise.median(row, out)
    assert out.tobytes() == row.tobytes()


@pytest.mark.parametrize(("rows", "out", "error"), [
    (np.zeros((2, 3), np.float32), np.zeros(3), TypeError),
    (np.zeros((2, 3), np.int32), np.zeros(3, np.int32), TypeError),
    (np.zeros((3, 2), np.float32).T, np.zeros(3, np.float32), TypeError),
    (np.zeros((2, 3), np.float32), np.zeros(4, np.float32), ValueError),
    (np.zeros((0, 3), np.float32), np.zeros(3, np.float32), ValueError),
    (np.zeros(3, np.float32), np.zeros(3, np.float32), ValueError),
    ([[1.0]], np.zeros(1, np.float32), TypeError),
    (np.zeros((2, 3), ">f4"), np.zeros(3, np.float32), TypeError)])
def test_what_is_refused(rows, out, error):
    with pytest.raises(error):
        columnwise.median(rows, out)


def test_what_else_is_refused():
    rows, out = np.zeros((4, 3), np.float32), np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="leave one of 4"):
        columnwise.trimmed_mean(rows, out, 2)
    with pytest.raises(ValueError, match="from 1 to 4"):
        columnwise.mean_around_median(rows, out, 5)
    with pytest.raises(ValueError, match="overlaps"):
        columnwise.median(rows, rows[1])
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        columnwise.median(rows, out)


@pytest.mark.parametrize("dtype", sorted(kernels.DTYPES, key=str), ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 1000, 1024, 2500])
def test_squared_distance(dtype, size):
    """Against exact fractions; the same bits in every variant and at every alignment."""
    generator = np.random.default_rng(size)
    values, start = ((10 * np.abs(generator.normal(size=(2, size)))).astype(dtype))
    exact = float(sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(values, start, strict=True)))
    before, found = kernels.variant(), set()
    for name in kernels.variants():
        kernels.select_variant(name)
        found.add(kernels.squared_distance(values, start))
        memory = np.zeros(size * dtype.itemsize + 3, np.uint8)
        shifted = memory[3:].view(dtype) if size else values
        shifted[...] = values
        found.add(kernels.squared_distance(shifted, start))
    kernels.select_variant(before)
    assert len(found) == 1
    assert found.pop() == pytest.approx(exact, rel=1e-13)
