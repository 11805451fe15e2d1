"""A rank's mailbox: what has arrived and was not yet taken, and who waits for it."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from node_comm.errors import CommError, Disconnected

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Items by source, in the order of arrival. One event loop owns it.

    While it is `growing`, further sources may appear, so that a receiver of anything waits although all have left.
    """

    def __init__(self, growing: bool = False) -> None:
        self.growing = growing
        self._numbers = itertools.count()
        self._items: dict[int, tuple[int, Item]] = {}  # by number of arrival, oldest first
        self._by_source: dict[int, deque[int]] = {}
        self._receivers: list[tuple[int | None, asyncio.Future[tuple[int, Item]]]] = []
        self._open: set[int] = set()
        self._left: set[int] = set()
        self._failure: Callable[[], CommError] | None = None

    def expect(self, source: int) -> None:
        """`source` is a peer that may send."""
        self._open.add(source)

    def deliver(self, source: int, item: Item) -> None:
        """Hand `item` to the first receiver that waits for it, or keep it."""
        receiver = self._receiver_for(source)
        if receiver is not None:
            receiver.set_result((source, item))
            return
        number = next(self._numbers)
        self._items[number] = (source, item)
        self._by_source.setdefault(source, deque()).append(number)

    async def take(self, source: int | None) -> tuple[int, Item]:
        """The oldest item of `source`, or of all; raises Disconnected, or what `fail` says, when none can come."""
        if self._failure is not None:
            raise self._failure()
        number = self._oldest(source)
        if number is not None:
            return self._remove(number)
        if self._is_over(source):
            raise self._over(source)
        receiver: asyncio.Future[tuple[int, Item]] = asyncio.get_running_loop().create_future()
        self._receivers.append((source, receiver))
        try:
            return await receiver
        except asyncio.CancelledError:
            if receiver.done() and not receiver.cancelled() and receiver.exception() is None:
                self._put_back(*receiver.result())
            raise

    def withdraw(self, unwanted: Callable[[int, Item], bool]) -> None:
        """Remove the items for which `unwanted(source, item)` holds."""
        for number in [number for number, entry in self._items.items() if unwanted(*entry)]:
            source, _ = self._items.pop(number)
            self._taken(source, number)

    def leave(self, source: int) -> None:
        """`source` sends no more: who waits for it, or for anything when all peers have left, gets Disconnected."""
        self._open.discard(source)
        self._left.add(source)
        self.settle()

    def forget(self, source: int) -> None:
        """Nobody asks for `source`, which has left, any more: whoever did would wait as for one that has yet to appear."""
        self._left.discard(source)

    def holds(self, source: int) -> bool:
        """Whether something of `source` is there to be taken."""
        return source in self._by_source

    def settle(self) -> None:
        """Release the receivers to whom nothing can come any more."""
        for source, receiver in self._receivers:
            if self._is_over(source) and not receiver.done():
                receiver.set_exception(self._over(source))
        self._forget_released()

    def fail(self, failure: Callable[[], CommError]) -> None:
        """End the mailbox: pending and later `take` raise a new `failure()` each; the first failure stays."""
        if self._failure is None:
            self._failure = failure
        self._items.clear()
        self._by_source.clear()
        for _, receiver in self._receivers:
            if not receiver.done():
                receiver.set_exception(self._failure())
        self._receivers.clear()

    def _receiver_for(self, source: int) -> asyncio.Future[tuple[int, Item]] | None:
        self._forget_released()
        for index, (wanted, receiver) in enumerate(self._receivers):
            if wanted is None or wanted == source:
                del self._receivers[index]
                return receiver
        return None

    def _forget_released(self) -> None:
        self._receivers = [entry for entry in self._receivers if not entry[1].done()]

    def _oldest(self, source: int | None) -> int | None:
        if source is None:
            return next(iter(self._items), None)
        numbers = self._by_source.get(source)
        return None if numbers is None else numbers[0]

    def _remove(self, number: int) -> tuple[int, Item]:
        source, item = self._items.pop(number)
        self._taken(source, number)
        return source, item

    def _taken(self, source: int, number: int) -> None:
        numbers = self._by_source[source]
        numbers.remove(number)  # mostly the first: the oldest of all is also the oldest of its source
        if not numbers:  # it may never send again
            del self._by_source[source]

    def _put_back(self, source: int, item: Item) -> None:
        """Return an item whose receiver was cancelled to the head of the queue."""
        if self._failure is not None:
            return
        receiver = self._receiver_for(source)
        if receiver is not None:
            receiver.set_result((source, item))
            return
        number = min(self._items, default=next(self._numbers)) - 1
        self._items = {number: (source, item), **self._items}
        self._by_source.setdefault(source, deque()).appendleft(number)

    def _is_over(self, source: int | None) -> bool:
        if source is None:
            return bool(self._left) and not self._open and not self.growing
        return source in self._left

    def _over(self, source: int | None) -> Disconnected:
        return Disconnected("all other ranks have left this world" if source is None else
                            f"rank {source} has left this world")
