"""The matrix whose rows stay on the ranks that trained them.

Columnwise rules and inner products need whole columns, so ranks exchange blocks: of each block of columns, every rank
(the server's included) gets a slice, with the elements of all rows, and works on it. A block is bounded, so that beside
its own rows a rank never holds more than a few MiB; the server gets results, O(P), and never a row that it did not ask
for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from federation.core.columns import Columns, Kernel, column_runs, column_statistic
from federation.core.gram import Geometry, GramSum
from federation.core.matrix import BLOCK_BYTES, Matrix
from federation.core.weights import Weights
from federation.node.compute import compute
from federation.node.host import ClientHost
from federation.node.protocol import Collect, Columnwise, Combine, Combined, FetchUpdate, Gram
from federation.node.round import Fitted
from node_comm.node import Node

if TYPE_CHECKING:
    from federation.node.server import ServerNode

#: Slices of columns are multiples of this many.
COLUMN_UNIT = 64


class DistributedMatrix(Matrix):
    """The rows of a finished `ServerNode.fit` with needs "matrix"; clients that trained on nothing have none."""

    def __init__(self, server: ServerNode, fitted: Fitted) -> None:
        outcomes = [outcome for outcome in fitted.outcomes if outcome.num_samples]
        self.start = server.weights
        self.client_ids = [outcome.client_id for outcome in outcomes]
        self.num_samples = [outcome.num_samples for outcome in outcomes]
        self._ranks = [fitted.ranks[client_id] for client_id in self.client_ids]
        self._round = fitted.plan.round
        self._server = server

    async def columnwise(self, kernel: Kernel, out: Weights, rows: Sequence[int] | None = None) -> None:
        """See Matrix. Of each row, all but one part in `size` travels once; results travel to the server."""
        chosen = range(len(self)) if rows is None else rows
        order = Columnwise(kernel=kernel, clients=[self.client_ids[row] for row in chosen],
                           ranks=[self._ranks[row] for row in chosen])
        async with self._server.orders.deadline(self._round, "the columns of the updates"):
            await self._server.tell(order)
            await take_part_in_columnwise(self._server.node, self._server.host, order, out)

    async def gram(self) -> Geometry:
        """See Matrix. Of each row, all but one part in `size` travels once, and one reduction of K * K * 128 bytes."""
        order = Gram(clients=list(self.client_ids), ranks=self._ranks)
        async with self._server.orders.deadline(self._round, "the inner products of the updates"):
            await self._server.tell(order)
            total = await take_part_in_gram(self._server.node, self._server.host, order)
        return total.result()

    async def combine(self, coefficients: Sequence[float], out: Weights) -> None:
        """See Matrix. Each rank adds up its rows; one reduction."""
        server = self._server
        shares: dict[int, dict[str, float]] = {rank: {} for rank in server.ranks}
        for client_id, rank, coefficient in zip(self.client_ids, self._ranks, coefficients, strict=True):
            if coefficient:
                shares[rank][client_id] = float(coefficient)
        orders = {rank: Combine(coefficients=share, cohort_size=len(self)) for rank, share in shares.items()}
        combine = server.host.updates.combine
        reports = await (await server.orders.give(orders, Combined, lambda order: compute(combine, order), self._round))
        limbs = max(report.limbs for report in reports.values())
        total = await server.reduced(Collect(round=self._round, limbs=limbs))
        total.num_samples, total.divisor = len(self), 1.0
        await compute(total.mean_into, out)

    async def row(self, index: int, out: Weights) -> None:
        """See Matrix. One row travels."""
        await self._server.fetch_row(FetchUpdate(round=self._round, client_id=self.client_ids[index]), self._ranks[index],
                                     out)


async def take_part_in_columnwise(node: Node, host: ClientHost, order: Columnwise, out: Weights | None = None) -> None:
    """What every rank does for `DistributedMatrix.columnwise`; the server gives `out`."""
    transport = node.transport
    async for slices, block in _transposed(node, host, order.clients, order.ranks, COLUMN_UNIT):
        result = await compute(column_statistic, order.kernel, block)
        targets = [columns.of(out) for columns in slices] if out is not None else None
        await node.attend(transport.gather(result, out=targets, root=0))


async def take_part_in_gram(node: Node, host: ClientHost, order: Gram) -> GramSum:
    """What every rank does for `DistributedMatrix.gram`. The sum that it returns is whole on the server alone."""
    total = GramSum(len(order.clients))
    start = host.weights
    assert start is not None, "rows come from a fit, which had weights to start from"
    # Blocks come with the rows of each rank together; products are taken in the order of the cohort everywhere.
    grouped = np.argsort(np.array(order.ranks), kind="stable")
    back = np.empty(len(grouped), np.int64)
    back[grouped] = np.arange(len(grouped))

    def add(columns: Columns, block: np.ndarray) -> None:
        for part in columns.blocks(GramSum.CHUNK):
            first = (part.first - columns.first) // part.dtype.itemsize
            total.add(block[back, first : first + len(part)], part.of(start))

    async for slices, block in _transposed(node, host, order.clients, order.ranks, GramSum.CHUNK, parameters_only=True):
        await compute(add, slices[node.transport.rank], block)
    await node.attend(node.transport.reduce(total.limbs, out=total.limbs, root=0))
    return total


async def _transposed(node: Node, host: ClientHost, clients: Sequence[str], ranks: Sequence[int], unit: int,
                      parameters_only: bool = False) -> AsyncIterator[tuple[list[Columns], np.ndarray]]:
    """Exchange the rows of `clients`, block by block: each rank's slice of the block, and all rows of this rank's.

    The rows in a block are grouped by rank, in the order of `clients` within each. Slices begin at multiples of `unit`
    columns from where their run of one dtype begins; some may be empty.
    """
    transport = node.transport
    host_rows = [host.updates.row(client_id)[0] for client_id, rank in zip(clients, ranks, strict=True)
                 if rank == transport.rank]
    counts = np.bincount(np.array(ranks, np.int64), minlength=transport.size)
    firsts = np.cumsum(counts) - counts
    layout = host.layout
    for run in column_runs(layout, parameters_only):
        width = _width(len(run), len(clients) * run.dtype.itemsize, transport.size, unit)
        for block in run.blocks(width * transport.size):
            slices = list(block.blocks(width))
            slices += [Columns(run.dtype, block.last, block.last)] * (transport.size - len(slices))
            mine = slices[transport.rank]
            outgoing = [_stacked(host_rows, columns) for columns in slices]
            together = np.empty((len(clients), len(mine)), run.dtype)
            incoming = [together[first : first + count] for first, count in zip(firsts, counts, strict=True)]
            await node.attend(transport.alltoall(outgoing, incoming))
            del outgoing
            yield slices, together


def _width(length: int, bytes_a_column: int, size: int, unit: int) -> int:
    """Columns of one slice: as many as BLOCK_BYTES hold, but no more than an equal share of the run."""
    most = max(1, BLOCK_BYTES // (bytes_a_column * unit))
    share = -(-length // (size * unit))
    return unit * min(most, share)


def _stacked(rows: Sequence[Weights], columns: Columns) -> np.ndarray:
    if not rows:
        return np.empty((0, len(columns)), columns.dtype)
    return np.stack([columns.of(row) for row in rows])
