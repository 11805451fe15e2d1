"""Reductions among the ranks of one machine, in shared memory. Importing this module loads MPI.

From three ranks on, MPI's own reduction is far from the pace of memory. Here every rank combines one slice of all arrays,
where they lie, and writes it where the root wants it. What is shared are files without names: a rank that is killed leaves
nothing behind, and nothing is to be freed together.
"""

from __future__ import annotations

import os
import threading

import msgspec
import numpy as np
from mpi4py import MPI

from node_comm.agreement import Call
from node_comm.arrays import Description
from node_comm.errors import CommError
from node_comm.mpi_messages import completed
from node_comm.mpi_thread import Operation
from node_comm.reduction import combine, slice_of
from node_comm.segments import NAMELESS, Location, Mappings, Segment, SegmentPool, view

#: Arrays of fewer bytes are not worth the offers that have to be exchanged first.
SMALLEST = 1 << 18
#: Segments that nobody uses at present are kept up to this number.
IDLE = 4

_TOKEN = 16


class _Offer(msgspec.Struct, frozen=True, array_like=True):
    """Where a rank's array lies, where the root's result goes, and which of its segments there still are."""

    given: Location
    result: Location | None
    live: list[int]


class SharedMemory:
    """This rank's part of it. `allocate` is for any thread, all else for the MPI thread."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._rank = comm.Get_rank()
        self._size = comm.Get_size()
        self._pool = SegmentPool(self._rank, IDLE, retire=lambda segment: None)
        self._mappings = Mappings()
        self._lock = threading.Lock()

    @classmethod
    def probe(cls, comm: MPI.Intracomm) -> SharedMemory | None:
        """For all ranks of `comm` together: None unless each can read what any other has written."""
        shared = cls(comm)
        token = os.urandom(_TOKEN)
        segment = shared._pool.lend(_TOKEN)
        segment.memory[:_TOKEN] = token
        offers = gathered(comm, msgspec.msgpack.encode((segment.location(0), token)))
        is_well = NAMELESS and shared._size > 1
        for offer in offers:
            location, written = msgspec.msgpack.decode(offer, type=tuple[Location, bytes])
            try:
                is_well = is_well and location.read(_TOKEN) == written
            except (CommError, OSError):
                is_well = False
        every = np.array([is_well], np.int64)
        comm.Allreduce(MPI.IN_PLACE, every, MPI.MIN)
        shared._pool.give_back(segment)
        if every[0]:
            return shared
        shared.close()
        return None

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array that others can read and write where it lies; valid after `close` as well."""
        with self._lock:
            return self._pool.allocate(shape, dtype)

    def reduce(self, call: Call, flat: np.ndarray, out: np.ndarray | None) -> Operation[None]:
        """Combine the arrays elementwise into `out`, given at the root; all ranks have agreed on `call`. Arrays are flat."""
        like = Description(call.given[0].dtype, (flat.size,))
        lent: list[Segment] = []
        result: np.ndarray | None = None
        try:
            with self._lock:
                segment, offset, is_lent = self._pool.place_for(flat)
                if is_lent:
                    lent.append(segment)
                    view(segment.memory, offset, like)[:] = flat
                given, place = segment.location(offset), None
                if out is not None:
                    if out.ctypes.data != flat.ctypes.data and np.may_share_memory(flat, out):
                        segment, offset, is_lent = self._pool.lend(out.nbytes), 0, True
                    else:
                        segment, offset, is_lent = self._pool.place_for(out)
                    if is_lent:
                        lent.append(segment)
                        result = view(segment.memory, offset, like)
                    place = segment.location(offset)
                offer = _Offer(given, place, self._pool.numbers)
            offers = [msgspec.msgpack.decode(each, type=_Offer) for each in gathered(self._comm, msgspec.msgpack.encode(offer))]
            for rank, each in enumerate(offers):
                self._mappings.keep(rank, each.live)
            begin, end = slice_of(flat.size, (self._rank - call.root) % self._size, self._size)
            if begin < end:
                parts = [flat if rank == self._rank else self._mappings.view(each.given, like)
                         for rank, each in enumerate(offers)]
                target = out if result is None else result
                if target is None:
                    goes_to = offers[call.root].result
                    assert goes_to is not None, "the root has a place for the result"
                    target = self._mappings.view(goes_to, like)
                combine([part[begin:end] for part in parts], target[begin:end], call.operation)  # type: ignore[arg-type]
            yield from completed([self._comm.Ibarrier()])
            if result is not None and out is not None:
                out[:] = result
        finally:
            with self._lock:
                for segment in lent:
                    self._pool.give_back(segment)

    def close(self) -> None:
        """Unmap what is others', and give back what is this rank's."""
        with self._lock:
            self._mappings.close()
            self._pool.close()


def gathered(comm: MPI.Intracomm, mine: bytes) -> list[bytes]:
    """What every rank gives, by rank; all ranks are here."""
    lengths = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([len(mine)], np.int64), lengths)
    starts = np.cumsum(lengths) - lengths
    together = np.empty(lengths.sum(), np.uint8)
    comm.Allgatherv([np.frombuffer(mine, np.uint8), MPI.BYTE], [together, lengths, starts, MPI.BYTE])
    return [part.tobytes() for part in np.split(together, starts[1:])]
