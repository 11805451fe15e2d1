"""The global weights on their way from the server to the other ranks of a closed world."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from federation.node.orders import Orders
from federation.node.protocol import WeightsFollow
from node_comm import Transport
from node_comm.node import give_up, look_at


class Delivery:
    """One set of weights at a time. Orders may go out meanwhile: ranks obey them with the new weights."""

    def __init__(self) -> None:
        self._moving: asyncio.Task[None] | None = None

    async def begin(self, orders: Orders, order: WeightsFollow, buffer: np.ndarray, ranks: Sequence[int], round: int) -> None:
        """Send `order` and `buffer` to `ranks`; returns once `orders` may follow.

        `buffer` is borrowed until they have `arrived`, or the next `begin` where ranks read it where it lies.
        """
        node = orders.node
        node.transport.seal()
        place = node.transport.place_of(buffer)
        if place is not None:
            for rank in ranks:
                node.send_with_next(rank, msgspec.structs.replace(order, place=place))
            return
        is_sent = is_direct(buffer.nbytes, ranks, node.transport)
        if not is_sent:
            async with orders.deadline(round, "announcing the weights"):
                await orders.tell(ranks, order)
        sending = [node.send(rank, order, buffer) for rank in ranks] if is_sent else [node.transport.broadcast(buffer, root=0)]
        before = orders.before(orders.jobs)
        moving = asyncio.create_task(_sent(orders, [asyncio.create_task(each) for each in sending], before, round))
        moving.add_done_callback(look_at)  # reports do not come then either
        self._moving = moving
        orders.follow(moving)
        await asyncio.sleep(0)  # all have begun: what is sent after them arrives after them

    async def arrived(self) -> None:
        """Wait until every rank has the weights of the last `begin`."""
        moving, self._moving = self._moving, None
        if moving is not None:
            await moving


def is_direct(nbytes: int, ranks: Sequence[int], transport: Transport) -> bool:
    """Whether an array of `nbytes` goes to or comes from each of `ranks` in messages, rather than in a collective."""
    return nbytes * len(ranks) <= transport.direct_bytes


async def _sent(orders: Orders, sending: Sequence[asyncio.Task[None]], before: Sequence[asyncio.Task[Any]], round: int) -> None:
    arriving = asyncio.gather(*sending)
    try:
        await orders.turn(arriving, before)
        async with orders.deadline(round, "the broadcast of the weights"):
            await orders.node.attend(arriving)
    finally:
        await give_up(arriving)
