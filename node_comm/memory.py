"""Ranks inside one process and one event loop: messages and collectives are plain copies between arrays.

    server, *clients = memory.world(4)

A `Hub` is a world that grows by `join` until it is sealed; `open_hub` gives it a name that `find_hub` finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np

from node_comm.agreement import (
    Call,
    alltoall_call,
    barrier_call,
    broadcast_call,
    disagreement,
    gather_call,
    reduce_call,
)
from node_comm.arrays import Into, describe, destination, packed
from node_comm.errors import AddressError, BufferMismatch, CommError, Disconnected
from node_comm.mailbox import Mailbox
from node_comm.reduction import combine
from node_comm.transport import Operation, Received, Transport

Result = TypeVar("Result")

_hubs: dict[str, Hub] = {}


def world(size: int) -> list[Transport]:
    """The transports of a fixed world of `size` ranks, in rank order."""
    if size < 1:
        raise CommError(f"a world has at least one rank, not {size}")
    hub = Hub()
    transports = [hub.join() for _ in range(size)]
    hub.seal()
    return transports


def run(main: Callable[..., Awaitable[Result]], size: int, *args: Any) -> list[Result]:
    """Run `main(transport, *args)` on every rank of a new world, in a new event loop; the results in rank order.

    The first rank that raises ends the others, and its error is raised here.
    """
    async def rank_main(transport: Transport) -> Result:
        try:
            return await main(transport, *args)
        except Exception as error:
            error.add_note(f"raised by rank {transport.rank} of {size}")
            raise

    async def everyone() -> list[Result]:
        transports = world(size)
        tasks = [asyncio.create_task(rank_main(transport)) for transport in transports]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for transport in transports:
                await transport.close()

    return asyncio.run(everyone())


def open_hub(name: str) -> Hub:
    """A new hub that this process finds by `name` until it is closed."""
    if name in _hubs:
        raise CommError(f"a hub named {name!r} is open already: close it first, or choose another name")
    _hubs[name] = Hub(name)
    return _hubs[name]


def find_hub(name: str) -> Hub:
    """The open hub called `name`; raises AddressError that lists the names there are."""
    if name not in _hubs:
        known = ", ".join(repr(known) for known in sorted(_hubs)) or "none; start the server first"
        raise AddressError(f"no hub named {name!r} is open in this process (open are: {known})")
    return _hubs[name]


class Hub:
    """A world that grows: each `join` is the next rank, from 0, until `seal`. Closing rank 0 closes the hub."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.sealed = False
        self.members: list[MemoryTransport] = []
        self._failure: Callable[[], CommError] | None = None
        self._meetings: dict[int, _Meeting] = {}

    def join(self) -> Transport:
        """The next rank's transport. Raises CommError once the hub is sealed, Disconnected once it is closed."""
        self.check_alive()
        if self.sealed:
            raise CommError(f"{self} is sealed with {len(self.members)} ranks: the run has started, nobody can join it")
        member = MemoryTransport(self, len(self.members))
        for other in self.members:
            if not other.closed:
                other.mailbox.expect(member.rank)
                member.mailbox.expect(other.rank)
        self.members.append(member)
        return member

    def seal(self) -> None:
        """Fix the number of ranks; collectives are allowed from now on."""
        self.sealed = True
        for member in self.members:
            member.mailbox.growing = False
            member.mailbox.settle()

    def close(self) -> None:
        """Disconnect every rank and give the name back."""
        for member in self.members:
            member.leave()
        self._unregister()
        self.fail(lambda: Disconnected(f"{self} has been closed"))

    def __str__(self) -> str:
        return f"hub {self.name!r}" if self.name else "this world"

    def check_alive(self) -> None:
        """Raise Disconnected after `close`, or after a rank was cancelled in mid-call."""
        if self._failure is not None:
            raise self._failure()

    def fail(self, failure: Callable[[], CommError]) -> None:
        """End every pending and later call of every rank with `failure()`."""
        if self._failure is None:
            self._failure = failure
        for meeting in self._meetings.values():
            meeting.release(failure)
        self._meetings.clear()
        for member in self.members:
            member.fail(failure)

    def left(self, rank: int) -> None:
        """`rank` has closed its end: nobody can meet it any more, and rank 0 takes the hub's name with it."""
        for meeting in self._meetings.values():
            meeting.release(lambda: Disconnected(f"rank {rank} has left {self}"))
        self._meetings.clear()
        for member in self.members:
            if member.rank != rank:
                member.mailbox.withdraw(lambda source, item: source == rank and isinstance(item, _Offer))
                member.mailbox.leave(rank)
                member.give_up_on(rank)
        if rank == 0:
            self._unregister()

    async def meet(self, rank: int, number: int, call: Call, buffers: _Buffers) -> None:
        """Rank `rank` enters collective `number`; the last to arrive does the work of all."""
        if not self.sealed:
            raise CommError(f"{self} still grows: seal it before the first collective")
        gone = [member.rank for member in self.members if member.closed]
        if gone:
            raise Disconnected(f"rank {gone[0]} has left {self}")
        meeting = self._meetings.setdefault(number, _Meeting())
        meeting.entries[rank] = (call, buffers)
        if len(meeting.entries) == len(self.members):
            del self._meetings[number]
            meeting.perform()
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        meeting.waiting.append(done)
        try:
            await done
        except asyncio.CancelledError:
            self.fail(lambda: Disconnected(f"rank {rank} was cancelled in a {call.kind}: {self} is broken"))
            raise

    def _unregister(self) -> None:
        if _hubs.get(self.name) is self:
            del _hubs[self.name]


