"""The transport between processes of one machine: small frames through queues, arrays through shared memory.

A payload is copied once by its sender into a segment (not at all if it was made by `allocate`), and once by its
receiver out of it. For a collective every rank puts its part into a segment and reports to rank 0, which checks that
all mean the same and tells everybody where the parts lie; a reduction is shared out, each rank combining a slice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import numpy as np
from msgspec.structs import replace

from node_comm.agreement import Call, alltoall_call, barrier_call, broadcast_call, gather_call, reduce_call
from node_comm.arrays import Description, Into, describe, destination, packed, parse_dtype
from node_comm.errors import AddressError, CommError, Disconnected
from node_comm.frames import (
    Done,
    Ended,
    Enter,
    Failed,
    Finished,
    Forget,
    Frame,
    Goodbye,
    Hello,
    Post,
    Report,
    Taken,
    Verdict,
    decode,
    encode,
)
from node_comm.mailbox import Mailbox
from node_comm.meetings import COORDINATOR, Meeting, Meetings
from node_comm.queues import MAX_FRAME, Queues
from node_comm.reduction import combine, slice_of
from node_comm.segments import Location, Mappings, Place, Segment, SegmentPool, offsets, view
from node_comm.transport import Operation, Received, Transport

_FRAME_OVERHEAD = 160  # bytes of a Post beside its header and payload, generously


class ProcessTransport(Transport):
    """One rank of a world of processes, made inside the event loop that owns it. It borrows `queues`, not yet started.

    `supervise` is told what concerns the life of the processes: who is ready, has failed, has ended. `recover` makes
    the world that comes after this one, at rank 0.
    """

    direct_bytes = 1 << 22  # a collective takes four turns between processes, a message one

    def __init__(self, rank: int, size: int, queues: Queues, supervise: Callable[[Report], None] | None = None,
                 recover: Callable[[], Awaitable[Transport]] | None = None) -> None:
        self.rank = rank
        self.recoverable = recover is not None
        self._recover = recover
        self.size = size
        self._queues = queues
        self._supervise = supervise
        self._mailbox: Mailbox[Post] = Mailbox()
        for peer in range(size):
            if peer != rank:
                self._mailbox.expect(peer)
        self._pool = SegmentPool(rank, idle_limit=2 * size + 8, retire=self._retire)
        self._mappings = Mappings()
        self._numbers = itertools.count(1)
        self._unacknowledged: dict[int, tuple[int, Segment | None, asyncio.Future[None]]] = {}
        self._meetings = Meetings(rank, size, self._put_unless_gone)
        self._left: set[int] = set()
        self._failure: Callable[[], CommError] | None = None
        self._changed = asyncio.Event()  # a peer has left, or the world has failed
        self._closed = False
        queues.start(self._handle_encoded, lambda error: self.fail(lambda: type(error)(str(error))))

    # Messages

    async def send(self, dest: int, header: bytes, buffer: np.ndarray | None = None) -> None:
        """Small messages return at once; with a larger payload, when the receiver has copied it."""
        self._check_peer(dest)
        if dest in self._left:
            raise Disconnected(f"rank {dest} has left this world")
        post = Post(source=self.rank, header=bytes(header))
        if buffer is None:
            await self._post(dest, post)
            return
        description = describe(buffer)
        if dest == self.rank or buffer.nbytes + len(header) <= MAX_FRAME - _FRAME_OVERHEAD - 10 * buffer.ndim:
            await self._post(dest, replace(post, description=description, data=buffer.tobytes()))
            return
        segment, places = self._expose([buffer], {dest})
        number = next(self._numbers)
        try:
            await self._post(dest, replace(post, description=description, place=places[0], number=number))
        except BaseException:
            if segment is not None:
                self._pool.give_back(segment)
            raise
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unacknowledged[number] = (dest, segment, taken)  # before any answer is read: what is posted has not waited
        await taken

    async def recv(self, source: int | None = None, into: Into = None) -> Received:
        """Take the next message; the payload is copied out of the sender's segment."""
        if source is not None:
            self._check_peer(source)
        self._check_alive()
        sender, post = await self._mailbox.take(source)
        if post.description is None:
            return Received(sender, post.header, None)
        try:
            target = destination(into, post.header, post.description)
            if post.place is None:
                dtype = parse_dtype(post.description.dtype)
                np.copyto(target, np.ndarray(post.description.shape, dtype, post.data))
            else:
                np.copyto(target, self._mappings.view(post.place, post.description))
        finally:
            if post.number:
                self._put_unless_gone(sender, Taken(source=self.rank, number=post.number))
        return Received(sender, post.header, target)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array in shared memory, which other ranks read and write in place; valid after `close` as well."""
        return super().allocate(shape, dtype) if self._closed else self._pool.allocate(shape, dtype)

    def place_of(self, array: np.ndarray) -> bytes | None:
        """See Transport."""
        found = self._pool.find(array)
        if found is None:
            return None
        segment, offset = found
        segment.readers |= set(range(self.size))
        return Place(segment.location(offset), describe(array)).encode()

    def read_at(self, place: bytes) -> np.ndarray:
        """See Transport."""
        return self._mappings.read(Place.decode(place))

    async def close(self) -> None:
        """Say goodbye and free the memory. Waits until large headers on their way have been read."""
        if self._closed:
            return
        self._closed = True
        self._end_calls(self._gone)
        for peer in range(self.size):
            if peer != self.rank:  # also those that have left: the parent wants to know
                self._put_unless_gone(peer, Goodbye(source=self.rank, completed=self._meetings.completed))
        try:
            if self._failure is None:
                await self._queues.drain()
        finally:
            self._mappings.close()
            self._pool.close()

    async def recover(self) -> Transport:
        """See Transport."""
        return await (self._recover() if self._recover is not None else super().recover())

    def has_left(self, rank: int) -> bool:
        """Whether that rank has closed its transport."""
        return rank in self._left

    def fail(self, failure: Callable[[], CommError]) -> None:
        """End pending and later calls with `failure()`; the first failure stays."""
        if self._failure is None and not self._closed:
            self._failure = failure
            self._changed.set()
            self._end_calls(failure)
        self._queues.forget()

    def report(self, report: Report) -> None:
        """Tell the parent's `supervise`, after all that was told it before."""
        self._queues.put(COORDINATOR, encode(report))

    # Collectives

    async def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        """The root writes once into shared memory, every other rank copies it out."""
        call = broadcast_call(self.rank, self.size, buffer, root)
        async with self._collective(call, [buffer] if self.rank == root else []) as meeting:
            if self.rank != root:
                np.copyto(buffer, self._mappings.view(meeting.places[root][0], describe(buffer)))
            await self._meetings.finish(meeting, wait=self.rank == root)

    async def reduce(self, buffer: np.ndarray | None, out: np.ndarray | None = None, root: int = 0,
                     operation: Operation = "sum") -> None:
        """Each rank combines a slice of all parts, in rank order, and writes it into the root's memory."""
        call = reduce_call(self.rank, self.size, buffer, out, root, operation)
        given = [] if buffer is None else [buffer]
        count = math.prod(call.given[0].shape) if call.given else 0
        begin, end = slice_of(count, (self.rank - root) % self.size, self.size)
        is_root = self.rank == root and out is not None
        others_work = slice_of(count, 0, self.size)[1] < count
        async with self._collective(call, given, out if is_root and others_work else None) as meeting:
            flat = Description(call.given[0].dtype, (count,))
            if begin < end:
                parts: list[np.ndarray] = []
                for rank, places in enumerate(meeting.places):
                    if rank == self.rank:
                        parts += (packed(array).reshape(-1) for array in given)
                    else:
                        inputs = places[:-1] if rank == root and others_work else places
                        parts += (self._mappings.view(place, flat) for place in inputs)
                target = out.reshape(-1) if is_root and out is not None else self._mappings.view(
                    meeting.places[root][-1], flat)
                combine([part[begin:end] for part in parts], target[begin:end], operation)
            await self._meetings.finish(meeting)
            if is_root and others_work and out is not None and self._pool.find(out) is None:
                out.reshape(-1)[end:] = self._pool.view(meeting.places[root][-1], flat)[end:]

    async def gather(self, buffer: np.ndarray, out: Sequence[np.ndarray] | None = None, root: int = 0) -> None:
        """Every rank writes its part into shared memory, the root copies them out."""
        call = gather_call(self.rank, self.size, buffer, out, root)
        async with self._collective(call, [] if self.rank == root else [buffer]) as meeting:
            if self.rank == root and out is not None:
                for rank, target in enumerate(out):
                    np.copyto(target, buffer if rank == root else
                              self._mappings.view(meeting.places[rank][0], describe(target)))
            await self._meetings.finish(meeting)

    async def alltoall(self, buffers: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        """Every rank writes all its parts into shared memory, and copies its own out of the others'."""
        async with self._collective(alltoall_call(self.size, buffers, out), buffers) as meeting:
            for rank, target in enumerate(out):
                np.copyto(target, buffers[rank] if rank == self.rank else
                          self._mappings.view(meeting.places[rank][self.rank], describe(target)))
            await self._meetings.finish(meeting)

    async def barrier(self) -> None:
        """Wait until every rank is here."""
        async with self._collective(barrier_call(), []):
            pass  # that all have entered is all there is to it

    @contextlib.asynccontextmanager
    async def _collective(self, call: Call, given: Sequence[np.ndarray],
                          result: np.ndarray | None = None) -> AsyncIterator[Meeting]:
        """Enter a collective with `given` and, after them, a place for others to write `result`, in shared memory.

        Yields when all ranks have entered and agree. What is shared is free again at the end.
        """
        self._check_alive()
        meeting = self._meetings.begin()
        everyone = set(range(self.size))
        segments: list[Segment | None] = []
        places: list[Location] = []
        try:
            if not call.problem:
                segment, places = self._expose(given, everyone)
                segments.append(segment)
                if result is not None:
                    segment, place = self._place_for(result, everyone)
                    segments.append(segment)
                    places.append(place)
            await self._meetings.enter(meeting, call, places)
            yield meeting
            self._meetings.complete(meeting)
        except asyncio.CancelledError:
            self.fail(lambda: Disconnected(f"rank {self.rank} was cancelled in a {call.kind}: this world is broken"))
            raise
        finally:
            self._meetings.end(meeting)
            for segment in segments:
                if segment is not None:
                    self._pool.give_back(segment)

    # Shared memory

    def _expose(self, arrays: Sequence[np.ndarray], readers: set[int]) -> tuple[Segment | None, list[Location]]:
        """Make `arrays` readable for others, in place where they can be; the segment, if one is needed, is lent."""
        found = [self._pool.find(array) for array in arrays]
        begins, nbytes = offsets([0 if place else array.nbytes for place, array in zip(found, arrays, strict=True)])
        segment = None if all(found) else self._pool.lend(nbytes)
        places = []
        for array, place, begin in zip(arrays, found, begins, strict=True):
            if place is None:
                assert segment is not None
                np.copyto(view(segment.memory, begin, describe(array)), array)
                place = (segment, begin)
            place[0].readers |= readers
            places.append(place[0].location(place[1]))
        return segment, places

    def _place_for(self, result: np.ndarray, writers: set[int]) -> tuple[Segment | None, Location]:
        """Where others may write `result`: its own memory, or a segment that is lent."""
        segment, offset, is_lent = self._pool.place_for(result)
        segment.readers |= writers
        return segment if is_lent else None, segment.location(offset)

    def _retire(self, segment: Segment) -> None:
        for peer in segment.readers - {self.rank} - self._left:
            self._put_unless_gone(peer, Forget(source=self.rank, number=segment.number))

    # Frames

    async def _post(self, dest: int, post: Post) -> None:
        if dest == self.rank:
            self._mailbox.deliver(dest, post)
            return
        try:
            self._put(dest, post)
        except Disconnected:
            if self._supervise is not None:  # the parent is about to learn how the process ended
                while self._failure is None and dest not in self._left:
                    self._changed.clear()
                    await self._changed.wait()
                self._check_alive()
            raise

    def _put(self, dest: int, frame: Frame) -> None:
        if dest == self.rank:
            self._handle(frame)
        else:
            self._queues.put(dest, encode(frame))

    def _put_unless_gone(self, dest: int, frame: Frame) -> None:
        with contextlib.suppress(Disconnected):
            self._put(dest, frame)

    def _handle_encoded(self, encoded: bytes) -> None:
        try:
            self._handle(decode(encoded))
        except Exception as error:
            reason = f"rank {self.rank} cannot go on: {error!r}"
            self.fail(lambda: CommError(reason))
            raise

    def _handle(self, frame: Frame) -> None:
        """Act on what arrives; it may come after `close`, or after a failure."""
        match frame:
            case Hello() | Failed() | Ended() if self._supervise is not None:
                self._supervise(frame)
            case Goodbye():
                self._peer_left(frame)
            case _ if self._closed or self._failure is not None:
                pass
            case Post():
                self._mailbox.deliver(frame.source, frame)
            case Taken():
                self._acknowledged(frame.number)
            case Enter() | Verdict() | Done() | Finished():
                self._meetings.handle(frame)
            case Forget():
                self._mappings.forget(frame.source, frame.number)

    def _acknowledged(self, number: int, failure: CommError | None = None) -> None:
        _, segment, taken = self._unacknowledged.pop(number)
        if segment is not None:
            self._pool.give_back(segment)
        if taken.done():
            return  # its sender was cancelled
        if failure is None:
            taken.set_result(None)
        else:
            taken.set_exception(failure)

    def _peer_left(self, goodbye: Goodbye) -> None:
        """What `goodbye.source` offered is gone with it, and whoever waits for it waits in vain."""
        peer = goodbye.source
        self._left.add(peer)
        self._changed.set()
        self._queues.forget(peer)
        self._mailbox.withdraw(lambda source, post: source == peer and post.place is not None)
        self._mailbox.leave(peer)
        self._mappings.forget_owner(peer)
        for number, (dest, _, _) in list(self._unacknowledged.items()):
            if dest == peer:
                self._acknowledged(number, Disconnected(f"rank {peer} has left this world"))
        self._meetings.leave(peer, goodbye.completed)

    def _end_calls(self, failure: Callable[[], CommError]) -> None:
        self._mailbox.fail(failure)
        for number in list(self._unacknowledged):
            self._acknowledged(number, failure())
        self._meetings.fail(failure)

    # Checks

    def _check_peer(self, rank: int) -> None:
        self._check_alive()
        if not 0 <= rank < self.size:
            raise AddressError(f"there is no rank {rank} in this world, which has ranks 0 to {self.size - 1}")

    def _check_alive(self) -> None:
        if self._closed:
            raise self._gone()
        if self._failure is not None:
            raise self._failure()

    def _gone(self) -> Disconnected:
        return Disconnected(f"rank {self.rank} has closed its transport")
