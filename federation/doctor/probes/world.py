"""What ranks find out together: facts of all of them at rank 0, clocks, locks, the speed of collectives."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from federation.doctor.facts import ClockFacts, Facts, RankFacts, SpeedFacts
from federation.doctor.probes.folder import locked, visit
from node_comm import Transport

Kind = TypeVar("Kind", bound=Facts)

#: Exchanges with each host, the quickest of which counts.
EXCHANGES = 20
#: Seconds for which each collective is repeated.
SECONDS = 1.0

_NEXT, _DONE = b"what time is it", b"done"


async def gather(transport: Transport, facts: Kind) -> list[Kind]:
    """The facts of every rank, by rank, at rank 0; nothing elsewhere. They travel as JSON."""
    text = np.frombuffer(msgspec.json.encode(facts), np.uint8)
    lengths = [np.zeros(1, np.int64) for _ in range(transport.size)]
    await transport.gather(np.array([text.size], np.int64), lengths if transport.rank == 0 else None)
    if transport.rank:
        await transport.gather(text)
        return []
    texts = [np.zeros(int(length[0]), np.uint8) for length in lengths]
    await transport.gather(text, texts)
    return [msgspec.json.decode(each.tobytes(), type=type(facts)) for each in texts]


async def share(transport: Transport, number: int = 0) -> int:
    """Rank 0's `number`, on every rank."""
    held = np.array([number], np.int64)
    await transport.broadcast(held)
    return int(held[0])


async def share_text(transport: Transport, text: str = "") -> str:
    """Rank 0's `text`, on every rank."""
    held = np.frombuffer(text.encode(), np.uint8)
    length = await share(transport, held.size)
    held = held if transport.rank == 0 else np.zeros(length, np.uint8)
    await transport.broadcast(held)
    return held.tobytes().decode()


async def compare_clocks(transport: Transport, ranks: list[RankFacts]) -> list[ClockFacts]:
    """The clocks of all hosts but rank 0's, against rank 0's; `ranks` are known there alone. Nothing elsewhere.

    The midpoint of an exchange is taken for the moment at which the other answered (Cristian 1989), so that half of the
    exchange's time is the uncertainty.
    """
    if transport.rank:
        while (await transport.recv(0)).header == _NEXT:
            await transport.send(0, _NEXT, np.array([time.time()]))
        return []
    found = []
    first: Mapping[str, int] = {rank.host: rank.rank for rank in reversed(ranks)}
    for host, rank in first.items():
        if rank:
            exchanges = [await _exchange(transport, rank) for _ in range(EXCHANGES)]
            uncertainty, ahead = min(exchanges)
            found.append(ClockFacts(host=host, ahead=ahead, uncertainty=uncertainty))
    for rank in range(1, transport.size):
        await transport.send(rank, _DONE)
    return found


async def _exchange(transport: Transport, rank: int) -> tuple[float, float]:
    """Half of the time that an exchange took, and how far the other clock was ahead in its middle."""
    began, start = time.time(), time.perf_counter()
    await transport.send(rank, _NEXT)
    theirs = (await transport.recv(rank)).buffer
    half = (time.perf_counter() - start) / 2
    assert theirs is not None
    return half, float(theirs[0]) - (began + half)


async def visit_lock(transport: Transport, path: Path | None) -> tuple[list[int], list[int]]:
    """Ranks that do not see rank 0's file `path`, and ranks that get a lock on it while rank 0 holds one.

    Known at rank 0 alone, like `path` (None: there is no such file).
    """
    name = await share_text(transport, "" if path is None else str(path))
    if not name:
        return [], []
    found = np.zeros(1, np.int64)
    everyone = [np.zeros(1, np.int64) for _ in range(transport.size)] if transport.rank == 0 else None
    if path is not None:
        with locked(path):
            await transport.barrier()
            await transport.gather(found, everyone)
    else:
        await transport.barrier()
        found[0] = {"locked out": 0, "does not see it": 1, "gets the lock": 2}[visit(Path(name))]
        await transport.gather(found, everyone)
    codes = [int(code[0]) for code in everyone or ()]
    return ([rank for rank, code in enumerate(codes) if code == 1], [rank for rank, code in enumerate(codes) if code == 2])


async def measure(transport: Transport, nbytes: int, seconds: float = SECONDS) -> list[SpeedFacts]:
    """Broadcasts and reductions of `nbytes` (rank 0's counts), each for `seconds` or more; the same at every rank."""
    nbytes = await share(transport, nbytes)
    buffer = transport.allocate((max(1, nbytes // 8),), np.dtype(np.int64))
    out = transport.allocate(buffer.shape, buffer.dtype) if transport.rank == 0 else None
    buffer[:] = 1

    async def one(operation: str) -> None:
        await (transport.broadcast(buffer) if operation == "broadcast" else transport.reduce(buffer, out))

    found = []
    for operation in ("broadcast", "reduce"):
        await one(operation)  # makes connections
        first = await _timed(transport, 1, one, operation)
        count = await share(transport, math.ceil(seconds / max(first, 1e-6)))
        found.append(SpeedFacts(operation=operation, nbytes=buffer.nbytes,
                                seconds=await _timed(transport, count, one, operation) / count))
    return found


async def _timed(transport: Transport, count: int, one: Callable[[str], Awaitable[None]], operation: str) -> float:
    """Seconds that `count` collectives take, from when every rank is there."""
    await transport.barrier()
    began = time.perf_counter()
    for _ in range(count):
        await one(operation)
    await transport.barrier()
    return time.perf_counter() - began
