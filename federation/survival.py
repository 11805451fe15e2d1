"""A run that goes on when ranks are lost: in a world of those that are left, or with new ones in their place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from federation.core.trainer import Trainer
from federation.errors import RoundError, TooFewClients
from federation.infra.checkpoint import Snapshot
from node_comm import Disconnected, PeerFailed

logger = logging.getLogger(__name__)

#: Worlds that may be lost one after the other without a round in between, before the run gives up.
ATTEMPTS = 3


@runtime_checkable
class Resumable(Protocol):
    """A trainer that can be stopped and resumed."""

    round: int

    def snapshot(self) -> Snapshot | None:
        """All that its next round depends on; None where the last checkpoint has to stand."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Go on after the round of `snapshot`."""
        ...


@runtime_checkable
class Recoverable(Protocol):
    """A trainer that can `run` again from its last commit, as it stands."""

    def recover(self) -> bool:
        """Make ready for that; False where the last checkpoint has to stand."""
        ...


class Survival:
    """Runs `trainer` to its end.

    Rank 0 alone commits rounds, so that one which a loss has cut off is done again from the last commit, to the same
    bits. Where what clients keep is lost with their rank, `start_over` gives a trainer that goes on from the last
    checkpoint. `trainer` is the one that runs at present; with `ending` set, no loss is made good any more.

    Over a network, a round that too few clients have brought to its end is done again with those who are there.

    A run that loses ranks again and again in the same round (a client whose code ends its process, say) gives up.
    """

    def __init__(self, trainer: Trainer, start_over: Callable[[], Trainer]) -> None:
        self.trainer = trainer
        self.ending = False
        self._start_over = start_over
        self._lost = 0
        self._round = 0
        self._missing: list[int] = []  # ranks that are lost, until the log says so

    async def run(self) -> None:
        """Train, and end the world. Raises Disconnected for a loss that cannot be made good."""
        server = self.trainer.server
        loss: Disconnected | RoundError | None = None
        began = 0.0
        while True:
            try:
                if isinstance(loss, Disconnected):
                    await self._resume(loss, began)
                await self.trainer.run()
                await server.stop()
                return
            except (Disconnected, RoundError) as error:
                goes_on = server.recoverable if isinstance(error, Disconnected) else server.is_open
                if not goes_on or self.ending or isinstance(error, TooFewClients) or not self._may_go_on(error):
                    raise
                loss, began = error, time.monotonic()
            if isinstance(loss, RoundError):
                logger.warning("%s", loss)
                self._rewind()
            else:
                await server.recover()
                self._missing += server.node.transport.lost

    async def _resume(self, loss: Disconnected, began: float) -> None:
        """Wait for the ranks of the new world, of which some may be lost meanwhile, and go back to the last commit."""
        server = self.trainer.server
        await server.wait_for_clients(0)
        round = self._rewind()
        logger.warning("%s: going on after round %d with %d ranks, %.3f s later", describe(self._missing, loss), round,
                       server.node.transport.size, time.monotonic() - began)
        self._missing.clear()

    def _may_go_on(self, loss: Exception) -> bool:
        if not isinstance(self.trainer, Resumable):
            return False
        reached = self.trainer.round
        self._lost = 1 if reached > self._round else self._lost + 1
        self._round = reached
        if self._lost > ATTEMPTS:
            logger.error("the round after %d has failed %d times: giving up", reached, self._lost)
            return False
        return True

    def _rewind(self) -> int:
        """The round after which the trainer goes on."""
        if not isinstance(self.trainer, Recoverable) or not self.trainer.recover():
            self.trainer = self._start_over()
        return self.trainer.round if isinstance(self.trainer, Resumable) else 0


def describe(ranks: Sequence[int], loss: Disconnected) -> str:
    """Which ranks are gone, and why."""
    if not ranks or isinstance(loss, PeerFailed):
        return str(loss)
    return f"rank{'s' if ranks[1:] else ''} {', '.join(map(str, ranks))} lost ({loss})"
