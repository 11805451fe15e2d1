"""Inner products against fractions, however the columns are shared out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from federation.core.gram import GramSum


def chunks_of(draw, num_rows, number):
    return [(draw.normal(size=(num_rows, 40)) * 10.0 ** draw.integers(-8, 9), draw.normal(size=40)) for _ in range(number)]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_any_split_of_the_chunks_gives_the_same_bits(num_parts):
    draw = np.random.default_rng(num_parts)
    chunks = chunks_of(draw, 5, 12)
    whole = GramSum(5)
    for block, start in chunks:
        whole.add(block, start)
    parts = [GramSum(5) for _ in range(num_parts)]
    for block, start in [chunks[index] for index in draw.permutation(12)]:
        parts[draw.integers(num_parts)].add(block, start)
    joined = GramSum(5)
    joined.limbs[...] = sum(part.limbs for part in parts)
    np.testing.assert_array_equal(joined.result().products, whole.result().products)
    np.testing.assert_array_equal(joined.result().squared_distances, whole.result().squared_distances)


def test_integers_in_float64_are_exact_against_fractions():
    draw = np.random.default_rng(1)
    block, start = draw.integers(-1000, 1000, size=(4, 200)) / 64, draw.integers(-1000, 1000, size=200) / 64
    total = GramSum(4)
    for first in range(0, 200, 50):
        total.add(block[:, first:first + 50], start[first:first + 50])
    rows = [[Fraction(a) - Fraction(b) for a, b in zip(row, start, strict=True)] for row in block]
    expected = [[float(sum(a * b for a, b in zip(x, y, strict=True))) for y in rows] for x in rows]
    np.testing.assert_array_equal(total.result().products, expected)
    apart = [[float(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for y in rows] for x in rows]
    np.testing.assert_array_equal(total.result().squared_distances, apart)


def test_small_products_survive_huge_ones_that_cancel():
    total = GramSum(2)
    for left, right in ((1e30, 1e30), (1e-20, 1.0), (1e30, -1e30)):
        total.add(np.array([[left], [right]]), np.zeros(1))
    assert total.result().products[0, 1] == 1e-20
