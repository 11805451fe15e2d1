"""Arrays of more elements than MPI's 32-bit counts can hold: sent, broadcast and reduced, every element checked.

    mpirun -n 2 python benchmarks/large_message.py                    # 2^31 + 16 uint8: 4.3 GB for two ranks
    mpirun -n 2 python benchmarks/large_message.py --dtype float32    # 17.2 GB

Each rank holds one array. Refuses to start where the host has too little free memory for its ranks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Awaitable
from pathlib import Path

import numpy as np

from node_comm import launchers, mpi
from node_comm.mpi import MPITransport

BLOCK = 1 << 24
MARGIN = 1 << 30


def fill(array: np.ndarray, factor: int) -> None:
    """Write values whose period, a prime, fits no chunk: an element that moves is seen."""
    for start in range(0, array.size, BLOCK):
        array[start:start + BLOCK] = expected(start, min(BLOCK, array.size - start), factor, array.dtype)


def check(array: np.ndarray, factor: int) -> None:
    """Raise AssertionError unless every element is what `fill` writes."""
    for start in range(0, array.size, BLOCK):
        part = array[start:start + BLOCK]
        assert (part == expected(start, part.size, factor, array.dtype)).all(), f"wrong after element {start}"


def expected(start: int, count: int, factor: int, dtype: np.dtype) -> np.ndarray:
    """Elements `start` to `start + count` of the pattern times `factor`; exact in uint8 up to factor 4."""
    return ((np.arange(start, start + count) % 61) * factor).astype(dtype)


def free_memory() -> int:
    """Bytes that this host can still give."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


async def main(transport: MPITransport, elements: int, dtype: np.dtype, json_file: Path | None) -> None:
    """Run all three on one array a rank."""
    ranks_here = launchers.local_size(os.environ) or 1
    needed, free = elements * dtype.itemsize * ranks_here + MARGIN, free_memory()
    await transport.barrier()  # all have looked before any of them allocates
    if free < needed:
        raise SystemExit(f"{ranks_here} ranks on {transport.processor} need {needed / 1e9:.1f} GB, but only "
                         f"{free / 1e9:.1f} GB are free: use fewer elements or another host")
    if transport.size not in (2, 3, 4):
        raise SystemExit(f"start 2 to 4 ranks, not {transport.size}: sums must fit uint8")
    array = np.zeros(elements, dtype)
    figures: dict[str, float] = {"ranks": transport.size, "nbytes": array.nbytes}

    async def timed(what: str, work: Awaitable[object]) -> None:
        await transport.barrier()
        begin = time.perf_counter()
        await work
        seconds = time.perf_counter() - begin
        figures[f"{what}_s"] = seconds
        if transport.rank == 0:
            print(f"{what:9s} {array.nbytes / 1e9:.2f} GB  {seconds:6.2f} s  {array.nbytes / seconds / 1e9:5.2f} GB/s",
                  flush=True)

    if transport.rank == 0:
        fill(array, 1)
        await timed("send", transport.send(1, b"", array))
    else:
        await timed("receive", transport.recv(0, into=array) if transport.rank == 1 else asyncio.sleep(0))
        if transport.rank == 1:
            check(array, 1)
            array[:] = 0
    await timed("broadcast", transport.broadcast(array))
    check(array, 1)
    await timed("reduce", transport.reduce(array, array if transport.rank == 0 else None))
    check(array, transport.size if transport.rank == 0 else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    await transport.barrier()
    print(f"rank {transport.rank}: all {elements} elements right, peak memory {peak / 1e9:.2f} GB", flush=True)
    if transport.rank == 0 and json_file is not None:
        json_file.write_text(json.dumps(figures | {"peak_bytes": peak}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=2**31 + 16, help="default: 2^31 + 16")
    parser.add_argument("--dtype", default="uint8", help="default: uint8")
    parser.add_argument("--json", type=Path, help="write rank 0's figures to this file")
    arguments = parser.parse_args()
    mpi.run(main, arguments.elements, np.dtype(arguments.dtype), arguments.json)
