"""The elementwise combination, against NumPy on whole arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from node_comm.reduction import BLOCK_BYTES, SLICE, combine, slice_of


@pytest.mark.parametrize("count", [0, 1, 5, BLOCK_BYTES // 8, BLOCK_BYTES // 8 + 1, 100_003])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("operation", ["sum", "max", "min"])
def test_combine_into_a_new_array_or_any_of_the_parts(operation: str, ranks: int, count: int) -> None:
    """The parts that are not `out` stay as they were, wherever `out` lies."""
    random = np.random.default_rng(count + ranks)
    parts = [random.integers(-1_000, 1_000, count) for _ in range(ranks)]
    expected = {"sum": np.sum, "max": np.max, "min": np.min}[operation](np.stack(parts), axis=0)
    for target in [None, *range(ranks)]:
        mine = [part.copy() for part in parts]
        out = np.zeros(count, np.int64) if target is None else mine[target]
        combine(mine, out, operation)  # type: ignore[arg-type]
        assert (out == expected).all()
        assert all((mine[rank] == parts[rank]).all() for rank in range(ranks) if rank != target)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_floating_point_is_combined_in_order_wherever_it_goes(ranks: int) -> None:
    """The same bits whether the result goes to a new array or over one of the parts."""
    random = np.random.default_rng(ranks)
    parts = [random.standard_normal(70_000) * 10.0 ** random.integers(-8, 8) for _ in range(ranks)]
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    for target in [None, *range(ranks)]:
        mine = [part.copy() for part in parts]
        out = np.zeros(70_000) if target is None else mine[target]
        combine(mine, out, "sum")
        assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [2, 3, 5, 64])
@pytest.mark.parametrize("count", [0, 1, SLICE, SLICE + 1, 10 * SLICE - 1, 1_000_003])
def test_slices_cover_everything_once(count: int, size: int) -> None:
    """The root, worker 0, has all of a short array, so that nothing has to be written elsewhere."""
    bounds = [slice_of(count, index, size) for index in range(size)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == count
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    assert max(end - begin for begin, end in bounds) <= -(-count // size) + SLICE
    if count <= SLICE:
        assert bounds[0] == (0, count)
