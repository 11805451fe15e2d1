"""Broadcast, reduce and small messages of node_comm's transports, against raw mpi4py and the speed of memory, in one run.

    python benchmarks/bench_comm.py [--ranks 2 3 4] [--machines 2,2 3,3] [--megabytes 100] [--repeats 7] [--json FILE]

The floor is what one core needs to read one vector for each rank and to write one, at the pace of NumPy's `a += b` in this
run. Ranks beyond the number of cores take turns. `exact` is the same number of values as int64, twice the bytes.

Then the same ranks as if they were on several machines (2,2: two of two), where messages between machines are as fast as
within one: the reduction in two levels, MPI_Reduce in pieces and in one call, all three in turn, and on processor time too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from node_comm import Transport, processes
from node_comm.launchers import PRETENDED_NODES
from node_comm.processes import ensure_main_guard

HERE = Path(__file__).resolve()


async def median(transport: Transport, repeats: int, work: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds of `work` on rank 0; all ranks begin together."""
    times = []
    for _ in range(repeats + 1):
        await transport.barrier()
        began = time.perf_counter()
        await work()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


async def measure(transport: Transport, megabytes: int, repeats: int) -> dict[str, float]:
    """Every verb; the same on all ranks."""
    count = megabytes * 250_000
    floats, integers = (transport.allocate((count,), np.dtype(dtype)) for dtype in (np.float32, np.int64))
    floats[:], integers[:] = 1, 1
    found = {
        "broadcast": await median(transport, repeats, lambda: transport.broadcast(floats)),
        "reduce float32": await median(transport, repeats, lambda: transport.reduce(floats, _out(transport, floats))),
        "reduce exact": await median(transport, repeats, lambda: transport.reduce(integers, _out(transport, integers))),
    }

    async def there_and_back() -> None:
        if transport.rank == 0:
            await transport.send(1, b"ping")
            await transport.recv(1)
        elif transport.rank == 1:
            await transport.recv(0)
            await transport.send(0, b"pong")

    found["round trip of a small message"] = await median(transport, 50, there_and_back)
    await transport.barrier()
    return found


def _out(transport: Transport, array: np.ndarray) -> np.ndarray | None:
    return array if transport.rank == 0 else None


async def worker(transport: Transport, megabytes: int, repeats: int) -> dict[str, float]:
    """A rank of a world of processes."""
    return await measure(transport, megabytes, repeats)


def under_mpi(megabytes: int, repeats: int) -> None:
    """A rank under mpirun: raw calls first, then the transport's. Rank 0 prints."""
    from node_comm import mpi

    transport = mpi.connect()
    from mpi4py import MPI

    world, rank = MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Get_rank()
    count = megabytes * 250_000
    array, out = np.ones(count, np.float32), np.empty(count, np.float32) if rank == 0 else None

    def raw(work: Callable[[], object], times: int = repeats) -> float:
        seconds = []
        for _ in range(times + 1):
            world.Barrier()
            began = time.perf_counter()
            work()
            seconds.append(1e3 * (time.perf_counter() - began))
        return statistics.median(seconds[1:])

    def ping() -> None:
        if rank == 0:
            world.send(b"ping", 1)
            world.recv(source=1)
        elif rank == 1:
            world.recv(source=0)
            world.send(b"pong", 0)

    found: dict[str, Any] = {"raw": {
        "broadcast": raw(lambda: world.Bcast(array)), "reduce float32": raw(lambda: world.Reduce(array, out)),
        "broadcast, pickled": raw(lambda: world.bcast(array if rank == 0 else None)),
        "round trip of a small message": raw(ping, 50)}}

    async def ours() -> None:
        found["transport"] = await measure(transport, megabytes, repeats)
        await transport.close()

    asyncio.run(ours())
    if rank == 0:
        print(json.dumps(found), flush=True)


