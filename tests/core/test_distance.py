"""Distances against NumPy in float64; buffers and integers take no part."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from federation.core.distance import squared_distance
from federation.core.weights import Layout, Weights


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_squared_distance_over_parameters_alone(dtype):
    """S-AGG-02: a running mean that is far away is no distance."""
    layout = Layout(["w", "mean", "count", "b"], [(30, 7), (3,), (), (5,)], [dtype, np.float32, np.int64, np.float64],
                    buffers=["mean"])
    draw = np.random.default_rng(1)
    start, weights = Weights.zeros(layout), Weights.zeros(layout)
    for here, there in zip(start, weights, strict=True):
        here[...], there[...] = 0, 1000
    for index in (0, 3):
        for each in (start, weights):
            each[index][...] = draw.normal(size=layout.shapes[index]).astype(layout.dtypes[index])
    expected = sum(((weights[k].astype(np.float64) - start[k].astype(np.float64)) ** 2).sum() for k in (0, 3))
    assert squared_distance(weights, start) == pytest.approx(expected, rel=1e-13)
    assert squared_distance(start, start) == 0


def test_huge_and_tiny():
    start = Weights.of([np.zeros(3)])
    assert squared_distance([np.full(3, 1e100)], start) == pytest.approx(3e200, rel=1e-14)
    assert squared_distance([np.full(3, 1e-100)], start) == pytest.approx(3e-200, rel=1e-14)
    for size in (1.2e154, 1e200):  # the squares are finite, and their sum is not; neither is
        assert squared_distance([np.full(1, size)] * 2, Weights.of([np.zeros(1)] * 2)) == np.inf
