"""Orders to ranks: who is given which, who is waited for and how long, and what is left of them when something goes wrong."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from federation.errors import RoundError
from federation.node.orders import Orders
from federation.node.protocol import Combined, Leave, Moved
from node_comm import CommError, Disconnected, memory
from node_comm.node import Node, RemoteFailure
from tests.node.worlds import f32


def orders_over(ask: Any, round_timeout: float | None = None, is_recoverable: bool = False) -> Orders:
    """Those of a world whose other ranks are asked by `ask`."""
    node: Any = SimpleNamespace(ask=ask, transport=SimpleNamespace(recoverable=is_recoverable), silence=lambda rank: 7.0)
    return Orders(node, round_timeout)


async def turns(count: int = 10) -> None:
    """Let whoever can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


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


@pytest.mark.parametrize(("round_timeout", "is_recoverable", "patience"),
                         [(None, False, None), (None, True, None), (8.0, False, 8.0), (8.0, True, 11.0)])
def test_a_rank_that_ends_itself_has_done_so_before_the_server_loses_patience(round_timeout, is_recoverable, patience):
    assert orders_over(None, round_timeout, is_recoverable).patience == patience


@pytest.mark.parametrize(("is_recoverable", "error"), [(False, RoundError), (True, Disconnected)])
def test_a_step_that_takes_too_long_is_named(monkeypatch, is_recoverable, error):
    """Where ranks can be done without, some are lost; else the run is over. An error that comes in time is itself."""
    orders = orders_over(None, 0.01, is_recoverable)
    monkeypatch.setattr(Orders, "patience", 0.01)

    async def main() -> None:
        with pytest.raises(error, match=r"^round 3: the reduction took longer than round_timeout=0\.01 s$"):
            async with orders.deadline(3, "the reduction"):
                await asyncio.Event().wait()
        with pytest.raises(KeyError):
            async with orders.deadline(3, "the reduction"):
                raise KeyError("another")

    asyncio.run(main())


def test_one_rank_is_asked_for_so_long_and_must_answer_what_it_is_asked():
    asked: list[tuple[Any, ...]] = []

    async def request(rank, message, into=None, timeout=None):
        asked.append((rank, message, into, timeout))
        return Moved(), into

    async def main() -> None:
        orders = orders_over(None, 8.0, is_recoverable=True)
        orders.node.request = request  # type: ignore[method-assign]
        into = f32(0)
        assert await orders.request(2, Leave(), Moved, into) == (Moved(), into)
        assert asked == [(2, Leave(), into, orders.patience)]
        with pytest.raises(CommError, match="a rank answered with Moved; wanted Combined"):
            await orders.request(2, Leave(), Combined)

    asyncio.run(main())


def test_reports_are_of_the_kind_that_was_ordered():
    async def main() -> None:
        async def here(order):
            return Moved()

        async def ask(rank, order, into=None):
            return asyncio.ensure_future(asyncio.sleep(0, (Combined(limbs=1), None)))

        reporting = await orders_over(ask).give(dict.fromkeys(range(2), Moved()), Moved, here, 1)
        with pytest.raises(CommError, match="a rank answered with Combined; wanted Moved"):
            await reporting

    asyncio.run(main())


def test_who_is_late_is_named_with_the_round_and_since_when():
    """This rank, which hears nothing of itself, is named without; those who have reported are not."""
    async def main() -> None:
        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        futures[1].set_result((Moved(), None))

        async def ask(rank, order, into=None):
            return futures[rank]

        async def here(order):
            await futures[0]

        reporting = await orders_over(ask, 0.01).give(dict.fromkeys(range(3), Moved()), Moved, here, 5)
        with pytest.raises(RoundError, match=r"^round 5: no report .* from rank 0, rank 2 \(last heard from 7 s ago\)$"):
            await reporting
        assert futures[2].cancelled(), "nobody waits for it any more"

    asyncio.run(main())


@pytest.mark.parametrize(("late", "error"), [(0, RoundError), (1, Disconnected)])
def test_a_late_rank_is_lost_where_ranks_can_be_done_without(monkeypatch, late, error):
    """But not this one, without which there is no run."""
    monkeypatch.setattr(Orders, "patience", 0.01)

    async def main() -> None:
        answers = {rank: asyncio.get_running_loop().create_future() for rank in range(2)}
        answers[1 - late].set_result((Moved(), None))
        with pytest.raises(error, match=rf"from rank {late}"):
            await orders_over(None, 0.01, is_recoverable=True).await_reports(answers, Moved, 1)

    asyncio.run(main())


def test_an_error_is_not_held_back_by_others_at_work():
    """And whoever waits until nobody has an order to do is not told of it."""
    async def main() -> None:
        orders = orders_over(None)
        await orders.settle()
        answers = {rank: asyncio.get_running_loop().create_future() for rank in range(3)}
        reporting = orders.await_reports(answers, Moved, 1)
        answers[1].set_exception(RemoteFailure("rank 1: deliberate"))
        await turns()
        assert reporting.done()
        assert answers[2].cancelled()
        await orders.settle()
        with pytest.raises(RemoteFailure, match="deliberate"):
            await reporting

    asyncio.run(main())


def test_who_waits_for_a_turn_hears_of_the_end_of_the_world_and_leaves_nothing_behind():
    async def main() -> None:
        node = Node(memory.world(1)[0], [])
        orders = Orders(node, None)
        before, work = asyncio.create_task(asyncio.Event().wait()), asyncio.get_running_loop().create_future()
        first, second = (asyncio.create_task(orders.turn(each, [before]))
                         for each in (work, asyncio.get_running_loop().create_future()))
        await turns()
        work.set_result(None)
        await turns()
        assert (first.done(), second.done()) == (True, False)
        node.fail(Disconnected("the world is lost"))
        await turns()
        assert second.done()
        with pytest.raises(Disconnected, match="the world is lost"):
            await second
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task(), before}
        before.cancel()

    asyncio.run(main())


def test_who_is_waited_for_is_said_again_and_again_until_all_have_reported(caplog):
    """The clock is the test's: so is when it is time."""
    calls: list[tuple[float, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        handles: list[SimpleNamespace] = []

        def call_later(seconds, say):
            calls.append((seconds, say))
            handles.append(SimpleNamespace(cancel=lambda: cancelled.append(len(calls))))
            return handles[-1]

        cancelled: list[int] = []
        loop.call_later = call_later  # type: ignore[method-assign,assignment]
        answers = {rank: loop.create_future() for rank in range(3)}
        reporting = orders_over(None).await_reports(answers, Moved, 4)
        await turns()
        answers[0].set_result((Moved(), None))
        for _ in range(2):
            calls[-1][1]()
        assert [seconds for seconds, _ in calls] == [30, 30, 30]
        for rank in (1, 2):
            answers[rank].set_result((Moved(), None))
        await reporting
        assert cancelled == [3], "the one that was to come"

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    told = "round 4: waiting for rank 1 (last heard from 7 s ago), rank 2 (last heard from 7 s ago)"
    assert [record.getMessage() for record in caplog.records] == [told] * 2
