"""Orders to the clients of an open world: who does not answer, or not as it should, is left out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from federation.core.aggregator import Aggregator, MeanAggregator, RoundStats, count_of
from federation.core.metrics import MetricSum
from federation.core.updates import MAX_LIMBS, MAX_START
from federation.errors import FederationError
from federation.node.open_members import LONGEST_NAME, MOST_SAMPLES
from federation.node.orders import Orders, Reminder, expect
from federation.node.protocol import Evaluate, EvaluateReport, Fit, FitReport
from node_comm import CommError, Timeout
from node_comm.message import Message
from node_comm.node import Node
from node_comm.star import Star

logger = logging.getLogger(__name__)

#: The most characters that are kept of why a client did not answer as it should, which may be its own words.
LONGEST_REASON = 10_000
#: The most metrics that a client reports: each is recorded, and stands in the checkpoint by itself.
MOST_METRICS = 10_000
#: So much, at most, a client's metrics may scale its updates up (FedNova: its local steps, of which nobody takes so many).
MOST_SCALE = 2.0**40
#: What is raised where metrics are missing, or are none.
ODD_METRICS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

R = TypeVar("R", bound=Message)
Order = TypeVar("Order", bound=Message)


class OpenOrders(Orders):
    """See Orders. Those who have nothing to do get no order. What they report must be something that `aggregator` can use."""

    def __init__(self, node: Node, round_timeout: float | None, aggregator: Aggregator | None = None) -> None:
        super().__init__(node, round_timeout)
        self._aggregator = aggregator
        self.absent: dict[int, str] = {}  # those who were asked and did not answer, and why, until somebody clears it

    async def give(self, orders: Mapping[int, Order], reply: type[R], here: Callable[[Order], Awaitable[R]], round: int,
                   into: Mapping[int, np.ndarray] = MappingProxyType({})) -> asyncio.Task[dict[int, R]]:
        """See Orders. Who was ordered something must have answered before the next order, since its time is counted from
        there; this rank may be at work still."""
        others = {rank: order for rank, order in orders.items() if rank and order.clients}  # type: ignore[attr-defined]
        own = asyncio.ensure_future(here(orders[0]))
        self._last = asyncio.create_task(self._answers(others, reply, own, round))
        return self._last

    async def _answers(self, orders: Mapping[int, Message], reply: type[R], own: Awaitable[R],
                       round: int) -> dict[int, R]:
        """Give the orders, and wait for who answers."""
        star = self.node.transport
        assert isinstance(star, Star)
        reports: dict[int, R] = {}

        async def ask(rank: int, order: Message) -> None:
            try:
                answer, _ = await self.node.request(rank, order, timeout=self.round_timeout)
                reports[rank] = _checked(order, expect(answer, reply), self._aggregator)
            except Timeout:
                self.absent[rank] = f"it has not answered within round_timeout={self.round_timeout:g} s"
                logger.warning("round %d: %s has not answered within round_timeout=%g s, and is left out of it", round,
                               star.name(rank), self.round_timeout)
            except (CommError, FederationError) as error:
                # It is recorded and logged for each client behind that connection, who may be thousands.
                self.absent[rank] = str(error)[:max(100, LONGEST_REASON // len(order.clients))]  # type: ignore[attr-defined]
                logger.warning("round %d: %s is left out: %s", round, star.name(rank), self.absent[rank])

        async def work() -> None:
            reports[0] = await own

        def late() -> str:
            missing = [star.name(rank) for rank in orders if rank not in reports and rank not in self.absent]
            return ", ".join(missing) or "this rank"

        saying = Reminder(round, late)
        try:
            await self.node.attend(asyncio.gather(work(), *(ask(rank, order) for rank, order in orders.items())))
        finally:
            saying.cancel()
        return dict(sorted(reports.items()))


def _checked(order: Message, report: R, aggregator: Aggregator | None) -> R:
    """`report`, if it answers `order`. Raises FederationError for clients that were not asked, absurd numbers, and an update that
    the client's own rank has refused."""
    if isinstance(order, Fit) and isinstance(report, FitReport):
        if report.refused:
            raise FederationError(report.refused)
        named = [outcome.client_id for outcome in report.outcomes] + [problem.client_id for problem in report.problems]
        if len(set(named)) < len(named) or not set(named) <= set(order.clients):
            raise FederationError(f"it reports {', '.join(map(repr, named))}, and was asked for {', '.join(order.clients)}")
        for outcome in report.outcomes:
            count = count_of(order.weighting, outcome.num_samples)
            fits = 0 <= outcome.divisor < MAX_START if order.weighs and count else outcome.divisor == count
            if not 0 <= outcome.num_samples <= MOST_SAMPLES or not fits:
                raise FederationError(f"it reports {outcome.num_samples} samples, counted as {outcome.divisor}")
            if not 0 <= outcome.seconds < math.inf:
                raise FederationError(f"it reports that {outcome.client_id} took {outcome.seconds} s")
        most = MAX_LIMBS if order.reduction == "exact" else 1
        if report.limbs > most:
            raise FederationError(f"it reports a sum of {report.limbs} words; {most} are allowed")
        means = _check_metrics(report.metrics, sum(outcome.num_samples for outcome in report.outcomes))
        for name in order.config.get("metrics", ()):  # those that the aggregator divides by, or weighs by
            if math.isnan(means.get(name, 0.0)):
                raise FederationError(f"its metric {name} is no number")
        if order.config.get("metrics") and isinstance(aggregator, MeanAggregator):
            _check_divisor(order, report, means, aggregator)
    if isinstance(order, Evaluate) and isinstance(report, EvaluateReport):
        _check_metrics(report.shards, 0)  # the server's samples, of which it has been given none
        for metrics in (report.clients, report.personal):
            _check_metrics(metrics, MOST_SAMPLES * len(order.clients))
    if isinstance(report, FitReport | EvaluateReport) and not 0 <= report.seconds < math.inf:
        raise FederationError(f"it reports that it took {report.seconds} s")
    return report


