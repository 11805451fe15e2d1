"""The end of a job that one rank decides, with its status and no other. Importing this module loads MPI.

A rank that calls MPI_Abort ends, and its connections with it. The others, as long as they call MPI, see that as a fault of
their own and abort with another status, which the launcher may hear of first. So they are told before, and call it no more.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from node_comm.mpi_messages import completed

#: On a communicator on which nothing else is sent.
END_TAG = 0
#: Who ends the job waits so long (seconds) for the others to be told: one may be dead, or busy in code that keeps the GIL.
TELL_SECONDS = 2.0
#: Who has been told ends the job itself where it still lives so much later (seconds).
WAIT_SECONDS = 20.0


class End:
    """One rank's part in it, over `comm`. No two threads may call MPI at a time."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._listens = True

    def tell(self, status: int) -> None:
        """Tell all other ranks that this one is about to abort with `status`; returns when they know, or after TELL_SECONDS."""
        message = np.array([status], np.int32)
        others = (rank for rank in range(self._comm.Get_size()) if rank != self._comm.Get_rank())
        limit = time.monotonic() + TELL_SECONDS
        for _ in completed([self._comm.Issend(message, other, END_TAG) for other in others]):
            if time.monotonic() >= limit:
                return
            time.sleep(1e-3)

    def listen(self) -> None:
        """Look whether another rank is about to abort; if so, this does not return, so that its thread calls MPI no more."""
        if not self._listens:
            return
        try:
            told = self._comm.Improbe(MPI.ANY_SOURCE, END_TAG)
        except MPI.Exception:  # a rank is lost, as whoever waits for it is told
            self._listens = False
            return
        if told is not None:
            status = np.empty(1, np.int32)
            told.Recv(status)
            time.sleep(WAIT_SECONDS)
            self._comm.Abort(int(status[0]))
