"""A plugin that ends ranks in the middle of their work: what, where and when is in the variable DEADLY.

    DEADLY="reduce 2 3"          rank 2 (by mpirun's number) dies in its third reduction
    DEADLY="stop:fit 1 4"        rank 1 is frozen (SIGSTOP) when it is to train for the fourth time
    DEADLY="hang:fit 1 4"        ... or its training never ends

Several are separated by commas. Operations: those of a transport, `fit` and `evaluate` of a rank's host, and `_register` of its
node. Where one is to die in a broadcast or a reduction, no rank reads weights and sums in place, which would take neither.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time

from federation.node.client import ClientNode
from federation.node.host import ClientHost
from node_comm import mpi
from node_comm.mpi import MPITransport


def _end(how: str) -> None:
    match how:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(600)
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


def _arm(how: str, operation: str, number: int) -> None:
    owner = {"fit": ClientHost, "evaluate": ClientHost, "_register": ClientNode}.get(operation, MPITransport)
    original = getattr(owner, operation)
    calls = 0

    def is_due() -> bool:
        nonlocal calls
        calls += 1
        return calls == number

    @functools.wraps(original)
    def plain(*args, **kwargs):
        if is_due():
            _end(how)
        return original(*args, **kwargs)

    @functools.wraps(original)
    async def midway(*args, **kwargs):
        if is_due():
            asyncio.get_running_loop().call_later(0.0005, _end, how)
        return await original(*args, **kwargs)

    setattr(owner, operation, midway if asyncio.iscoroutinefunction(original) else plain)


ORDERS = [order for order in os.environ.get("DEADLY", "").split(",") if order]
if any(order.startswith(("broadcast", "reduce")) for order in ORDERS):
    mpi.DIRECT_BYTES = 0
    MPITransport.place_of = lambda transport, array: None
for order in ORDERS:
    what, rank, number = order.split()
    how, _, operation = what.rpartition(":")
    if os.environ.get("OMPI_COMM_WORLD_RANK") == rank:
        _arm(how, operation, int(number))
