"""Going on after worker processes were killed: a new world, from the last checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from federation.infra.checkpoint import Checkpoints
from node_comm import PeerFailed

logger = logging.getLogger(__name__)

#: Worlds that may be lost one after the other without a round in between, before the run gives up.
ATTEMPTS = 3


class Restarts:
    """Says whether the run in `folder` is worth another world.

    A worker that a signal killed (SIGKILL by the kernel that is out of memory, or by a person; SIGSEGV by a fault) is a
    reason to go on; one that raised or left by itself would do so again. A run that gets no further gives up.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lost = 0
        self._round = 0

    def allow(self, failure: Exception | None) -> bool:
        """Whether to start a new world after `failure`, what ended the last one; says so in the log."""
        if not isinstance(failure, PeerFailed) or failure.exitcode >= 0:
            return False
        latest = Checkpoints.latest_in(self._folder / "checkpoints")
        reached = 0 if latest is None else latest[1].round
        self._lost = 1 if reached > self._round else self._lost + 1
        self._round = reached
        if self._lost > ATTEMPTS:
            logger.error("rank %d %s, and %d worlds in a row got no further than round %d: giving up", failure.rank,
                         failure.reason, self._lost, reached)
            return False
        logger.warning("rank %d %s: starting new workers, to go on after round %d", failure.rank, failure.reason, reached)
        return True
