"""The contract that every transport keeps: ranks, messages, and buffers that are only borrowed.

A *world* is `size` ranks, numbered from 0. A message is a header (bytes, small) and at most one array beside it.
A transport never keeps an array: it reads or writes a buffer only until the `await` that was given it returns.

Rules that the contract tests check on every transport:

- Messages from one rank to another arrive in the order in which they were sent, whole, once.
- `send` of an array may wait until the receiver takes the message (no send relies on buffering). Two ranks that exchange arrays
  await their send and their receive together, e.g. with `asyncio.gather`. A message without one waits for nobody, but over a
  network.
- A send to oneself never waits for the receive; what was sent is kept until then.
- Collectives are entered by all ranks, in the same order, and may be awaited while messages are in flight.
- Ranks that disagree about a collective (kind, dtype, shape, root, operation), or of which one gives a buffer that
  cannot be used, all get BufferMismatch, with ranks and descriptions; nothing is written then, and the world stays
  usable.
- After `close`, and after a peer is lost, pending and later calls raise Disconnected. `close` may be called twice.
- Where the world is `recoverable`, all ranks that live learn of a loss: each calls either `finish` or `recover`, once.
- What a task cancels in mid-call (asyncio cancellation) leaves the world unusable; only `close` is allowed then.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from node_comm.arrays import Into
from node_comm.errors import CommError, Disconnected

Operation = Literal["sum", "max", "min"]

#: dtypes that `reduce` accepts; the others raise BufferMismatch on every rank.
REDUCIBLE = frozenset(np.dtype(name) for name in (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"))


class Received(NamedTuple):
    """One message: who sent it, its header, and its array (None where it carried none)."""

    source: int
    header: bytes
    buffer: np.ndarray | None


class Transport(ABC):
    """One rank's access to a world of ranks. Not thread-safe: one event loop owns it."""

    rank: int
    size: int
    #: Whether `recover` can be tried when ranks are lost.
    recoverable = False
    #: An array that goes to every rank, or comes from each, arrives sooner in messages than by a collective where that are no
    #: more bytes in all.
    direct_bytes = 0
    #: The ranks that the world before this one has lost, by the numbers that their launcher gave them.
    lost: tuple[int, ...] = ()

    @abstractmethod
    async def send(self, dest: int, header: bytes, buffer: np.ndarray | None = None) -> None:
        """Send `header`, and `buffer` beside it, to rank `dest` (this rank itself included).

        `buffer` may have any memory order; it is read until this returns. Raises AddressError for an unknown
        rank, BufferMismatch for a dtype that does not travel, Disconnected when the peer is lost.
        """

    @abstractmethod
    async def recv(self, source: int | None = None, into: Into = None) -> Received:
        """Take the next message from rank `source`, or from any rank.

        `into` is the array to write the payload into: the same dtype and shape, C-contiguous, writeable; or a
        function of (header, description) that returns such an array, or None. Where there is none, a new array
        is made, which the receiver owns. Raises BufferMismatch when `into` does not fit: that message is lost,
        later ones arrive.
        """

    def seal(self) -> None:  # noqa: B027 (most worlds have nothing to seal)
        """Let no further rank join. A world that grows is sealed before its first collective; others are from the start."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array, C order, 64-byte aligned, not initialised, where this transport moves it with fewest copies.

        The caller owns it. It is an ordinary array, and stays valid after `close`; any other array may be sent too.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        memory = np.empty(nbytes + 64, np.uint8)
        return np.ndarray(shape, dtype, memory, offset=-memory.ctypes.data % 64)

    def place_of(self, array: np.ndarray) -> bytes | None:
        """Where every other rank can read `array` without a copy, for `read_at` there: this rank tells them in a message.

        For as long as the caller has `array`, which others see change. None where some rank cannot read this one's memory,
        and for what is not C-contiguous or not from `allocate`.
        """
        return None

    def read_at(self, place: bytes) -> np.ndarray:
        """The array of another rank at that place, in its own memory, read-only; its content is no more defined once that rank
        has let go of it. Raises Disconnected when that rank is gone."""
        raise CommError("no rank of this world can read another one's memory")

    @abstractmethod
    async def close(self) -> None:
        """Leave the world; frees what the transport holds. Pending calls raise Disconnected."""

    async def finish(self) -> None:
        """`close`, at the end of the work. In a recoverable world, wait until all ranks are here.

        Raises Disconnected on all ranks alike where one has been lost on the way: `recover` is possible then.
        """
        await self.close()

    async def recover(self) -> Transport:
        """A world to go on in, after Disconnected; this transport is spent.

        MPI: of the ranks that are left, numbered anew in their old order; each of them calls this. Processes: of as many as
        before, with new ones in the place of the old; rank 0 calls this. Raises Disconnected where there is none to
        be had.
        """
        raise Disconnected("this world does not outlive the loss of a rank")

    @abstractmethod
    async def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        """Copy root's `buffer` into every other rank's, in place.

        On the other ranks it must be C-contiguous and writeable; the root's may have any memory order.
        """

    @abstractmethod
    async def reduce(self, buffer: np.ndarray | None, out: np.ndarray | None = None, root: int = 0,
                     operation: Operation = "sum") -> None:
        """Combine all ranks' `buffer` elementwise into root's `out`, which is `buffer` itself or lies apart from it.

        A root that is not alone may give None: the others' buffers are combined then, without one of its own.
        `out` is ignored on the other ranks, and their buffers stay as they were. The order of combination is not
        defined: integers are exact, floating-point sums may differ in the last bits between worlds.
        """

    @abstractmethod
    async def gather(self, buffer: np.ndarray, out: Sequence[np.ndarray] | None = None, root: int = 0) -> None:
        """Copy each rank's `buffer` into `out[rank]` at the root.

        One dtype, any shapes; `out[rank]` has that rank's shape, C-contiguous and writeable. `out` is ignored on the
        other ranks.
        """

    @abstractmethod
    async def alltoall(self, buffers: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        """Copy `buffers[k]` of each rank into `out[rank]` of rank k; one dtype, any shapes."""

    @abstractmethod
    async def barrier(self) -> None:
        """Wait until every rank is here, without burning a core."""
