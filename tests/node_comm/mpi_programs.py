"""What ranks do in tests of whole jobs: ``mpirun -n 3 python -m tests.node_comm.mpi_programs NAME [ARGUMENT ...]``."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Set
from functools import partial
from typing import Any

import numpy as np

from node_comm import Disconnected, mpi
from node_comm.mpi import MPITransport


async def ring(transport: MPITransport, rounds: str, *sizes: str) -> None:
    """All ranks send at once, to both sides, then share a sum; rank 0 prints it."""
    for size in map(int, sizes):
        for number in range(int(rounds)):
            mine = np.full(size, transport.rank + number, np.float64)
            neighbours = {(transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size}
            received = await asyncio.gather(*(transport.recv(rank) for rank in neighbours),
                                            *(transport.send(rank, b"%d" % number, mine) for rank in neighbours))
            for message in received[:len(neighbours)]:
                assert message.header == b"%d" % number
                assert (message.buffer == message.source + number).all()
            total = np.zeros(size)
            await transport.reduce(mine, total)
            await transport.broadcast(total)
            assert (total == sum(range(transport.size)) + number * transport.size).all()
        if transport.rank == 0:
            print(f"{size} values: {total[0]:g}", flush=True)


async def fail(transport: MPITransport, how: str, *ranks: str) -> None:
    """The given ranks fail, the others wait for them."""
    await transport.barrier()
    if str(transport.rank) in ranks:
        match how:
            case "raise":
                raise ValueError(f"rank {transport.rank} was told to fail")
            case "import":
                importlib.import_module("a_module_of_the_user_that_is_not_there")
            case "in_a_task":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fail(transport, "raise", *ranks))
                    tasks.create_task(transport.recv())
            case "while_computing":
                asyncio.get_running_loop().run_in_executor(None, time.sleep, 1000)
                raise ValueError(f"rank {transport.rank} was told to fail")
            case _:
                raise SystemExit(int(how) if how.isdecimal() else how)
    await transport.barrier()
    await transport.recv()


def connections() -> set[int]:
    """This process's connected TCP sockets, by descriptor."""
    found = set()
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # not connected, or the listing's own
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    copy.getpeername()
                    if copy.family in (socket.AF_INET, socket.AF_INET6):
                        found.add(descriptor)
    return found


class SlowEnd:
    """A communicator whose Abort closes this rank's connections long before the launcher hears of it."""

    def __init__(self, comm: Any, launchers: Set[int]) -> None:
        self._comm = comm
        self._launchers = launchers

    def Abort(self, status: int) -> None:
        own = connections() - self._launchers
        print(f"closing {len(own)} connections", flush=True)
        for descriptor in own:
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        time.sleep(0.5)
        self._comm.Abort(status)


async def end_slowly(launchers: Set[int], transport: MPITransport, status: str, rank: str) -> None:
    """`rank` ends the job with `status`; the others wait for a message and in a collective, or have nothing to do with MPI."""
    for each in range(transport.size):
        await transport.broadcast(np.ones(10), each)
    await transport.barrier()
    pending = [] if transport.rank == 2 else [asyncio.create_task(transport.recv()), asyncio.create_task(transport.barrier())]
    await asyncio.sleep(0.1)
    if str(transport.rank) == rank:
        transport._world = SlowEnd(transport._world, launchers)
        transport.abort(int(status))
    await asyncio.sleep(60)
    await asyncio.gather(*pending)


async def reductions(transport: MPITransport, times: str, count: str, root: str) -> None:
    """Reduce `count` int64 so many times to rank `root`."""
    ones = transport.allocate((int(count),), np.dtype(np.int64))
    ones[:] = 1
    total = transport.allocate((int(count),), np.dtype(np.int64)) if str(transport.rank) == root else None
    for _ in range(int(times)):
        await transport.reduce(ones, total, int(root))
        assert total is None or (total == transport.size).all()


def die_in_the_second_piece() -> None:
    """This rank is killed when it combines, or reduces among leaders, for the second time."""
    from node_comm import mpi_nodes

    calls = []

    def call(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("combine", "reduce_piece"):
        original = getattr(mpi_nodes, name)
        setattr(mpi_nodes, name, lambda *given, original=original: (call(), original(*given)))


async def survive(transport: MPITransport, *deaths: str) -> None:
    """Reduce and broadcast 20 times; ``5:31`` has ranks 3 and 1 die in the fifth, ``5+31`` in the midst of its reduction.

    Rank 0 prints what became of it.
    """
    plan = {int(number): ranks for number, _, ranks in (death.replace("+", ":").partition(":") for death in deaths)}
    me, number, world = str(transport.rank), 0, transport
    while number < 20:
        try:
            await world.barrier()
            if me in plan.get(number, ""):
                if f"{number}+{plan[number]}" in deaths:
                    die_in_the_second_piece()
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            total = np.zeros(300_000)
            await world.reduce(np.ones(300_000), total)
            await world.broadcast(total)
            assert (total == world.size).all()
            number += 1
            if number == 20:
                await world.finish()
        except Disconnected:
            world = await world.recover()
            if me == "0":
                print(f"{world.size} left, without {list(world.lost)}", flush=True)
            done = np.array([number])
            await world.reduce(done, done, operation="min")
            await world.broadcast(done)
            number = int(done[0])
    if me == "0":
        print("done", flush=True)


async def hang(transport: MPITransport) -> None:
    """Wait for what nobody sends."""
    print(f"process {os.getpid()} hangs", flush=True)
    await transport.recv()


async def leave(transport: MPITransport, how: str) -> None:
    """End well, whatever is still pending."""
    pending: list[asyncio.Future[object]] = []
    if how == "receiving":
        pending.append(asyncio.ensure_future(transport.recv()))
    elif how == "sending" and transport.rank == 0 and transport.size > 1:
        pending.append(asyncio.ensure_future(transport.send(1, b"nobody takes this", np.zeros(1_000_000))))
    elif how == "arriving" and transport.rank == 0 and transport.size > 1:
        pending.append(asyncio.ensure_future(transport.barrier()))
    elif how == "to_itself":
        await transport.send(transport.rank, b"nobody takes this", np.zeros(1_000_000))
    elif how == "twice":
        await transport.close()
    await asyncio.sleep(0.05)
    await transport.close()
    await asyncio.gather(*pending, return_exceptions=True)


async def without_closing(transport: MPITransport) -> None:
    """A program of its own loop that forgets `close`."""
    await transport.barrier()
    asyncio.ensure_future(transport.recv())  # noqa: RUF006
    await asyncio.sleep(0.01)


def facing_sends(nbytes: str) -> None:
    """Plain MPI: does a send of so many bytes complete before its receiver is there?"""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    peer = 1 - comm.Get_rank()
    request = comm.Isend([bytearray(int(nbytes)), MPI.BYTE], peer)
    for _ in range(20):
        comm.Barrier()
        done = request.Test()
    comm.Recv([bytearray(int(nbytes)), MPI.BYTE], peer)
    request.Wait()
    if comm.Get_rank() == 0:
        print("buffered" if done else "not buffered", flush=True)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    match name:
        case "facing_sends":
            facing_sends(*arguments)
        case "end_slowly":
            importlib.import_module("mpi4py.MPI")  # connects to the launcher, and to no other rank yet
            mpi.run(partial(end_slowly, connections()), *arguments)
        case "without_closing":
            asyncio.run(without_closing(mpi.connect()))
        case _:
            mpi.run({"ring": ring, "fail": fail, "hang": hang, "leave": leave, "survive": survive,
                     "reductions": reductions}[name], *arguments)
