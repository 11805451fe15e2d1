"""A round's clients handed out bit by bit, so that a rank that is done early takes over from one that is slow.

Placement goes by what clients are expected to take; a rank may take longer than that. So up to half of each share is held back,
and given out in pieces, each half of what is left (guided self-scheduling, Polychronopoulos and Kuck 1987, with one pool for each
rank): to the rank whose share it is, and once that is empty, from the share of which most is left. A rank has one order to work
on and one that waits, so it never idles for a message. What is summed does not depend on who adds it, so results are the same.

Clients that keep state stay where it is, as do those that live on a rank.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec

from federation.core.metrics import MetricSum
from federation.node.orders import Answer, Orders, expect
from federation.node.protocol import Fit, FitReport

#: Gives an order to a rank; returns, once it is out, what its report comes in.
Ask = Callable[[int, Fit], Awaitable[asyncio.Future[Answer]]]

#: The part of a share, by expected time, that is held back at most.
HELD = 0.5
#: Seconds that a piece is expected to take at least, where there are clients for so long: a message is short beside it.
SHORTEST_PIECE = 0.02
#: Shares that are expected to take less (seconds) are not worth the messages.
SHORTEST_SHARE = 0.05


class Handout:
    """The clients of one round that are not given out yet.

    order: what all orders have in common. shares: clients by rank, for the ranks that train. costs: the seconds that each client
    is expected to take. fixed: clients that no other rank may train.
    """

    def __init__(self, order: Fit, shares: Mapping[int, Sequence[str]], costs: Mapping[str, float],
                 fixed: Collection[str] = ()) -> None:
        #: What each rank begins with.
        self.first: dict[int, list[str]] = {}
        self._order = order
        self._costs = costs
        self._held: dict[int, deque[str]] = {}
        self._left: dict[int, float] = {}  # the seconds that these are expected to take
        for rank, share in shares.items():
            most = HELD * sum(costs[client_id] for client_id in share)
            held, seconds = deque[str](), 0.0
            for client_id in reversed(share):
                if client_id not in fixed:
                    if seconds + costs[client_id] > most:
                        break
                    held.appendleft(client_id)
                    seconds += costs[client_id]
            later = set(held)
            self.first[rank] = [client_id for client_id in share if client_id not in later]
            self._held[rank], self._left[rank] = held, seconds

    @property
    def is_worth_it(self) -> bool:
        """Whether anything is held back, and ranks are busy for long enough."""
        longest = max(sum(self._costs[client_id] for client_id in (*self.first[rank], *held)) for rank, held in self._held.items())
        return any(self._held.values()) and longest >= SHORTEST_SHARE

    def take(self, rank: int) -> list[str]:
        """The next piece for `rank`, which is one that trains: never empty before everything is given out."""
        if rank not in self._held:
            return []
        owner = rank if self._held[rank] else max(self._left, key=lambda other: (len(self._held[other]) > 0, self._left[other]))
        held, seconds = self._held[owner], 0.0
        piece: list[str] = []
        most = max(SHORTEST_PIECE, 0.5 * self._left[owner])
        while held:
            cost = self._costs[held[0 if owner == rank else -1]]
            if piece and seconds + cost > most:
                break
            piece.append(held.popleft() if owner == rank else held.pop())
            seconds += cost
        self._left[owner] -= seconds
        return piece

    async def begin(self, orders: Orders, ranks: Sequence[int],
                    here: Callable[[Fit], Awaitable[FitReport]]) -> asyncio.Task[dict[int, FitReport]]:
        """Give each of `ranks` its first order; returns, once these are out, what gives them the others and brings one report
        of each. This rank's own orders are done by `here`."""
        def ask(rank: int, order: Fit) -> Awaitable[asyncio.Future[Answer]]:
            return orders.ask_one(rank, order, here)

        async def train(rank: int, first: asyncio.Future[Answer]) -> Answer:
            return await self.train(rank, first, ask), None

        firsts = {rank: msgspec.structs.replace(self._order, clients=self.first.get(rank, [])) for rank in ranks}
        begun = await orders.ask(firsts, here, self._order.round)
        answers = {rank: asyncio.create_task(train(rank, first)) for rank, first in begun.items()}
        return orders.await_reports(answers, FitReport, self._order.round)

    async def train(self, rank: int, first: asyncio.Future[Answer], ask: Ask) -> FitReport:
        """Give `rank` further clients, two orders at a time, until all are given out; what its reports come to, of which the
        `first` is on those that it began with.

        Where an update is refused, no rank gets any more: the round is lost.
        """
        given = deque([first])
        reports: list[FitReport] = []
        try:
            while given:
                while len(given) < 2 and (piece := self.take(rank)):
                    given.append(await ask(rank, msgspec.structs.replace(self._order, clients=piece, goes_on=True)))
                message, _ = await given[0]
                given.popleft()
                report = expect(message, FitReport)
                reports.append(report)
                if report.refused:
                    self._give_out_no_more()
            return merged(reports)
        finally:
            for answer in given:
                answer.cancel()

    def _give_out_no_more(self) -> None:
        for held in self._held.values():
            held.clear()


def merged(reports: Sequence[FitReport]) -> FitReport:
    """One rank's reports on one round, in their order, as a single one."""
    metrics = MetricSum.total(report.metrics for report in reports)
    return FitReport(outcomes=[outcome for report in reports for outcome in report.outcomes],
                     problems=[problem for report in reports for problem in report.problems], metrics=metrics.to_dict(),
                     limbs=max(report.limbs for report in reports), seconds=sum(report.seconds for report in reports),
                     refused=next((report.refused for report in reports if report.refused), ""),
                     spans=[span for report in reports for span in report.spans])
