"""Ranks and buffers: one contract for messages and collectives over memory, processes and MPI.

    transport = node_comm.connect("mpi")
    await transport.send(1, b"hello", array)

Importing this package loads no MPI; `connect("mpi")` does.
"""

from __future__ import annotations

from typing import Literal

from node_comm.errors import AddressError, BufferMismatch, CommError, Disconnected, PeerFailed, Timeout, Unavailable
from node_comm.transport import Received, Transport

__all__ = ["AddressError", "BufferMismatch", "CommError", "Disconnected", "PeerFailed", "Received", "Timeout",
           "Transport", "Unavailable", "connect"]


def connect(mode: Literal["memory", "mpi"], *, name: str = "server", serve: bool = False) -> Transport:
    """Join a world: this process's hub called `name` (opened with `serve`), or the MPI world that started it.

    A world of processes is made by `node_comm.processes`, whose parent is its rank 0.
    """
    match mode:
        case "memory":
            from node_comm import memory

            return (memory.open_hub(name) if serve else memory.find_hub(name)).join()
        case "mpi":
            from node_comm import mpi

            return mpi.connect()
    raise Unavailable(f"no transport {mode!r} can be connected to; known: memory, mpi")
