"""Jobs of asynchronous training: how long a rank may take for each."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from federation.core.weights import Weights
from federation.errors import RoundError
from federation.node.delivery import _sent
from federation.node.jobs import Job, Jobs
from federation.node.orders import Orders
from federation.node.protocol import Moved, Train, Trained
from federation.node.proxy import ClientProxy
from node_comm import Disconnected
from tests.node.worlds import f32


class Server:
    """A server whose ranks answer when the test says so. Counts the clocks that run for them."""

    def __init__(self, round_timeout: float | None = None, is_recoverable: bool = False) -> None:
        node: Any = SimpleNamespace(transport=SimpleNamespace(recoverable=is_recoverable), request=self.request, attend=self.attend)
        server, self.clocks = self, 0

        class Watched(Orders):
            @property
            def patience(self) -> float | None:
                server.clocks += 1
                return round_timeout

        self.node, self.orders, self.round_timeout = node, Watched(node, round_timeout), round_timeout
        self.members = SimpleNamespace(hosting=[0, 1, 2])
        self.host = SimpleNamespace(train=self.train)
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.open = threading.Event()

    async def request(self, rank: int, order: Train, buffer: Any, into: Any) -> Any:
        self.answers[order.number] = asyncio.get_running_loop().create_future()
        return await self.answers[order.number], None

    async def attend(self, work: Any) -> Any:
        return await work

    def train(self, order: Train, start: Weights, out: Weights) -> Trained:
        assert self.open.wait(20)
        return Trained(num_samples=1)


def job(number: int, rank: int) -> Job:
    return Job(number, ClientProxy(f"client_{number}", 1, rank), Weights.of({"w": f32(0)}), number)


def in_jobs(server: Server, program: Any) -> None:
    async def main() -> None:
        async with Jobs(server) as jobs:  # type: ignore[arg-type]
            await program(jobs)

    asyncio.run(main())


async def settled() -> None:
    """All has been done that can be done without an answer."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_time_for_a_job_begins_when_the_one_before_it_is_done():
    """On the same rank, which has got both already."""
    server = Server(round_timeout=100)

    async def program(jobs: Jobs) -> None:
        results = [jobs.submit(job(number, rank)) for number, rank in enumerate((1, 1, 2), 1)]
        await settled()
        assert (list(server.answers), server.clocks) == ([1, 2, 3], 2)
        server.answers[1].set_result(Trained(num_samples=1))
        await settled()
        assert (results[0].done(), server.clocks) == (True, 3)
        for number in (2, 3):
            server.answers[number].set_result(Trained(num_samples=number))
        assert [(await result).report.num_samples for result in results] == [1, 2, 3]

    in_jobs(server, program)


def test_the_time_for_orders_and_jobs_begins_when_what_came_before_is_done():
    """An order to evaluate, say, and the broadcast before it, wait in a rank's queue behind two jobs, and the next job behind
    them. What has come already waits for nothing."""
    server = Server(round_timeout=100)

    async def program(jobs: Jobs) -> None:
        loop, orders = asyncio.get_running_loop(), server.orders
        first = jobs.submit(job(1, 1))
        await settled()
        weights, report = loop.create_future(), loop.create_future()
        arriving = asyncio.create_task(_sent(orders, [weights], orders.before(orders.jobs), 1))
        reporting = orders.await_reports({1: report}, Moved, 1)
        second, third = jobs.submit(job(2, 2)), jobs.submit(job(3, 2))
        await settled()
        assert server.clocks == 1
        server.answers[1].set_result(Trained(num_samples=1))
        await settled()
        assert (first.done(), server.clocks) == (True, 3)
        server.answers[2].set_result(Trained(num_samples=1))
        await settled()
        assert (second.done(), server.clocks) == (True, 4)
        weights.set_result(None)
        report.set_result((Moved(), None))
        await arriving
        await reporting
        await settled()
        assert server.clocks == 5
        server.answers[3].set_result(Trained(num_samples=1))
        await third

    in_jobs(server, program)


@pytest.mark.parametrize(("rank", "is_recoverable", "error"), [
    (1, False, RoundError), (1, True, Disconnected), (0, False, RoundError), (0, True, RoundError)])
def test_a_job_that_takes_too_long(rank, is_recoverable, error):
    """Where ranks can be done without, another one is lost; this one ends the run in any case."""
    server = Server(round_timeout=0.05, is_recoverable=is_recoverable)

    async def program(jobs: Jobs) -> None:
        with pytest.raises(error, match=rf"client_1 took longer than round_timeout=0\.05 s on rank {rank}"):
            await jobs.submit(job(1, rank))

    try:
        in_jobs(server, program)
    finally:
        server.open.set()
