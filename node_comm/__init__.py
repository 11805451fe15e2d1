"""Ranks and buffers: one contract for messages and collectives over memory, processes and MPI.

    transport = node_comm.connect("mpi")
    await transport.send(1, b"hello", array)

Importing this package loads no MPI; `connect("mpi")` does.
"""

from node_comm.errors import AddressError, BufferMismatch, CommError, Disconnected, Timeout, Unavailable
from node_comm.transport import Received, Transport

__all__ = ["AddressError", "BufferMismatch", "CommError", "Disconnected", "Received", "Timeout", "Transport",
           "Unavailable"]
