"""The products that torch models are trained with."""

from __future__ import annotations

import itertools

import pytest
import torch

import federation.builtin.steps.torch_blas  # noqa: F401 (tells MKL)

SHAPES = [(1, 5, 7), (1, 49, 10), (3, 6, 5), (5, 7, 1), (8, 25, 31), (20, 49, 5)]


def placed(values: torch.Tensor, is_transposed: bool, shift: int) -> torch.Tensor:
    """A copy that begins `shift` numbers after a multiple of 64 bytes, by rows or by columns."""
    rows, columns = values.shape
    memory = torch.empty(rows * columns + 32)
    first = -memory.data_ptr() % 64 // 4 + shift
    part = memory[first:first + rows * columns]
    return (part.view(columns, rows).t() if is_transposed else part.view(rows, columns)).copy_(values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", list(itertools.product([False, True], repeat=2)), ids=str)
def test_a_product_does_not_depend_on_where_its_factors_lie(shape, layout):
    """On AMD's processors MKL has it otherwise, unless it was told before its first product in this process."""
    rows, inner, columns = shape
    draws = torch.Generator().manual_seed(1)
    left, right = torch.randn(rows, inner, generator=draws), torch.randn(inner, columns, generator=draws)
    results = {torch.mm(placed(left, layout[0], one), placed(right, layout[1], other)).numpy().tobytes()
               for one in range(0, 16, 3) for other in range(0, 16, 5)}
    assert len(results) == 1
