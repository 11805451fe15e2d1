"""Collectives over MPI, as operations for the MPI thread. Importing this module loads MPI.

A collective first *arrives*: a small nonblocking all-reduce, tested with naps, tells each rank that all are here and
whether all call the same thing. Only then it *moves*, with MPI's blocking call, which no longer waits for anyone.
A rank that finds a mistake in its own arguments arrives nevertheless, and all ranks raise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from mpi4py import MPI

from node_comm.agreement import Call, disagreement
from node_comm.arrays import Description
from node_comm.errors import BufferMismatch
from node_comm.mpi_messages import completed, pieces
from node_comm.mpi_shared import SMALLEST, gathered
from node_comm.mpi_thread import Operation
from node_comm.reduction import a_like, neutral

#: Reduce in pieces of so many bytes, which stay in cache: up to 4 times faster than one call at 3 and 4 ranks.
REDUCE_PIECE_BYTES = 1 << 20

_TYPES = {
    np.dtype(np.int8): MPI.INT8_T, np.dtype(np.int16): MPI.INT16_T, np.dtype(np.int32): MPI.INT32_T,
    np.dtype(np.int64): MPI.INT64_T, np.dtype(np.uint8): MPI.UINT8_T, np.dtype(np.uint16): MPI.UINT16_T,
    np.dtype(np.uint32): MPI.UINT32_T, np.dtype(np.uint64): MPI.UINT64_T, np.dtype(np.float32): MPI.FLOAT,
    np.dtype(np.float64): MPI.DOUBLE,
}
_OPERATIONS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}


class LargeReductions(Protocol):
    """What combines large arrays in another way than MPI alone: the memory of one machine, or that of several."""

    def reduce(self, call: Call, flat: np.ndarray | None, out: np.ndarray | None) -> Operation[None]:
        """See `Collectives.reduce`; all ranks have arrived."""


class Collectives:
    """Collectives on `comm`, which nothing else may use, one at a time. All methods belong to the MPI thread.

    `call` is what this rank says about its entry. Where the calls of all ranks are not one collective, all raise
    BufferMismatch, nothing is moved, and the communicator stays usable. Arrays are flat: uint8, but for `reduce`.
    """

    def __init__(self, comm: MPI.Intracomm, max_chunk_bytes: int, large: LargeReductions | None = None) -> None:
        """`large`: what reduces arrays of SMALLEST bytes and more, on communicators of its own."""
        self._comm = comm
        self._large = large
        self._rank = comm.Get_rank()
        self._size = comm.Get_size()
        self._max_chunk_bytes = max_chunk_bytes

    def arrive(self, call: Call) -> Operation[None]:
        """Wait, at little cost, until all ranks are here and have made the same call."""
        number = _digest(_common_part(call))
        mine = np.array([number, -number], np.int64)
        largest = np.empty(2, np.int64)
        yield from completed([self._comm.Iallreduce(mine, largest, MPI.MAX)])
        if largest[0] != -largest[1] or call.problem:
            self._refuse(call)

    def broadcast(self, call: Call, flat: np.ndarray) -> Operation[None]:
        """Copy the root's array into the others'."""
        yield from self.arrive(call)
        for chunk in pieces(flat, self._max_chunk_bytes):
            self._comm.Bcast([chunk, MPI.BYTE], call.root)

    def reduce(self, call: Call, flat: np.ndarray | None, out: np.ndarray | None) -> Operation[None]:
        """Combine the arrays elementwise into `out`, given at the root, which may be `flat` itself; its `flat` may be None."""
        yield from self.arrive(call)
        like = a_like(flat, out)
        if self._large is not None and like.nbytes >= SMALLEST:
            yield from self._large.reduce(call, flat, out)
            return
        length = max(1, min(REDUCE_PIECE_BYTES, self._max_chunk_bytes) // like.itemsize)
        reduce_in_pieces(self._comm, flat, out, call.operation, call.root, length)

    def gather(self, call: Call, flat: np.ndarray, targets: Sequence[np.ndarray]) -> Operation[None]:
        """Copy each rank's array into the root's `targets[rank]`."""
        yield from self.arrive(call)
        given = np.empty(self._size, np.int64)
        self._comm.Gather(_digests(call.given), given, call.root)
        self._check_fit(call, given)
        yield from self._exchange({call.root: flat}, dict(enumerate(targets)))

    def alltoall(self, call: Call, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Operation[None]:
        """Copy `sources[k]` of each rank into `targets[rank]` of rank k."""
        yield from self.arrive(call)
        if len({each.dtype for each in call.given}) > 1:  # and so on all ranks
            self._refuse(call)
        given = np.empty(self._size, np.int64)
        self._comm.Alltoall(_digests(call.given), given)
        self._check_fit(call, given)
        yield from self._exchange(dict(enumerate(sources)), dict(enumerate(targets)))

    def _check_fit(self, call: Call, given: np.ndarray) -> None:
        """All ranks are here: refuse unless what comes to every rank (digests) is what it is ready to take."""
        misfit = np.array([bool(call.taken) and (given != _digests(call.taken)).any()], np.int64)
        self._comm.Allreduce(MPI.IN_PLACE, misfit, MPI.MAX)
        if misfit[0]:
            self._refuse(call)

    def _refuse(self, call: Call) -> None:
        """All ranks are here and know that something is wrong: see all calls, and raise."""
        calls = gathered(self._comm, msgspec.msgpack.encode(call))
        raise BufferMismatch(disagreement([msgspec.msgpack.decode(each, type=Call) for each in calls]))

    def _exchange(self, outgoing: Mapping[int, np.ndarray], incoming: Mapping[int, np.ndarray]) -> Operation[None]:
        """Move bytes between ranks, straight from and into their arrays.

        Gatherv and Alltoallv want one array for all ranks, with 32-bit offsets; here each rank has its own, and
        staging would cost a copy and twice the memory.
        """
        if self._rank in outgoing and self._rank in incoming:
            incoming[self._rank][:] = outgoing[self._rank]
        # Each rank begins with its neighbour, lest all of them start with rank 0.
        order = [(self._rank + step) % self._size for step in range(1, self._size)]
        requests = [self._comm.Irecv([chunk, MPI.BYTE], peer)
                    for peer in order if peer in incoming for chunk in pieces(incoming[peer], self._max_chunk_bytes)]
        requests += [self._comm.Isend([chunk, MPI.BYTE], peer)
                     for peer in order if peer in outgoing for chunk in pieces(outgoing[peer], self._max_chunk_bytes)]
        yield from completed(requests)


def reduce_in_pieces(comm: MPI.Intracomm, flat: np.ndarray | None, out: np.ndarray | None, operation: str, root: int,
                     length: int) -> None:
    """Combine the ranks' flat arrays, `length` elements at a time, into `out`, given at the root, which may be its own."""
    if flat is None:
        out = a_like(flat, out)
        nothing = neutral(out, operation, min(length, out.size))
        for total in pieces(out, length):
            reduce_piece(comm, nothing[:total.size], total, operation, root)
        return
    if out is None:
        for piece in pieces(flat, length):
            reduce_piece(comm, piece, None, operation, root)
        return
    # MPI forbids input and output to overlap; its own way round that, IN_PLACE, takes four times as long.
    same = out.ctypes.data == flat.ctypes.data
    for piece, total in zip(pieces(flat, length), pieces(out, length), strict=True):
        reduce_piece(comm, piece.copy() if same else piece, total, operation, root)


def reduce_piece(comm: MPI.Intracomm, piece: np.ndarray, total: np.ndarray | None, operation: str, root: int) -> None:
    """One MPI_Reduce of flat arrays into `total`, given at the root, which overlaps no input."""
    kind = _TYPES[piece.dtype]
    comm.Reduce([piece, kind], None if total is None else [total, kind], _OPERATIONS[operation], root)


def _common_part(call: Call) -> object:
    """What must be equal on all ranks; in transfers, the shapes may differ."""
    if call.kind in ("gather", "alltoall"):
        return call.kind, call.root, sorted({each.dtype for each in call.given}), call.problem
    return call.kind, call.root, call.operation, call.given, call.problem


def _digest(value: object) -> int:
    """A number of 62 bits, so that its negative fits int64 too."""
    digest = hashlib.blake2b(msgspec.msgpack.encode(value), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def _digests(descriptions: Sequence[Description]) -> np.ndarray:
    return np.array([_digest(description) for description in descriptions], np.int64)