@dataclass(slots=True)
class _Buffers:
    """What one rank brings to a collective: arrays to read, arrays to write."""

    given: Sequence[np.ndarray] = ()
    out: Sequence[np.ndarray] = ()


@dataclass(slots=True)
class _Meeting:
    """One collective: who is there with what, and who waits."""

    entries: dict[int, tuple[Call, _Buffers]] = field(default_factory=dict)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def perform(self) -> None:
        """Check that all mean the same, move the data, release all; every rank gets the error if there is one."""
        ranks = range(len(self.entries))
        calls = [self.entries[rank][0] for rank in ranks]
        problem = disagreement(calls)
        if problem:
            self.release(lambda: BufferMismatch(problem))
            raise BufferMismatch(problem)
        try:
            _move(calls[0], [self.entries[rank][1] for rank in ranks])
        except BaseException as error:
            reason = f"{calls[0]} failed on the rank that did the work: {error!r}"
            self.release(lambda: CommError(reason))
            raise
        self.release(None)

    def release(self, failure: Callable[[], CommError] | None) -> None:
        """Wake those who wait."""
        for done in self.waiting:
            if done.done():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure())


def _move(call: Call, ranks: Sequence[_Buffers]) -> None:
    """Do what `call` says with all ranks' buffers, in rank order."""
    root = call.root
    if call.kind == "broadcast":
        for rank, buffers in enumerate(ranks):
            if rank != root:
                np.copyto(buffers.given[0], ranks[root].given[0])
    elif call.kind == "reduce":
        parts = [packed(array).reshape(-1) for buffers in ranks for array in buffers.given]
        combine(parts, ranks[root].out[0].reshape(-1), cast(Operation, call.operation))
    elif call.kind == "gather":
        for target, buffers in zip(ranks[root].out, ranks, strict=True):
            np.copyto(target, buffers.given[0])
    elif call.kind == "alltoall":
        for dest, receiver in enumerate(ranks):
            for target, sender in zip(receiver.out, ranks, strict=True):
                np.copyto(target, sender.given[dest])


class _Offer:
    """A payload for rank `dest` that its sender holds still until `taken` is done."""

    __slots__ = ("buffer", "dest", "header", "taken")

    def __init__(self, dest: int, header: bytes, buffer: np.ndarray, taken: asyncio.Future[None] | None) -> None:
        self.dest = dest
        self.header = header
        self.buffer = buffer
        self.taken = taken

    def release(self) -> None:
        """Let the sender go on."""
        if self.taken is not None and not self.taken.done():
            self.taken.set_result(None)

    def refuse(self, error: CommError) -> None:
        """Tell the sender that nobody will take it."""
        if self.taken is not None and not self.taken.done():
            self.taken.set_exception(error)