def _check_divisor(order: Fit, report: FitReport, means: Mapping[str, float], aggregator: MeanAggregator) -> None:
    """Raise FederationError for metrics by which the sum would be divided by what it cannot be, had this rank alone reported: of
    all that is reported together, nobody could tell whose fault it is."""
    total = math.fsum(outcome.divisor for outcome in report.outcomes)
    if not total:
        return
    given = ", ".join(f"{name}: {means.get(name)}" for name in order.config["metrics"])
    counts = [outcome.num_samples for outcome in report.outcomes if outcome.num_samples]
    try:
        divisor = aggregator.divisor(total, RoundStats(order.round, order.cohort_size, len(counts), sum(counts), means))
    except ODD_METRICS as error:
        raise FederationError(f"its metrics ({given}) cannot be used: {error!r}") from error
    if not total / MOST_SCALE <= divisor < MAX_START:
        raise FederationError(f"its metrics ({given}) cannot be used: its updates, which count for {total:g}, would be divided by "
                              f"{divisor:g}; {total / MOST_SCALE:.3g} to {MAX_START:.3g} are allowed")


def _check_metrics(metrics: Mapping[str, Any], most: int) -> dict[str, float]:
    """The means. Raises FederationError for metrics that are none, or are means over more than `most` samples."""
    try:
        given = MetricSum.from_dict(dict(metrics))
        means = given.means()
    except ODD_METRICS as error:
        raise FederationError(f"its metrics cannot be used: {error}") from error
    if len(means) > MOST_METRICS or max(map(len, means), default=0) > LONGEST_NAME:
        raise FederationError(f"it reports {len(means)} metrics; {MOST_METRICS} are allowed, with names of "
                              f"{LONGEST_NAME} characters")
    if given.most_samples > most:
        raise FederationError(f"its metrics are means over more than {most} samples")
    return means
