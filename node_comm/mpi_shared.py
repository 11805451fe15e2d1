"""Reductions among the ranks of one machine, in shared memory. Importing this module loads MPI.

From three ranks on, MPI's own reduction is far from the pace of memory. Here every rank combines one slice of all arrays,
where they lie, and writes it where the root wants it. What is shared are files without names: a rank that is killed leaves
nothing behind, and nothing is to be freed together.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from mpi4py import MPI

from node_comm.agreement import Call
from node_comm.arrays import Description, describe, dtype_name
from node_comm.errors import CommError
from node_comm.mpi_messages import completed
from node_comm.mpi_thread import Operation
from node_comm.reduction import a_like, combine, slice_of
from node_comm.segments import NAMELESS, Location, Mappings, Place, Segment, SegmentPool, view

#: Arrays of fewer bytes are not worth the offers that have to be exchanged first.
SMALLEST = 1 << 18
#: Segments that nobody uses at present are kept up to this number.
IDLE = 4

_TOKEN = 16


class _Offer(msgspec.Struct, frozen=True, array_like=True):
    """Where a rank's array lies, where the root's result goes, what it lends to all, and which of its segments there are."""

    given: Location | None
    result: Location | None
    scratch: Location | None
    live: list[int]


class Opened(NamedTuple):
    """Memory of all ranks, seen by one of them: flat arrays of one dtype and length, but for `scratch`.

    `given` are the arrays of the ranks that give one, in rank order; `result` is where the root wants the result, None without
    a root;
    `scratch` is memory (uint8) of rank 0 for all to use, its content undefined.
    """

    given: list[np.ndarray]
    result: np.ndarray | None
    scratch: np.ndarray


class SharedMemory:
    """This rank's part of it. `allocate` is for any thread, all else for the MPI thread. `comms`: the communicator it uses."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.comms = [comm]
        self._rank = comm.Get_rank()
        self._size = comm.Get_size()
        self._pool = SegmentPool(self._rank, IDLE, retire=lambda segment: None)
        self._mappings = Mappings()
        self._read = Mappings()  # by the event loop's thread
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
            except CommError:
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

    def place_of(self, array: np.ndarray) -> bytes | None:
        """See Transport; for any thread."""
        with self._lock:
            found = self._pool.find(array)
            if found is None:
                return None
            segment, offset = found
            return Place(segment.location(offset), describe(array), self._pool.numbers).encode()

    def read_at(self, place: bytes) -> np.ndarray:
        """See Transport; for the event loop's thread."""
        return self._read.read(Place.decode(place))

    def reduce(self, call: Call, flat: np.ndarray | None, out: np.ndarray | None) -> Operation[None]:
        """Combine the arrays elementwise into `out`, given at the root; all ranks have agreed on `call`. Arrays are flat."""
        with self.opened(flat, out, call.root) as memory:
            begin, end = slice_of(a_like(flat, out).size, (self._rank - call.root) % self._size, self._size)
            if begin < end:
                assert memory.result is not None, "the root has a place for the result"
                combine([given[begin:end] for given in memory.given], memory.result[begin:end],
                        call.operation)  # type: ignore[arg-type]
            yield from completed([self._comm.Ibarrier()])

    @contextlib.contextmanager
    def opened(self, flat: np.ndarray | None, out: np.ndarray | None, root: int | None, scratch_bytes: int = 0) -> Iterator[Opened]:
        """For all ranks together: each one's `flat` array, the root's `out` (None without a root), `scratch_bytes` of rank 0.

        The root may have no array of its own. Whoever leaves has to know that all are done: a rank's array is its own again,
        and `out` is filled. The root's `out` may be its array; what is written to `result` meanwhile overwrites at most the same
        elements.
        """
        mine = a_like(flat, out)
        like = Description(dtype_name(mine.dtype), (mine.size,))
        lent: list[Segment] = []
        result: np.ndarray | None = None
        try:
            with self._lock:
                given, place, scratch = None, None, None
                if flat is not None:
                    segment, offset, is_lent = self._pool.place_for(flat)
                    if is_lent:
                        lent.append(segment)
                        view(segment.memory, offset, like)[:] = flat
                    given = segment.location(offset)
                if out is not None:
                    segment, offset, is_lent = self._pool.place_for(out)
                    if is_lent:
                        lent.append(segment)
                        result = view(segment.memory, offset, like)
                    place = segment.location(offset)
                if scratch_bytes and self._rank == 0:
                    segment = self._pool.lend(scratch_bytes)
                    lent.append(segment)
                    scratch = segment.location(0)
                offer = _Offer(given, place, scratch, self._pool.numbers)
            offers = [msgspec.msgpack.decode(each, type=_Offer) for each in gathered(self._comm, msgspec.msgpack.encode(offer))]
            for rank, each in enumerate(offers):
                self._mappings.keep(rank, each.live)
            parts = [flat if rank == self._rank and flat is not None else self._mappings.view(each.given, like)
                     for rank, each in enumerate(offers) if each.given is not None]
            yield Opened(parts, self._target(offers, root, out if result is None else result, like),
                         self._scratch(offers[0], scratch_bytes))
            if result is not None and out is not None:
                out[:] = result
        finally:
            with self._lock:
                for segment in lent:
                    self._pool.give_back(segment)

    def _target(self, offers: list[_Offer], root: int | None, mine: np.ndarray | None, like: Description) -> np.ndarray | None:
        """Where the result goes, seen from here."""
        if root is None or root == self._rank:
            return mine
        place = offers[root].result
        assert place is not None, "the root has a place for the result"
        return self._mappings.view(place, like)

    def _scratch(self, offer: _Offer, nbytes: int) -> np.ndarray:
        """The memory that rank 0 lends to all, seen from here."""
        like = Description("|u1", (nbytes,))
        if offer.scratch is None:
            return np.empty(0, np.uint8)
        return self._pool.view(offer.scratch, like) if self._rank == 0 else self._mappings.view(offer.scratch, like)

    def close(self) -> None:
        """Unmap what is others', and give back what is this rank's."""
        with self._lock:
            self._mappings.close()
            self._read.close()
            self._pool.close()


def gathered(comm: MPI.Intracomm, mine: bytes) -> list[bytes]:
    """What every rank gives, by rank; all ranks are here."""
    lengths = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([len(mine)], np.int64), lengths)
    starts = np.cumsum(lengths) - lengths
    together = np.empty(lengths.sum(), np.uint8)
    comm.Allgatherv([np.frombuffer(mine, np.uint8), MPI.BYTE], [together, lengths, starts, MPI.BYTE])
    return [part.tobytes() for part in np.split(together, starts[1:])]
