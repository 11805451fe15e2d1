"""The updates of a round as the rows of a matrix, and the verbs that robust aggregation is written in.

The matrix may be spread over ranks, each holding the rows of the clients that it trained; whoever uses it cannot tell.
Every result is a function of the rows alone, bit for bit, wherever they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

from federation import kernels
from federation.core.columns import Kernel, column_runs, column_statistic
from federation.core.gram import Geometry, GramSum
from federation.core.types import ClientUpdate
from federation.core.updates import Contribution, ExactSum
from federation.core.weights import Allocate, Weights
from federation.errors import Diverged

Result = TypeVar("Result")

#: Columns that are worked on at a time, at most, in bytes of the whole block.
BLOCK_BYTES = 4 << 20


class Matrix(ABC):
    """K rows, in the order of the cohort: the weights of the clients after training from `start`.

    client_ids, num_samples: of each row. Coefficients and indices follow their order.
    """

    start: Weights
    client_ids: Sequence[str]
    num_samples: Sequence[int]

    def __len__(self) -> int:
        return len(self.client_ids)

    @abstractmethod
    async def columnwise(self, kernel: Kernel, out: Weights, rows: Sequence[int] | None = None) -> None:
        """Set each element of `out` to what `kernel` makes of that element in `rows` (distinct indices; None: in all).

        Integers are rounded to nearest even; a boolean is true above 1/2.
        """

    @abstractmethod
    async def gram(self) -> Geometry:
        """The inner products of the rows' differences from `start`, and the squared distances between rows.

        Over all parameters; buffers and integers take no part (see Layout.parameters). Sums are float64 within blocks
        of columns, and exact over blocks (see GramSum).
        """

    @abstractmethod
    async def combine(self, coefficients: Sequence[float], out: Weights) -> None:
        """Set `out` to start + sum of coefficients[k] * (row k - start), summed exactly and rounded once."""

    @abstractmethod
    async def row(self, index: int, out: Weights) -> None:
        """Copy one row into `out`."""


class LocalMatrix(Matrix):
    """All rows in this process. Rows are copied once; Diverged for one that holds NaN or infinity."""

    def __init__(self, updates: Sequence[ClientUpdate], start: Weights) -> None:
        self.start = start
        self.client_ids = [update.client_id for update in updates]
        self.num_samples = [update.num_samples for update in updates]
        self._rows = [checked_row(update.client_id, update.weights, start) for update in updates]

    async def columnwise(self, kernel: Kernel, out: Weights, rows: Sequence[int] | None = None) -> None:
        """See Matrix."""
        chosen = [self._rows[index] for index in rows] if rows is not None else self._rows
        for run in column_runs(self.start.layout):
            width = max(64, BLOCK_BYTES // (len(chosen) * run.dtype.itemsize))
            for columns in run.blocks(width):
                block = np.stack([columns.of(row) for row in chosen])
                columns.of(out)[:] = column_statistic(kernel, block)

    async def gram(self) -> Geometry:
        """See Matrix."""
        total = GramSum(len(self))
        for run in column_runs(self.start.layout, parameters_only=True):
            for columns in run.blocks(GramSum.CHUNK):
                total.add(np.stack([columns.of(row) for row in self._rows]), columns.of(self.start))
        return total.result()

    async def combine(self, coefficients: Sequence[float], out: Weights) -> None:
        """See Matrix."""
        total = combination(self.start, len(self))
        for client_id, row, coefficient in zip(self.client_ids, self._rows, coefficients, strict=True):
            if coefficient:  # a row that does not count may be too far away to be added
                total.add(client_id, row, 1, Contribution(float(coefficient), 0.0))
        total.num_samples, total.divisor = len(self), 1.0
        total.mean_into(out)

    async def row(self, index: int, out: Weights) -> None:
        """See Matrix."""
        out.copy_from(self._rows[index])


def combination(start: Weights, count: int, allocate: Allocate | None = None) -> ExactSum:
    """An empty sum for `Matrix.combine` of `count` rows over all ranks: arrays count by coefficient, buffers too; divide by 1."""
    total = ExactSum(start.layout, start, total_samples=1, cohort_size=count, allocate=allocate)
    total.counts_all_alike = True
    return total


def checked_row(client_id: str, weights: Any, start: Weights) -> Weights:
    """`weights` copied into the layout of `start`; UpdateError where they do not fit, Diverged where not finite."""
    row = Weights.zeros(start.layout)
    row.copy_from(weights, who=client_id)
    for name, array in row.items():
        if not kernels.all_finite(array):
            raise Diverged(client_id, name)
    return row


def run_here(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that waits for nothing, as the verbs of a LocalMatrix do."""
    try:
        work.send(None)
    except StopIteration as finished:
        result: Result = finished.value
        return result
    work.close()
    raise RuntimeError("the coroutine waits for something: await it in an event loop")
