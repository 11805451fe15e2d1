"""Reductions of ranks on several machines: on each in shared memory, between them by one rank of each.

Importing this module loads MPI. The first rank of a machine leads it. The others combine the arrays of the machine piece by
piece, in turn, into memory of the leader, who hands the pieces to MPI_Reduce, in order: one travels while the next ones are
combined. Only leaders talk across machines, and one array leaves each machine but the root's, whatever number of ranks it
has. The root may be any rank: the leader of its machine has MPI write where the root wants the result.

Two levels and pieces in a pipeline are those of Luo et al., "HAN: a Hierarchical AutotuNed Collective Communication
Framework" (CLUSTER 2020, section III).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from node_comm.agreement import Call
from node_comm.mpi_collectives import REDUCE_PIECE_BYTES, reduce_in_pieces, reduce_piece
from node_comm.mpi_messages import completed
from node_comm.mpi_shared import SharedMemory
from node_comm.mpi_thread import Operation
from node_comm.reduction import a_like, combine

#: So many pieces may lie combined, and wait for those before them to have travelled.
AHEAD = 8
#: So many ranks of a machine combine at once: enough for all that its memory gives, and few enough for pieces to stay in cache.
COMBINERS = 16

_WORD = (bytearray(), MPI.BYTE)


class Nodes:
    """One rank's part in reductions among machines. `allocate` is for any thread, all else for the MPI thread."""

    def __init__(self, comm: MPI.Intracomm, own: MPI.Intracomm, shared: SharedMemory | None, max_chunk_bytes: int) -> None:
        """`own`: the ranks of this machine, in the order of `comm`, with their memory; one rank alone has none.

        All ranks of `comm` are here. `comms` are the communicators that this makes and takes.
        """
        heads = np.empty(comm.Get_size(), np.int64)
        comm.Allgather(head_of(comm, own), heads)
        self._heads = heads.tolist()  # for each rank, the first rank of its machine
        self._rank = comm.Get_rank()
        self._place = own.Get_rank()
        self._size = own.Get_size()
        self._own = own
        self._leaders = MPI.Intracomm(comm.Split(MPI.UNDEFINED if self._place else 0, self._rank))
        self._shared = shared
        self._max_chunk_bytes = max_chunk_bytes
        self.comms = [own] if self._place else [own, self._leaders]
        for each in self.comms:
            each.Set_errhandler(MPI.ERRORS_RETURN)

    @classmethod
    def probe(cls, comm: MPI.Intracomm, max_chunk_bytes: int, sizes: Sequence[int] | None) -> Nodes | SharedMemory | None:
        """For all ranks of `comm` together: what reduces large arrays faster than MPI alone, None where nothing does.

        MPI proposes who is on one machine, and those who cannot read each other's memory count as alone. `sizes` takes
        the ranks apart into machines of so many, in rank order (see `launchers.pretended_nodes`).
        """
        rank = comm.Get_rank()
        own = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED, rank))
        if sizes is not None:
            own = MPI.Intracomm(own.Split(int(np.searchsorted(np.cumsum(sizes), rank, "right")), rank))
        shared = SharedMemory.probe(own)
        if shared is None:
            own = MPI.COMM_SELF.Dup()
        size, largest, smallest = comm.Get_size(), np.array([own.Get_size()]), np.array([own.Get_size()])
        comm.Allreduce(MPI.IN_PLACE, largest, MPI.MAX)
        comm.Allreduce(MPI.IN_PLACE, smallest, MPI.MIN)
        if largest[0] == 1 or smallest[0] == size:
            return shared
        return cls(comm, own, shared, max_chunk_bytes)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """An array that the ranks of this machine can read and write where it lies; None where there are no others."""
        return None if self._shared is None else self._shared.allocate(shape, dtype)

    def reduce(self, call: Call, flat: np.ndarray | None, out: np.ndarray | None) -> Operation[None]:
        """Combine the arrays elementwise into `out`, given at the root; all ranks have agreed on `call`. Arrays are flat.

        The ranks of a machine are combined in their order, then the machines as MPI_Reduce does it: the same in each run of
        a world, if MPI keeps to its advice to implementors (MPI 4.1, section 6.9.1).
        """
        head = self._heads[call.root]
        machine = sorted(set(self._heads)).index(head)
        like = a_like(flat, out)
        length = max(1, min(REDUCE_PIECE_BYTES, self._max_chunk_bytes) // like.itemsize)
        if self._shared is None:
            reduce_in_pieces(self._leaders, flat, out, call.operation, machine, length)
            return
        is_here = head == self._heads[self._rank]
        root = self._heads[:call.root].count(head) if is_here else None
        bounds = list(pairwise([*range(0, like.size, length), like.size]))
        combiners = min(self._size - 1, COMBINERS)
        kept = min(len(bounds), combiners * (1 + -(-AHEAD // combiners)))
        with self._shared.opened(flat, out, root, kept * length * like.itemsize) as memory:
            pieces = memory.scratch.view(like.dtype).reshape(kept, length)
            if self._place == 0:
                yield from self._lead(call, machine, bounds, pieces, combiners, memory.result)
            elif self._place <= combiners:
                yield from self._combine(call, bounds, pieces, combiners, memory.given)
            yield from completed([self._own.Ibarrier()])

    def close(self) -> None:
        """Unmap what is others', and give back what is this rank's."""
        if self._shared is not None:
            self._shared.close()

    def _lead(self, call: Call, root: int, bounds: Sequence[tuple[int, int]], pieces: np.ndarray, combiners: int,
              result: np.ndarray | None) -> Operation[None]:
        """Take the pieces as they are combined, and reduce them among the leaders, of whom `root` has `result`."""
        words = []
        for number, (begin, end) in enumerate(bounds):
            combiner = 1 + number % combiners
            yield from self._word_of(combiner)
            total = None if result is None else result[begin:end]
            reduce_piece(self._leaders, pieces[number % len(pieces), :end - begin], total, call.operation, root)
            if number + len(pieces) < len(bounds):
                words.append(self._own.Isend(_WORD, combiner))
        yield from completed(words)

    def _combine(self, call: Call, bounds: Sequence[tuple[int, int]], pieces: np.ndarray, combiners: int,
                 given: Sequence[np.ndarray]) -> Operation[None]:
        """Combine every piece that is this rank's turn, each in a place whose last piece has travelled."""
        words = []
        for number in range(self._place - 1, len(bounds), combiners):
            begin, end = bounds[number]
            if number >= len(pieces):
                yield from self._word_of(0)
            piece = pieces[number % len(pieces), :end - begin]
            combine([each[begin:end] for each in given], piece, call.operation)  # type: ignore[arg-type]
            words.append(self._own.Isend(_WORD, 0))
        yield from completed(words)

    def _word_of(self, rank: int) -> Operation[None]:
        """Wait for `rank` of this machine to say that it is done with its next piece."""
        has_moved = True  # since the wait before
        while not self._own.Iprobe(rank):
            yield has_moved
            has_moved = False
        self._own.Recv(_WORD, rank)


def head_of(comm: MPI.Intracomm, own: MPI.Intracomm) -> np.ndarray:
    """The number in `comm` of the first rank of `own`; all ranks of `own` are here."""
    head = np.array([comm.Get_rank()], np.int64)
    own.Bcast(head)
    return head
