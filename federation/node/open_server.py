"""The server of an open world: clients come over a network with their own data, go, and may come back.

A round is that of those who are there when it begins. Who is lost, late, or breaks a rule while it trains is left out of it,
named, and the others count; who is lost while the updates are brought together has the round done again without it
(RoundError, which the run answers by another attempt). Newcomers take part from the next round on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from federation.core.matrix import LocalMatrix, Matrix
from federation.core.updates import UpdateSum
from federation.core.weights import Weights
from federation.errors import FederationError, RoundError, UpdateError
from federation.node.compute import compute
from federation.node.open_members import OpenMembers
from federation.node.open_orders import ODD_METRICS, OpenOrders
from federation.node.orders import expect
from federation.node.protocol import (
    Collect,
    FetchSum,
    FetchUpdate,
    FitReport,
    Hello,
    Leave,
    Outcome,
    Problem,
    Sum,
    Update,
    WeightsFollow,
)
from federation.node.round import Fitted, Plan
from federation.node.server import ServerNode
from node_comm import CommError, Disconnected, Timeout
from node_comm.message import Failure
from node_comm.node import Incoming, Lost, Node
from node_comm.star import Star
from node_comm.wire import Adding

logger = logging.getLogger(__name__)

#: A client that says nothing for so long (seconds; it says something every five) is taken for lost.
SILENCE = 30.0
#: What no number in a row of a client reaches: float32 goes no further, and no distance between rows overflows.
LARGEST = 2.0**128


class OpenServerNode(ServerNode):
    """See the module. `expected` clients are waited for before the first round; later, as many as a round needs.

    Of `setup`, a client's must equal what both have.
    """

    members: OpenMembers

    def __init__(self, *, setup: Mapping[str, str] | None = None, expected: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.members = OpenMembers(self.node_id, setup or {}, expected)
        self._contributors: list[int] = []
        self._late: dict[int, int] = {}  # the rounds in which ranks were late with their updates
        self._packed: list[tuple[Outcome, int]] = []  # the updates of this round that are to be fetched so, and from whom
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether clients may come and go."""
        return True

    @property
    def orders(self) -> OpenOrders:
        """See ServerNode."""
        orders = super().orders
        assert isinstance(orders, OpenOrders)
        return orders

    @property
    def star(self) -> Star:
        """The transport below."""
        transport = self.node.transport
        assert isinstance(transport, Star)
        return transport

    async def start(self) -> None:
        """See ServerNode."""
        await super().start()
        self._watching = asyncio.create_task(self._watch(), name=f"{self.node_id} watching")

    async def stop(self, reason: str = "the run is over") -> None:
        """See ServerNode."""
        if self._watching is not None:
            self._watching.cancel()
        self.members.admit()
        await super().stop(reason)

    async def begin_fit(self, plan: Plan) -> asyncio.Task[Fitted]:
        """See ServerNode. Who does not answer, or not in time, has a problem in the result."""
        self.orders.absent.clear()
        return await super().begin_fit(plan)

    async def matrix(self, fitted: Fitted) -> Matrix:
        """See ServerNode. Clients do not reach each other, so the rows come to this rank: O(clients * parameters) here."""
        updates = [update for update in await self.updates(fitted) if update.num_samples]
        return LocalMatrix(updates, self.weights)

    async def mean(self, fitted: Fitted, out: Weights, divisor: Callable[[float], float] = lambda total: total) -> None:
        """See ServerNode. Where it is not finite, sums are fetched again, one by one, and whoever's own is not is let go. They
        are added up from what has been looked at, since a client may say something else each time."""
        await super().mean(fitted, out, divisor)
        if out.all_finite():
            return
        total, contributors, packed = self.host.updates.sum, self._contributors, self._packed
        words = [np.zeros_like(limb) for limb in total.limbs]
        for rank in contributors:
            total.reset(self.weights)
            self._contributors, self._packed = [rank], [entry for entry in packed if entry[1] == rank]
            own = [outcome for outcome in fitted.outcomes if fitted.ranks[outcome.client_id] == rank]
            await super().mean(replace(fitted, outcomes=own), out)  # `divisor` is made of what all have said
            if not out.all_finite():
                raise self._interrupted(fitted.plan.round, rank, UpdateError("its sum makes NaN or infinity of the weights"))
            for word, limb in zip(words, total.limbs, strict=False):
                word += limb
        self._contributors, self._packed = [], []
        for word, limb in zip(words, total.limbs, strict=True):
            np.copyto(limb, word)
        await super().mean(fitted, out, divisor)

    async def reduced(self, order: Collect) -> UpdateSum:
        """See ServerNode. Each client's sum is added to this rank's as it comes, piece by piece; packed updates one by one."""
        total = self.host.updates.sum
        if self._packed:
            for outcome, rank in self._packed:
                await self._add_packed(outcome, rank, order.round)
            return total
        total.ensure_limbs(order.limbs)

        async def add(rank: int) -> None:
            try:
                for word, limb in enumerate(total.limbs):
                    fetch = FetchSum(round=order.round, limbs=order.limbs, word=word)
                    answer, _ = await self.node.request(rank, fetch, into=Adding(limb), timeout=self.round_timeout)
                    expect(answer, Sum)
            except CommError as error:
                raise self._interrupted(order.round, rank, error) from error

        await _all(map(add, self._contributors))
        return total

    async def fetch_row(self, fetch: FetchUpdate, rank: int, out: Weights) -> Mapping[str, Any]:
        """See ServerNode."""
        try:
            if self._packed and rank:
                arrays, metrics = await self._fetch_packed(fetch, rank)
                out.copy_from(arrays)
            else:
                metrics = await super().fetch_row(fetch, rank, out)
            if max(out.peaks(), default=0.0) >= LARGEST:
                raise UpdateError(f"its update holds NaN, infinity, or a number of {LARGEST:.3g} or more")
        except (CommError, UpdateError) as error:
            raise self._interrupted(fetch.round, rank, error) from error
        return metrics

    async def fetch_state(self, client_id: str, rank: int, proposed: bool) -> Weights | None:
        """See ServerNode. Who does not hand it over is let go. It begins anew, unless the round is not over yet: that is done
        again, with the state as it was."""
        try:
            return await super().fetch_state(client_id, rank, proposed)
        except (CommError, FederationError) as error:
            self._let_go(rank, f"what {client_id} keeps did not come: {error}")
            if proposed:
                raise self._interrupted(self._round, rank, error) from error
            return None

    # -- how it is done ------------------------------------------------------------------------------------------

    def _orders_over(self, node: Node) -> OpenOrders:
        return OpenOrders(node, self.round_timeout, self.host.updates.aggregator)

    async def _bring(self, shares: Mapping[int, Sequence[str]]) -> None:
        """See ServerNode. Each rank by itself: one that does not take what it has kept costs no other its own."""
        bring = super()._bring

        async def bring_to(rank: int) -> None:
            try:
                await bring({rank: shares[rank]})
            except CommError as error:
                raise self._interrupted(self._round, rank, error) from error

        await _all(bring_to(rank) for rank, share in shares.items() if self.states.moves({rank: share}))

    async def _deliver(self, order: WeightsFollow, weights: Weights, proposed: Sequence[str]) -> None:
        """See ServerNode. Encoded once, and done on return; who does not take it within `round_timeout` is lost. Newcomers are
        in from here on, unless it is for a round that is done again."""
        if not self.members.repeats:
            self.members.admit()
        self.members.repeats = False
        message = self.node.encode(msgspec.structs.replace(order, keeps=list(proposed)))
        await self.star.send_all(self.members.ranks, message, weights.buffer, self.round_timeout)

    def _fitted(self, plan: Plan, shares: Mapping[int, list[str]], reports: Mapping[int, FitReport]) -> Fitted:
        """See ServerNode. Who is absent has a problem."""
        absent = self.orders.absent
        missing = [Problem(name, "failed", absent[rank], absent[rank])
                   for rank, share in shares.items() if rank in absent for name in share]
        self._contributors = [rank for rank, report in reports.items()
                              if rank and any(outcome.num_samples for outcome in report.outcomes)]
        fitted = super()._fitted(plan, shares, reports)
        self._packed = [(outcome, rank) for outcome in fitted.outcomes
                        if plan.compression and outcome.num_samples and (rank := fitted.ranks[outcome.client_id])]
        order = {client.client_id: place for place, client in enumerate(plan.cohort)}
        problems = sorted([*fitted.problems, *missing], key=lambda problem: order[problem.client_id])
        return replace(fitted, problems=problems)

    async def _fetch_packed(self, fetch: FetchUpdate, rank: int) -> tuple[list[np.ndarray], Mapping[str, Any]]:
        """One client's update, unpacked. UpdateError for what is none."""
        packing = self.host.updates.packing
        data = np.empty(packing.nbytes, np.uint8)
        answer, _ = await self.node.request(rank, fetch, into=data, timeout=self.round_timeout)
        metrics = expect(answer, Update).metrics
        return await compute(packing.unpack, fetch.client_id, data), metrics

    async def _add_packed(self, outcome: Outcome, rank: int, round: int) -> None:
        try:
            arrays, metrics = await self._fetch_packed(FetchUpdate(round=round, client_id=outcome.client_id), rank)
            await compute(self.host.updates.add, outcome.client_id, arrays, outcome.num_samples, metrics)
        except (CommError, UpdateError) as error:
            raise self._interrupted(round, rank, error) from error
        except ODD_METRICS as error:
            why = UpdateError(f"{outcome.client_id} cannot be weighed by what it reports: {error!r}")
            raise self._interrupted(round, rank, why) from error

    def _interrupted(self, round: int, rank: int, error: Exception) -> RoundError:
        """What has a round done again. Who has answered, but not as it should, is let go, and is not there then; and so is who
        was late for the second time."""
        self.members.repeats = True
        if isinstance(error, Timeout) and self._late.get(rank) != round:
            self._late[rank] = round
        elif not isinstance(error, Disconnected):
            self._let_go(rank, str(error))
        return RoundError(f"round {round} has to be done again: {self.star.name(rank)}: {error}")

    def _let_go(self, rank: int, reason: str) -> None:
        self.star.drop(rank, reason)
        self._gone(rank, reason)

    def _gone(self, rank: int, reason: str) -> None:
        was_here = rank in self.members
        super()._gone(rank, reason)
        forgotten = self.states.lose(rank)
        self._late.pop(rank, None)
        if was_here:
            logger.info("%s (rank %d) is gone: %s", self.star.name(rank), rank, reason or "it has left")
        if forgotten:
            logger.warning("what %s had kept is lost with the connection", ", ".join(forgotten))

    async def _heard(self, node: Node, incoming: Incoming) -> None:
        """See ServerNode; whatever a client says, it is its own connection that it risks."""
        match incoming.message:
            case Hello() | Leave() | Lost():
                try:
                    await super()._heard(node, incoming)
                except CommError as error:  # it cannot be answered: mostly, it has gone since
                    logger.warning("%s (rank %d) is let go: %s", self.star.name(incoming.source), incoming.source, error)
                    self.star.drop(incoming.source, str(error))
            case Failure(reason=reason, traceback=traceback):
                name = self.star.name(incoming.source)
                logger.warning("%s (rank %d) has failed: %s\n%s", name, incoming.source, reason, traceback)
                self.star.drop(incoming.source, "it has failed")
            case other:
                reason = f"protocol: {type(other).__name__} is not for the server"
                logger.warning("%s (rank %d): %s", self.star.name(incoming.source), incoming.source, reason)
                self.star.drop(incoming.source, reason)

    async def _watch(self) -> None:
        """Let go of who says nothing any more."""
        while True:
            await asyncio.sleep(SILENCE / 6)
            for rank in self.star.ranks:
                if self.star.silence(rank) > SILENCE:
                    self.star.drop(rank, f"it was silent for {self.star.silence(rank):.0f} s")


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Await all of `work`, and raise its first error then. None is cancelled for another's fault: a message that is cut off would
    cost its receiver the connection."""
    for error in await asyncio.gather(*work, return_exceptions=True):
        if error is not None:
            raise error
