"""The verbs of a matrix of mixed dtypes against NumPy."""

from __future__ import annotations

import asyncio

import ml_dtypes
import numpy as np
import pytest

from federation.core.columns import Kernel
from federation.core.matrix import LocalMatrix, run_here
from federation.core.types import ClientUpdate
from federation.core.weights import Layout, Weights
from federation.errors import Diverged, UpdateError

LAYOUT = Layout(["a", "half", "brain", "mean", "count", "flag", "b"], [(50, 3), (7,), (7,), (4,), (2,), (3,), (9,)],
                [np.float32, np.float16, ml_dtypes.bfloat16, np.float32, np.int64, np.bool_, np.float64],
                buffers=["mean"])


def weights(seed):
    draw, made = np.random.default_rng(seed), Weights.zeros(LAYOUT)
    for array in made:
        array[...] = (draw.normal(size=array.shape) * 3).astype(array.dtype) if array.dtype != bool \
            else draw.random(array.shape) < 0.5
    return made


@pytest.fixture
def rows():
    return [weights(seed) for seed in range(1, 7)]


@pytest.fixture
def matrix(rows):
    return LocalMatrix([ClientUpdate(f"client-{k}", row, k + 1) for k, row in enumerate(rows)], weights(0))


def in_dtype(values, dtype):
    if dtype.kind == "b":
        return values > 0.5
    return np.rint(values).astype(dtype) if dtype.kind == "i" else values.astype(dtype)


@pytest.mark.parametrize("chosen", [None, [4, 0, 2], [3]])
def test_median_of_mixed_dtypes(rows, matrix, chosen):
    out = Weights.zeros(LAYOUT)
    run_here(matrix.columnwise(Kernel("median"), out, chosen))
    for index, array in enumerate(out):
        columns = np.array([row[index].astype(np.float64) for row in (rows if chosen is None else [rows[k] for k in chosen])])
        np.testing.assert_array_equal(array, in_dtype(np.median(columns, axis=0), array.dtype))


def test_gram_of_parameters_alone(rows, matrix):
    """S-AGG-02: buffers, integers and booleans take no part."""
    flat = np.array([np.concatenate([(row[k].astype(np.float64) - matrix.start[k].astype(np.float64)).ravel()
                                     for k in (0, 1, 2, 6)]) for row in rows])
    found = run_here(matrix.gram()).products
    np.testing.assert_allclose(found, flat @ flat.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_combine_and_row(rows, matrix):
    coefficients = [0.5, -0.25, 0.0, 1.0, 0.125, -0.375]
    out = Weights.zeros(LAYOUT)
    run_here(matrix.combine(coefficients, out))
    for index, array in enumerate(out):
        begun = matrix.start[index].astype(np.float64)
        exact = begun + sum(c * (row[index].astype(np.float64) - begun) for c, row in zip(coefficients, rows, strict=True))
        # These coefficients are exact, so that float64 is, but for float64 arrays.
        if array.dtype == np.float64:
            np.testing.assert_allclose(array, exact, rtol=1e-14, atol=1e-15)
        else:
            np.testing.assert_array_equal(array, in_dtype(exact, array.dtype))
    run_here(matrix.row(3, out))
    np.testing.assert_array_equal(out.buffer, rows[3].buffer)


def test_rows_are_copied_and_checked(rows):
    matrix = LocalMatrix([ClientUpdate("client-0", rows[0], 1)], weights(0))
    rows[0][0][...] = 7
    out = Weights.zeros(LAYOUT)
    run_here(matrix.row(0, out))
    assert not (out[0] == 7).any()
    rows[0][1][2] = np.nan
    with pytest.raises(Diverged, match=r"client-0.*half"):
        LocalMatrix([ClientUpdate("client-0", rows[0], 1)], weights(0))
    with pytest.raises(UpdateError, match="client-5"):
        LocalMatrix([ClientUpdate("client-5", [np.ones(3)], 1)], weights(0))


def test_what_waits_for_something_is_not_run_here():
    ended = []

    async def waits():
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    work = waits()
    with pytest.raises(RuntimeError, match="await it in an event loop"):
        run_here(work)
    assert ended == [True], "it is over, and not left half done"
