"""Windows over sequences, against a loop over their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.data.formats.sequences import all_windows, windows

SEQUENCES = st.lists(st.integers(1, 200), max_size=30)


def by_definition(sequence: list[int], length: int, stride: int) -> list[tuple[list[int], int]]:
    """Every stride-th token and the last one, each with the tokens before it."""
    found = []
    for at, label in enumerate(sequence):
        if at > 0 and (at % stride == 0 or at == len(sequence) - 1):
            before = sequence[:at][-length:]
            found.append(([0] * (length - len(before)) + before, label))
    return found


@given(sequence=SEQUENCES, length=st.integers(1, 8), stride=st.integers(1, 8), dtype=st.sampled_from(["u1", "u2", "i4"]))
def test_windows(sequence: list[int], length: int, stride: int, dtype: str) -> None:
    x, y = windows(np.array(sequence, dtype), length, stride)
    expected = by_definition(sequence, length, stride)
    assert x.tolist() == [before for before, _ in expected]
    assert y.tolist() == [label for _, label in expected]
    assert (x.shape, x.dtype, y.dtype) == ((len(expected), length), np.dtype(dtype), np.int64)


@pytest.mark.parametrize(("stride", "labels"), [(1, [2, 3, 4, 5, 6, 7]), (3, [4, 7]), (4, [5, 7]), (9, [7])])
def test_strides(stride: int, labels: list[int]) -> None:
    assert windows(np.arange(1, 8), 3, stride)[1].tolist() == labels


@given(sequences=st.lists(SEQUENCES, max_size=4), stride=st.integers(1, 5))
def test_sequences_follow_each_other(sequences: list[list[int]], stride: int) -> None:
    x, y = all_windows(iter(sequences), 4, stride, 256)
    expected = [pair for sequence in sequences for pair in by_definition(sequence, 4, stride)]
    assert (x.tolist(), y.tolist()) == ([before for before, _ in expected], [label for _, label in expected])
    assert x.shape == (len(expected), 4)


@pytest.mark.parametrize(("tokens", "dtype"), [(90, np.uint8), (256, np.uint8), (257, np.uint16), (10_004, np.uint16),
                                               (65_537, np.uint32)])
def test_the_smallest_type_holds_every_token(tokens: int, dtype: type) -> None:
    for sequences in ([[1, tokens - 1, 1]], []):
        assert all_windows(sequences, 2, 1, tokens)[0].dtype == dtype
    assert all_windows([[1, tokens - 1, 1]], 2, 1, tokens)[0].tolist() == [[0, 1], [1, tokens - 1]]