def machines_under_mpi(megabytes: int, repeats: int) -> None:
    """A rank under mpirun, of a world that is taken apart into machines. Rank 0 prints the least and the median of each way."""
    from node_comm import mpi

    transport, flat = mpi.connect(), mpi.connect(share_memory=False)
    from mpi4py import MPI

    world, rank = MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Get_rank()

    async def ours() -> None:
        found: dict[str, dict[str, list[float]]] = {}
        for what, dtype in (("reduce float32", np.float32), ("reduce exact", np.int64)):
            array, out = (transport.allocate((megabytes * 250_000,), np.dtype(dtype)) for _ in range(2))
            array[:] = 1
            target = out if rank == 0 else None

            async def raw(array: np.ndarray, target: np.ndarray | None) -> None:
                world.Reduce(array, target)

            for number in range(repeats + 1):
                for way, work in (("two levels", transport.reduce), ("pieces", flat.reduce), ("one call", raw)):
                    await transport.barrier()
                    began, used = time.perf_counter(), time.process_time()
                    await work(array, target)
                    seconds = np.array([time.perf_counter() - began, time.process_time() - used])
                    await transport.barrier()
                    all_seconds = np.empty((world.Get_size(), 2))
                    world.Allgather(seconds, all_seconds)
                    if number:
                        found.setdefault(f"{what}, {way}", {"wall": [], "processor": []})
                        found[f"{what}, {way}"]["wall"].append(1e3 * all_seconds[0, 0])
                        found[f"{what}, {way}"]["processor"].append(1e3 * all_seconds[:, 1].sum())
            if target is not None:
                assert (target == world.Get_size()).all()
        if rank == 0:
            print(json.dumps({what: {"least": min(times["wall"]), "median": statistics.median(times["wall"]),
                                     "processor": statistics.median(times["processor"])} for what, times in found.items()}),
                  flush=True)
        await flat.close()
        await transport.close()

    asyncio.run(ours())


def mpirun(ranks: int, options: argparse.Namespace, *words: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """What this script's rank 0 prints in a world of `ranks`."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    line = [str(Path(sys.executable).with_name("mpirun")), *root, "--oversubscribe", "-n", str(ranks),
            sys.executable, str(HERE), *words, "--megabytes", str(options.megabytes), "--repeats", str(options.repeats)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False, env=os.environ | (environ or {}))
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def floor(megabytes: int) -> float:
    """Milliseconds of `a += b`: three vectors through memory."""
    one, other = np.ones(megabytes * 250_000, np.float32), np.ones(megabytes * 250_000, np.float32)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        one += other
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--machines", nargs="*", default=["2,2", "3,3"])
    parser.add_argument("--under_mpi", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--machines_under_mpi", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.under_mpi:
        under_mpi(options.megabytes, options.repeats)
        return
    if options.machines_under_mpi:
        machines_under_mpi(options.megabytes, options.repeats)
        return
    adding = floor(options.megabytes)
    results: dict[str, Any] = {}
    print(f"{options.megabytes} MB of float32, {os.cpu_count()} cores; a += b: {adding:.1f} ms\n\n"
          "| ranks | what | raw mpi4py | MPI transport | processes | floor |\n| --- | --- | --- | --- | --- | --- |")
    for ranks in options.ranks:
        found = mpirun(ranks, options, "--under_mpi")
        found["processes"] = processes.run(worker, ranks, options.megabytes, options.repeats)
        found["floor"] = {"reduce float32": adding * (ranks + 1) / 3, "reduce exact": 2 * adding * (ranks + 1) / 3}
        results[str(ranks)] = found
        for what in (*found["transport"], "broadcast, pickled"):
            cells = [found[kind].get(what) for kind in ("raw", "transport", "processes", "floor")]
            print(f"| {ranks} | {what} | " + " | ".join("" if cell is None else f"{cell:.3g}" for cell in cells) + " |", flush=True)
    if options.machines:
        print("\n| machines | what | least, ms | median, ms | processor of all ranks, ms |\n| --- | --- | --- | --- | --- |")
    for machines in options.machines:
        found = mpirun(sum(map(int, machines.split(","))), options, "--machines_under_mpi", environ={PRETENDED_NODES: machines})
        results[machines] = found
        for what, times in found.items():
            print(f"| {machines} | {what} | " + " | ".join(f"{milliseconds:.0f}" for milliseconds in times.values()) + " |",
                  flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    ensure_main_guard()
    main()