class MemoryTransport(Transport):
    """One rank of a `Hub`. Payloads are copied once, from the sender's array into the receiver's."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self.rank = rank
        self.closed = False
        self.mailbox: Mailbox[bytes | _Offer] = Mailbox(growing=True)
        self._hub = hub
        self._pending: set[_Offer] = set()
        self._collectives = 0

    @property
    def size(self) -> int:  # type: ignore[override]
        """Ranks so far; fixed once the hub is sealed."""
        return len(self._hub.members)

    def seal(self) -> None:
        self._hub.seal()

    async def send(self, dest: int, header: bytes, buffer: np.ndarray | None = None) -> None:
        """Send; waits until the receiver has copied `buffer`, except to oneself."""
        peer = self._peer(dest)
        if buffer is None:
            peer.mailbox.deliver(self.rank, bytes(header))
            return
        describe(buffer)
        if peer is self:
            self.mailbox.deliver(self.rank, _Offer(dest, bytes(header), buffer.copy(order="C"), None))
            return
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        offer = _Offer(dest, bytes(header), buffer, taken)
        self._pending.add(offer)
        peer.mailbox.deliver(self.rank, offer)
        try:
            await taken
        finally:
            self._pending.discard(offer)
            if taken.cancelled():
                peer.mailbox.withdraw(lambda source, item: item is offer)

    async def recv(self, source: int | None = None, into: Into = None) -> Received:
        """Take the next message; copies the payload straight from the sender's array."""
        if source is not None:
            self._peer(source, may_have_left=True)
        self._check_alive()
        while True:
            sender, item = await self.mailbox.take(source)
            if isinstance(item, bytes):
                return Received(sender, item, None)
            if item.taken is not None and item.taken.done():
                continue  # its sender was cancelled, or has left, meanwhile
            try:
                if into is None and item.taken is None:
                    return Received(sender, item.header, item.buffer)  # a copy already, of a message to oneself
                target = destination(into, item.header, describe(item.buffer))
                np.copyto(target, item.buffer)
                return Received(sender, item.header, target)
            finally:
                item.release()

    async def close(self) -> None:
        """Leave the hub: pending calls of this rank, and those of others that need it, raise Disconnected."""
        self.leave()

    def leave(self) -> None:
        """`close`, for those who cannot await."""
        if self.closed:
            return
        self.closed = True
        self.fail(self._gone)
        self._hub.left(self.rank)

    def fail(self, failure: Callable[[], CommError]) -> None:
        """End the pending calls of this rank with `failure()`, and later receives."""
        self.mailbox.fail(failure)
        for offer in self._pending:
            offer.refuse(failure())

    def give_up_on(self, rank: int) -> None:
        """`rank` has left: who sends to it waits in vain, also where a receive that was cancelled has taken the offer with it."""
        for offer in self._pending:
            if offer.dest == rank:
                offer.refuse(Disconnected(f"rank {rank} has left {self._hub}"))

    async def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        """One copy for each rank but the root."""
        await self._enter(broadcast_call(self.rank, self.size, buffer, root), _Buffers([buffer]))

    async def reduce(self, buffer: np.ndarray | None, out: np.ndarray | None = None, root: int = 0,
                     operation: Operation = "sum") -> None:
        """Combined in rank order, so that floating-point results depend on the number of ranks alone."""
        call = reduce_call(self.rank, self.size, buffer, out, root, operation)
        await self._enter(call, _Buffers([] if buffer is None else [buffer], [] if out is None else [out]))

    async def gather(self, buffer: np.ndarray, out: Sequence[np.ndarray] | None = None, root: int = 0) -> None:
        """One copy for each rank."""
        await self._enter(gather_call(self.rank, self.size, buffer, out, root), _Buffers([buffer], [] if out is None else out))

    async def alltoall(self, buffers: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        """One copy for each pair of ranks."""
        await self._enter(alltoall_call(self.size, buffers, out), _Buffers(buffers, out))

    async def barrier(self) -> None:
        """Wait until every rank is here."""
        await self._enter(barrier_call(), _Buffers())

    async def _enter(self, call: Call, buffers: _Buffers) -> None:
        self._check_alive()
        self._collectives += 1
        await self._hub.meet(self.rank, self._collectives, call, buffers)

    def _peer(self, rank: int, may_have_left: bool = False) -> MemoryTransport:
        self._check_alive()
        if not 0 <= rank < self.size:
            raise AddressError(f"there is no rank {rank} in {self._hub}, which has ranks 0 to {self.size - 1}")
        peer = self._hub.members[rank]
        if peer.closed and not may_have_left:
            raise Disconnected(f"rank {rank} has left {self._hub}")
        return peer

    def _check_alive(self) -> None:
        if self.closed:
            raise self._gone()
        self._hub.check_alive()

    def _gone(self) -> Disconnected:
        return Disconnected(f"rank {self.rank} has closed its transport")
