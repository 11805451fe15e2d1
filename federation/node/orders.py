"""Orders to the ranks, and what they report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from federation.errors import RoundError
from federation.node.members import PATIENCE
from node_comm import CommError, Disconnected
from node_comm.message import Message
from node_comm.node import Node, give_up

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)
Order = TypeVar("Order", bound=Message)
#: What a question to a rank brings: its reply, and the array beside it.
Answer = tuple[Message, np.ndarray | None]


class Orders:
    """Gives the ranks of one world their orders over `node`, which is rank 0's, and waits for the reports.

    Ranks do one order after the other, so an order may go out before the reports of the one before are in; the time for
    its own begins when those are. Each step of a round may take `round_timeout` seconds.
    """

    def __init__(self, node: Node, round_timeout: float | None) -> None:
        self.node = node
        self.round_timeout = round_timeout
        self._last: asyncio.Task[Any] | None = None  # what ranks have to do, or to get, before anything new
        self.jobs: Collection[asyncio.Task[None]] = ()  # what ranks have been given to do beside orders

    @property
    def patience(self) -> float | None:
        """Seconds that a step of a round may take. A rank that others can do without has ended itself before that."""
        if self.round_timeout is None or not self.node.transport.recoverable:
            return self.round_timeout
        return 1.25 * self.round_timeout + 1.0

    @asynccontextmanager
    async def deadline(self, round: int, what: str) -> AsyncIterator[None]:
        """Give the block that long; after that RoundError naming `what`, or Disconnected where ranks can be done without."""
        try:
            async with asyncio.timeout(self.patience):
                yield
        except TimeoutError:
            raise self.overdue(f"round {round}: {what} took longer than round_timeout={self.round_timeout:g} s") from None

    async def tell(self, ranks: Sequence[int], message: Message) -> None:
        """Send `message` to `ranks`, one after the other: without an array, it waits for nobody in a closed world."""
        for rank in ranks:
            await self.node.send(rank, message)

    async def request(self, rank: int, message: Message, reply: type[R],
                      into: np.ndarray | None = None) -> tuple[R, np.ndarray | None]:
        """Ask one other rank for what it has; its reply, and the array beside it, which is written `into` one if given."""
        answer, array = await self.node.request(rank, message, into=into, timeout=self.patience)
        return expect(answer, reply), array

    async def give(self, orders: Mapping[int, Order], reply: type[R], here: Callable[[Order], Awaitable[R]], round: int,
                   into: Mapping[int, np.ndarray] = MappingProxyType({})) -> asyncio.Task[dict[int, R]]:
        """Give each rank its order; returns, once they are out, what brings the reports by rank.

        This rank's own is done by `here`. What a rank has beside its report goes `into` its array.
        """
        return self.await_reports(await self.ask(orders, here, round, into), reply, round)

    async def ask(self, orders: Mapping[int, Order], here: Callable[[Order], Awaitable[Message]], round: int,
                  into: Mapping[int, np.ndarray] = MappingProxyType({})) -> dict[int, asyncio.Future[Answer]]:
        """The first half of `give`: returns, once the orders are out, what each report comes in."""
        answers: dict[int, asyncio.Future[Answer]] = {}
        try:
            async with self.deadline(round, "giving the ranks their orders"):
                for rank, order in orders.items():  # one after the other, as in `tell`
                    answers[rank] = await self.ask_one(rank, order, here, into.get(rank))
        except BaseException:
            await give_up(*answers.values())
            raise
        return answers

    async def ask_one(self, rank: int, order: Order, here: Callable[[Order], Awaitable[Message]],
                      into: np.ndarray | None = None) -> asyncio.Future[Answer]:
        """`ask` of a single rank, which may be this one."""
        if rank:
            return await self.node.ask(rank, order, into=into)

        async def work() -> Answer:
            return await here(order), None

        return asyncio.create_task(work())

    def await_reports(self, answers: Mapping[int, asyncio.Future[Answer]], reply: type[R],
                      round: int) -> asyncio.Task[dict[int, R]]:
        """The second half of `give`: what brings the reports, of which this rank's is one, by rank."""
        reporting = asyncio.create_task(self._reports(answers, reply, round, self.before(self.jobs)))
        self._last = reporting
        return reporting

    def follow(self, moving: asyncio.Task[Any]) -> None:
        """Orders from now on are done when what is `moving` has arrived, and the time for them begins then."""
        self._last = moving

    def before(self, jobs: Collection[asyncio.Task[None]]) -> list[asyncio.Task[Any]]:
        """What ranks do before anything new: the last order, and these jobs."""
        return [task for task in (*jobs, self._last) if task is not None and not task.done()]

    async def turn(self, work: asyncio.Future[Any], before: Collection[asyncio.Task[Any]]) -> None:
        """Wait until what comes `before` is done (or `work` already): the time for `work` begins then."""
        if before:
            rest = asyncio.create_task(asyncio.wait(before))
            try:
                await self.node.attend(asyncio.wait({work, rest}, return_when=asyncio.FIRST_COMPLETED))
            finally:
                rest.cancel()

    async def settle(self) -> None:
        """Wait until nobody has an order to do, whatever came of it."""
        if self._last is not None:
            await asyncio.wait({self._last})

    async def _reports(self, answers: Mapping[int, asyncio.Future[Answer]], reply: type[R], round: int,
                       before: Collection[asyncio.Task[Any]]) -> dict[int, R]:
        """Wait for the reports of these ranks, once what comes `before` is done."""

        def silent() -> str:
            return ", ".join(f"rank {rank}" + (f" (last heard from {self.node.silence(rank):.0f} s ago)" if rank else "")
                             for rank, answer in answers.items() if not answer.done())

        saying = Reminder(round, silent)
        try:
            if before:
                await asyncio.wait(before)
            _, late = await asyncio.wait(answers.values(), timeout=self.patience, return_when=asyncio.FIRST_EXCEPTION)
            for answer in answers.values():
                if answer.done():
                    answer.result()
            if late:
                raise self.overdue(f"round {round}: no report within round_timeout={self.round_timeout:g} s from "
                                    f"{silent()}", answers[0] in late)
            return {rank: expect(answer.result()[0], reply) for rank, answer in answers.items()}
        finally:
            saying.cancel()
            await give_up(*answers.values())

    def overdue(self, text: str, is_here: bool = False) -> Exception:
        """What to raise after that time; `is_here`: this very rank has not done its share."""
        return Disconnected(text) if self.node.transport.recoverable and not is_here else RoundError(text)


class Reminder:
    """Says every 30 s who is waited for (`late` names them), until `cancel`."""

    def __init__(self, round: int, late: Callable[[], str]) -> None:
        self._round = round
        self._late = late
        self._wait()

    def _wait(self) -> None:
        self._next = asyncio.get_running_loop().call_later(PATIENCE, self._say)

    def _say(self) -> None:
        self._wait()
        logger.info("round %d: waiting for %s", self._round, self._late())

    def cancel(self) -> None:
        """Say nothing more."""
        self._next.cancel()


def expect(message: Message, wanted: type[R]) -> R:
    """`message`, which must be a `wanted`."""
    if not isinstance(message, wanted):
        raise CommError(f"a rank answered with {type(message).__name__}; wanted {wanted.__name__}")
    return message
