"""Messages over MPI, as operations for the MPI thread. Importing this module loads MPI.

A message is a frame on tag 0 (header, description, payload tag) and, beside it, its payload in BYTE chunks on a tag
of its own, received from that source straight into its destination. Only frames are matched by wildcard, so a
payload can never be taken for another's. Everything is nonblocking: large sends that face each other both progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from mpi4py import MPI

from node_comm.arrays import Description
from node_comm.errors import CommError, Disconnected
from node_comm.mpi_thread import Operation

FRAME_TAG = 0
#: MPI guarantees tags up to 32767. A tag is used again only after as many messages, and MPI keeps the order within one.
PAYLOAD_TAGS = range(1, 32768)

_LOST = frozenset({MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED})


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What goes ahead of a payload; `tag` is where the payload's `nbytes` bytes follow."""

    header: bytes
    description: Description | None
    nbytes: int
    tag: int


class Arrival(NamedTuple):
    """A frame and its sender; `payload` is set only where the sender is this rank itself."""

    source: int
    frame: Frame
    payload: np.ndarray | None = None


class _Slot:
    """A receive that waits for its frame."""

    def __init__(self, source: int) -> None:
        self.source = source
        self.found: tuple[int, MPI.Message, int] | Arrival | None = None

    def accepts(self, source: int) -> bool:
        return self.source in (MPI.ANY_SOURCE, source)


class Messages:
    """Sends and receives on `comm`, which nothing else may use. All methods belong to the MPI thread."""

    def __init__(self, comm: MPI.Intracomm, max_chunk_bytes: int) -> None:
        self._comm = comm
        self._rank = comm.Get_rank()
        self._max_chunk_bytes = max_chunk_bytes
        self._slots: list[_Slot] = []
        self._own: deque[Arrival] = deque()
        self._decoder = msgspec.msgpack.Decoder(Frame)

    def send(self, dest: int, frame: Frame, payload: np.ndarray) -> Operation[None]:
        """Send `frame` and the flat uint8 `payload`; ends when both may be overwritten."""
        requests = [self._comm.Isend([msgspec.msgpack.encode(frame), MPI.BYTE], dest, FRAME_TAG)]
        requests += [self._comm.Isend([chunk, MPI.BYTE], dest, frame.tag)
                     for chunk in pieces(payload, self._max_chunk_bytes)]
        yield from completed(requests)

    def send_here(self, frame: Frame, payload: np.ndarray) -> Operation[None]:
        """Keep a message to this rank itself until it is received; `payload` is given away."""
        self._own.append(Arrival(self._rank, frame, payload))
        return
        yield

    def receive_frame(self, source: int | None) -> Operation[Arrival]:
        """The next frame from `source` (None: from any rank); receives are served in the order of their calls."""
        slot = _Slot(MPI.ANY_SOURCE if source is None else source)
        self._slots.append(slot)
        self._look(slot)
        while slot.found is None:
            yield
            self._look(slot)
        if isinstance(slot.found, Arrival):
            return slot.found
        sender, message, nbytes = slot.found
        data = bytearray(nbytes)
        yield from completed([message.Irecv([data, MPI.BYTE])])
        return Arrival(sender, self._decoder.decode(data))

    def receive_payload(self, arrival: Arrival, target: np.ndarray) -> Operation[None]:
        """Write the payload that belongs to `arrival` into the flat uint8 `target` of its size."""
        if arrival.payload is not None:
            target[:] = arrival.payload
            return
        yield from completed([self._comm.Irecv([chunk, MPI.BYTE], arrival.source, arrival.frame.tag)
                              for chunk in pieces(target, self._max_chunk_bytes)])

    def discard_payload(self, arrival: Arrival) -> Operation[None]:
        """Receive the payload that belongs to `arrival` and drop it, so that its sender is not left waiting."""
        if arrival.payload is not None:
            return
        scratch = np.empty(min(arrival.frame.nbytes, self._max_chunk_bytes), np.uint8)
        for start in range(0, arrival.frame.nbytes, self._max_chunk_bytes):
            chunk = scratch[:arrival.frame.nbytes - start]
            yield from completed([self._comm.Irecv([chunk, MPI.BYTE], arrival.source, arrival.frame.tag)])

    def _look(self, slot: _Slot) -> None:
        """Look for a frame that `slot` may have; it goes to the first slot in line that accepts its sender."""
        if slot.found is not None:
            return
        if self._own and slot.accepts(self._rank):
            self._give(self._rank, self._own.popleft())
            return
        status = MPI.Status()
        message = self._comm.Improbe(slot.source, FRAME_TAG, status)
        if message is not None:
            self._give(status.Get_source(), (status.Get_source(), message, status.Get_count(MPI.BYTE)))

    def _give(self, source: int, found: tuple[int, MPI.Message, int] | Arrival) -> None:
        first = next(slot for slot in self._slots if slot.accepts(source))
        first.found = found
        self._slots.remove(first)


def pieces(flat: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Cut a flat array into views of at most `length` elements; none for an empty array."""
    return (flat[start:start + length] for start in range(0, flat.size, length))


def completed(requests: Sequence[MPI.Request]) -> Operation[None]:
    """Wait for all `requests`. Tested one by one, because MPI names the true error of a single request only."""
    while requests := [request for request in requests if not request.Test()]:
        yield


def as_comm_error(error: Exception) -> Exception:
    """MPI's exceptions as CommError, with MPI's text; others as they are."""
    if not isinstance(error, MPI.Exception):
        return error
    kind = Disconnected if error.Get_error_class() in _LOST else CommError
    translated = kind(f"MPI: {error.Get_error_string()}")
    translated.__cause__ = error
    return translated
