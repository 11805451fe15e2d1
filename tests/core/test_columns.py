"""What columnwise rules make of dtypes that the native kernels have no code for, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.core.columns import Kernel, column_runs, column_statistic
from federation.core.matrix import LocalMatrix, run_here
from federation.core.types import ClientUpdate
from federation.core.weights import Layout, Weights

KERNELS = [Kernel("median"), Kernel("trimmed_mean", 1), Kernel("mean_around_median", 2)]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def exact(kernel, column):
    """Of one column, as a fraction."""
    values = sorted(map(Fraction, column))
    half = len(values) // 2
    centre = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
    match kernel.name:
        case "median":
            return centre
        case "trimmed_mean":
            values = values[kernel.amount:len(values) - kernel.amount]
        case "mean_around_median":
            values = sorted(values, key=lambda value: (abs(value - centre), value))[:kernel.amount]
    return sum(values) / len(values)


@each_kernel
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@given(data=st.data())
def test_integers_near_each_other_are_exact_wherever_they_are(kernel, dtype, data):
    """Halves go to the even neighbour; the last digits of large counters survive."""
    limits = np.iinfo(dtype)
    low = data.draw(st.integers(limits.min, limits.max))
    high = min(limits.max, low + 2**40)
    column = data.draw(st.lists(st.integers(low, high), min_size=3, max_size=7))
    found = column_statistic(kernel, np.array([column], dtype).T.copy())
    assert found.dtype == dtype
    wanted = exact(kernel, column)
    if kernel.name == "median" or wanted.denominator in (1, 2):
        assert int(found[0]) == round(wanted)
    else:  # a third of a number may be rounded before it is rounded to an integer, but only where that is far from half
        assert abs(int(found[0]) - wanted) <= Fraction(1, 2)


@each_kernel
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8])
def test_integers_at_both_ends_of_their_range(kernel, dtype):
    limits = np.iinfo(dtype)
    for column in ([limits.min] * 3, [limits.max] * 4, [limits.min, limits.max, limits.max, limits.max],
                   [limits.min, limits.min, limits.min, limits.max], [limits.min, limits.min, limits.max, limits.max]):
        found = int(column_statistic(kernel, np.array([column], dtype).T.copy())[0])
        wanted = exact(kernel, column)
        assert abs(found - wanted) <= max(Fraction(1, 2), Fraction(limits.max) / 2**52)
        assert limits.min <= found <= limits.max


#: All finite bfloat16 of 1/2 to below 2, in order.
NUMBERS = np.arange(0x3f00, 0x4000, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64).tolist()


def nearest_bfloat16(value):
    """Of all from 1/2 to 2; the one with an even pattern of two as near."""
    return min(enumerate(NUMBERS), key=lambda pair: (abs(Fraction(pair[1]) - value), pair[0] & 1))[1]


@pytest.mark.parametrize("tiny", [0, 2.0**-39, -(2.0**-39)])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_bfloat16_is_rounded_once(tiny, step, sign):
    """The mean of two neighbours and something tiny is just off the middle of two numbers, which float32 cannot tell."""
    values = [1 + step * 2.0**-7, 1 + (step + 1) * 2.0**-7, tiny, 0.0]
    wide = sign * np.array([values]).T
    block = wide.astype(ml_dtypes.bfloat16)
    assert (block.astype(np.float64) == wide).all()
    found = column_statistic(Kernel("mean_around_median", 4), block)
    assert found.dtype == ml_dtypes.bfloat16
    assert float(found[0]) == sign * nearest_bfloat16(sum(map(Fraction, values)) / 4)


@each_kernel
def test_halves_and_booleans(kernel):
    column = np.array([[1.0, 65504.0, 65504.0, 65504.0]], np.float16).T.copy()
    found = column_statistic(kernel, column)
    assert (found.dtype, float(found[0])) == (np.float16, float(np.float16(float(exact(kernel, column[:, 0].tolist())))))
    for count in range(5):
        column = np.array([[True] * count + [False] * (4 - count)]).T.copy()
        found = column_statistic(kernel, column)
        assert (found.dtype, bool(found[0])) == (bool, exact(kernel, column[:, 0].tolist()) > Fraction(1, 2))


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["float32", "float64", "int64"])), max_size=6), st.booleans())
def test_runs_cover_what_is_chosen_and_nothing_else(arrays, parameters_only):
    """Empty arrays anywhere: before the first run, and between two that do not touch."""
    layout = Layout([str(index) for index in range(len(arrays))], [(size,) for size, _ in arrays], [dtype for _, dtype in arrays])
    wanted = layout.parameters if parameters_only else range(len(layout))
    found = []
    for run in column_runs(layout, parameters_only):
        found += [index for index in range(len(layout)) if run.first <= layout.offsets[index] < run.last and arrays[index][0]]
        assert all(layout.dtypes[index] == run.dtype for index in found if run.first <= layout.offsets[index] < run.last)
    assert found == [index for index in wanted if arrays[index][0]]


def test_an_empty_array_beside_a_counter_changes_no_distance():
    """Bits of the counters would be taken for numbers."""
    start = {"a": np.zeros(2, np.float32), "count": np.array(0), "empty": np.zeros(0, np.float32), "b": np.zeros(2, np.float32)}
    updates = [ClientUpdate(f"client_{count}", start | {"a": np.full(2, value, np.float32), "count": np.array(count)}, 1)
               for count, value in ((1, 0.0), (1 << 30, 2.0))]
    geometry = run_here(LocalMatrix(updates, Weights.of(start)).gram())
    assert geometry.squared_distances.tolist() == [[0, 8], [8, 0]]
