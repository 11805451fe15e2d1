"""Orders to ranks: who is given which, who is waited for and how long, and what is left of them when something goes wrong."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from federation.node.orders import Orders
from federation.node.protocol import Moved
from node_comm import Disconnected


def orders_over(ask: Any, round_timeout: float | None = None, is_recoverable: bool = False) -> Orders:
    """Those of a world whose other ranks are asked by `ask`."""
    node: Any = SimpleNamespace(ask=ask, transport=SimpleNamespace(recoverable=is_recoverable), silence=lambda rank: 7.0)
    return Orders(node, round_timeout)


def test_orders_that_cannot_all_be_given_leave_nothing_at_work():
    """This rank, which has its own already, does not go on behind the back of who gave it, and an asked one is not waited for."""
    asked: list[asyncio.Future[Any]] = []

    async def ask(rank, order, into=None):
        await asyncio.sleep(0)  # what this rank does has begun
        if rank == 2:
            raise Disconnected("rank 2 is lost")
        asked.append(asyncio.get_running_loop().create_future())
        return asked[0]

    async def main() -> None:
        work = asyncio.Event()

        async def here(order):
            await work.wait()

        with pytest.raises(Disconnected, match="rank 2 is lost"):
            await orders_over(ask).give(dict.fromkeys(range(4), Moved()), Moved, here, 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [answer.cancelled() for answer in asked] == [True]

    asyncio.run(main())
