"""Clients that train each from weights of their own, on whichever rank has room: the engine of asynchronous training."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from federation.core.weights import Weights
from federation.errors import UpdateError
from federation.node.compute import compute
from federation.node.orders import expect
from federation.node.protocol import Train, Trained
from federation.node.proxy import ClientProxy
from federation.node.server import ServerNode
from node_comm.node import give_up, look_at

#: Jobs that a rank is given at a time: one that it trains, and one that waits, so that it never idles.
PER_RANK = 2


@dataclass(frozen=True)
class Job:
    """One client's training. `number` is its place among all jobs of the run, which its random draws are keyed by.

    `start` is borrowed until the job is done. `urgency`: the lowest is sent first.
    """

    number: int
    client: ClientProxy
    start: Weights
    urgency: float
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What came of a job: the client's weights after training (owned; None where it failed), and the report."""

    weights: Weights | None
    report: Trained


class Jobs:
    """Sends jobs to ranks, at most `PER_RANK` to each at a time. An asynchronous context manager.

    Where its block ends without an error, jobs that ranks have are waited for and forgotten; others are dropped.
    """

    def __init__(self, server: ServerNode) -> None:
        self._server = server
        self._waiting: list[tuple[float, int, Job]] = []
        self._results: dict[int, asyncio.Future[Done]] = {}
        self._running: dict[asyncio.Task[None], int] = {}

    def submit(self, job: Job) -> asyncio.Future[Done]:
        """Have `job` done; the future holds what came of it, or raises what ended its rank, or RoundError where that takes
        longer than `round_timeout` (Disconnected in a world that outlives the loss of ranks)."""
        heapq.heappush(self._waiting, (job.urgency, job.number, job))
        self._results[job.number] = asyncio.get_running_loop().create_future()
        result = self._results[job.number]
        result.add_done_callback(look_at)  # another error may have ended the run
        self._hand_out()
        return result

    async def __aenter__(self) -> Jobs:
        self._server.orders.jobs = self._running.keys()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._waiting.clear()
        if error is None:
            # A send that is cut off would leave the transport unusable.
            await asyncio.gather(*self._running, return_exceptions=True)
        for task in self._running:
            task.cancel()
        for result in self._results.values():
            result.cancel()

    def _hand_out(self) -> None:
        """Start the most urgent jobs for which there is room."""
        held: list[tuple[float, int, Job]] = []
        while self._waiting:
            entry = heapq.heappop(self._waiting)
            rank = self._room_for(entry[2].client)
            if rank is None:
                held.append(entry)
                if entry[2].client.rank is None:
                    break  # no rank has room
                continue
            before = self._server.orders.before([other for other, at in self._running.items() if at == rank])
            task = asyncio.create_task(self._run(entry[2], rank, before), name=f"job {entry[1]} on rank {rank}")
            self._running[task] = rank
            task.add_done_callback(self._finished)
        for entry in held:
            heapq.heappush(self._waiting, entry)

    def _room_for(self, client: ClientProxy) -> int | None:
        ranks = self._server.members.hosting if client.rank is None else [client.rank]
        loads = {rank: list(self._running.values()).count(rank) for rank in ranks}
        rank = min(loads, key=lambda rank: (loads[rank], rank))
        return rank if loads[rank] < PER_RANK else None

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled():
            self._hand_out()

    async def _run(self, job: Job, rank: int, before: Sequence[asyncio.Task[Any]]) -> None:
        result = self._results[job.number]
        try:
            done = await self._train(job, rank, before)
        except Exception as error:
            if not result.done():
                result.set_exception(error)
        else:
            if not result.done():
                result.set_result(done)
        finally:
            self._results.pop(job.number, None)

    async def _train(self, job: Job, rank: int, before: Sequence[asyncio.Task[Any]]) -> Done:
        """Have `rank` do `job`; the time for it begins when what it does `before` is done."""
        server, out = self._server, Weights.zeros(job.start.layout)
        order = Train(client_id=job.client.client_id, number=job.number, config=dict(job.config))
        training = asyncio.create_task(self._ask(rank, order, job.start, out))
        try:
            await server.orders.turn(training, before)
            async with asyncio.timeout(server.orders.patience):
                report = await training
        except TimeoutError:
            raise server.orders.overdue(f"{order.client_id} took longer than round_timeout={server.round_timeout:g} s on "
                                        f"rank {rank}", is_here=rank == 0) from None
        finally:
            await give_up(training)
        if report.refused:
            raise UpdateError(report.refused)
        return Done(None if report.problem else out, report)

    async def _ask(self, rank: int, order: Train, start: Weights, out: Weights) -> Trained:
        server = self._server
        if rank == 0:
            return await compute(server.host.train, order, start, out)
        answer, _ = await server.node.request(rank, order, start.buffer, into=out.buffer)
        return expect(answer, Trained)
