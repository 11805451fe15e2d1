"""Multiprocessing queues of small frames, one inbox for each rank, without locks.

Like `multiprocessing.SimpleQueue`, an inbox is a pipe with one reader and many writers, made and handed to children
by multiprocessing. SimpleQueue guards its pipe by two named semaphores, which a killed writer leaves locked and a
killed parent leaves behind. Here a frame is at most PIPE_BUF bytes, which the system writes whole or not at all, so
that no lock is needed. A longer one (a large header) is left in shared memory, and its place is sent instead.

The event loop reads the inbox, and no `put` waits for another rank's: what a full pipe does not take is kept here, and
follows when it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import msgspec

from node_comm.errors import Disconnected, Unavailable
from node_comm.segments import Location, Segment

_LENGTH = struct.Struct("!I")

#: Bytes of the longest frame that fits the queue itself.
MAX_FRAME = select.PIPE_BUF - _LENGTH.size - 1

#: Bytes to read at a time: what a pipe holds.
_READ_BYTES = 1 << 16

_PLAIN, _SPILLED, _TAKEN = (bytes([kind]) for kind in range(3))


class _Spilled(msgspec.Struct, frozen=True, array_like=True):
    """Where a frame lies that was too long for the queue."""

    source: int
    number: int
    nbytes: int
    location: Location


class Queues:
    """One rank's end of a world's queues: `reader` is its own inbox, `writers[k]` the inbox of rank k. Owns both."""

    def __init__(self, rank: int, reader: Connection, writers: Sequence[Connection]) -> None:
        self.rank = rank
        self._reader = reader
        self._writers = writers
        self._numbers = itertools.count(1)
        self._spills: dict[int, tuple[int, Segment]] = {}
        self._drained = asyncio.Event()
        self._drained.set()
        self._pending = bytearray()  # what has been read of a frame that is not whole yet
        self._kept: defaultdict[int, deque[bytes]] = defaultdict(deque)  # frames for a pipe that was full, by rank
        for end in (reader, *writers):
            os.set_blocking(end.fileno(), False)

    def start(self, handle: Callable[[bytes], None], fail: Callable[[Unavailable], None]) -> None:
        """Hand every frame that arrives to `handle`, in the running event loop, in order; errors go to `fail`."""
        asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read, handle, fail)

    def put(self, dest: int, frame: bytes) -> None:
        """Put `frame` into the inbox of rank `dest`; Disconnected if nobody reads it any more."""
        if len(frame) <= MAX_FRAME:
            self._write(dest, _PLAIN + frame)
            return
        segment = Segment(self.rank, next(self._numbers), len(frame))
        segment.memory[: len(frame)] = frame
        self._spills[segment.number] = (dest, segment)
        self._drained.clear()
        spilled = _Spilled(self.rank, segment.number, len(frame), segment.location(0))
        try:
            self._write(dest, _SPILLED + msgspec.msgpack.encode(spilled))
        except Disconnected:
            self._release(segment.number)
            raise

    async def drain(self) -> None:
        """Wait until all that was put aside for others has been read by them."""
        await self._drained.wait()

    def forget(self, dest: int | None = None) -> None:
        """Rank `dest` (or, left out, every rank) is gone: do not wait until it has read."""
        for number in [number for number, (rank, _) in self._spills.items() if dest is None or rank == dest]:
            self._release(number)

    def close(self) -> None:
        """Close the queues, once those who live have been sent everything; may be called twice."""
        self.forget()
        if self._reader.closed:
            return
        for dest, kept in self._kept.items():
            while kept:
                self._wait_for_room(dest)
                self._send_kept(dest)
        asyncio.get_running_loop().remove_reader(self._reader.fileno())
        self._reader.close()
        for writer in self._writers:
            writer.close()

    def _write(self, dest: int, frame: bytes) -> None:
        framed = _LENGTH.pack(len(frame)) + frame
        if self._kept[dest]:
            self._kept[dest].append(framed)
            return
        pipe = self._writers[dest].fileno()
        try:
            os.write(pipe, framed)
        except BlockingIOError:
            self._kept[dest].append(framed)
            asyncio.get_running_loop().add_writer(pipe, self._send_kept, dest)
        except BrokenPipeError:
            raise Disconnected(f"the process of rank {dest} has ended") from None

    def _send_kept(self, dest: int) -> None:
        """Send what was kept for a pipe that has room again; nobody waits for it where nobody reads it any more."""
        kept, pipe = self._kept[dest], self._writers[dest].fileno()
        try:
            while kept:
                os.write(pipe, kept[0])
                kept.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:
            kept.clear()
        asyncio.get_running_loop().remove_writer(pipe)

    def _wait_for_room(self, dest: int) -> None:
        """Wait until the pipe of `dest` takes more. What comes in meanwhile is dropped: two who close wait for each other else."""
        ends, inbox = select.poll(), self._reader.fileno()
        ends.register(self._writers[dest], select.POLLOUT)
        ends.register(inbox, select.POLLIN)
        if any(end == inbox for end, _ in ends.poll()):
            os.read(inbox, _READ_BYTES)

    def _read(self, handle: Callable[[bytes], None], fail: Callable[[Unavailable], None]) -> None:
        """Split what has arrived into frames, and act on each."""
        self._pending += os.read(self._reader.fileno(), _READ_BYTES)
        for frame in self._frames():
            kind, body = frame[:1], frame[1:]
            if kind == _PLAIN:
                handle(body)
            elif kind == _SPILLED:
                self._fetch(msgspec.msgpack.decode(body, type=_Spilled), handle, fail)
            else:
                self._release(_LENGTH.unpack(body)[0])

    def _frames(self) -> Iterator[bytes]:
        """The whole frames among what has been read. What is not asked for, since somebody raised, comes the next time."""
        pending = self._pending
        while len(pending) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(pending)[0]
            if end > len(pending):
                return
            frame = bytes(pending[_LENGTH.size:end])
            del pending[:end]
            yield frame

    def _fetch(self, spilled: _Spilled, handle: Callable[[bytes], None], fail: Callable[[Unavailable], None]) -> None:
        """Take a frame that was too long from where it lies."""
        try:
            frame = spilled.location.read(spilled.nbytes)
        except Disconnected:
            return  # its sender has ended, which is reported by who watches it
        except Unavailable as error:
            fail(error)
        else:
            handle(frame)
        if not self._reader.closed:
            with contextlib.suppress(Disconnected):  # who has gone waits for nothing
                self._write(spilled.source, _TAKEN + _LENGTH.pack(spilled.number))

    def _release(self, number: int) -> None:
        spill = self._spills.pop(number, None)
        if spill is not None:
            spill[1].close()
        if not self._spills:
            self._drained.set()
