"""A round as data: what it is to do, what came of it, and when that is not enough."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from federation.core.aggregator import Aggregator, Needs, RoundStats, Weighting
from federation.core.compression import Compression
from federation.core.metrics import MetricSum
from federation.errors import Diverged, RoundError, UpdateError
from federation.node.protocol import EvaluateReport, Fit, FitReport, Outcome, Problem
from federation.node.proxy import ClientProxy

logger = logging.getLogger(__name__)

#: The scale of a sum is at most for so many times the samples of the client that has fewest. Others take further words if need be.
MOST_RATIO = 2**20


@dataclass(frozen=True)
class Plan:
    """What a round is to do: who trains, with which settings, and what is to be brought together.

    deadline: seconds after which ranks begin no further client; None: no limit. late: clients that were drawn beside
    the cohort and are too late by the virtual clock. virtual_seconds: what the round takes by it; None without one.
    peaks: `peaks()` of the weights that it starts from, where they are known already.
    """

    round: int
    cohort: Sequence[ClientProxy]
    config: Mapping[str, Any] = field(default_factory=dict)
    needs: Needs = "mean"
    weighting: Weighting = "samples"
    weighs: bool = False
    reduction: Literal["exact", "float32", "float64"] = "exact"
    deadline: float | None = None
    late: int = 0
    virtual_seconds: float | None = None
    compression: Compression = field(default_factory=Compression)
    peaks: list[float] | None = None

    @property
    def total_samples(self) -> int:
        """What the clients are expected to count for in all; it sets the scale of the exact sum, not its result.

        Not by those who say that they have more samples than all others could matter beside: nothing would be left of these.
        """
        if self.weighting == "uniform":
            return max(1, len(self.cohort))
        counts = [client.num_samples for client in self.cohort if client.num_samples]
        return min(sum(counts), MOST_RATIO * min(counts)) if counts else 1

    def order(self, packed: bool) -> Fit:
        """What all ranks are told of it; which clients, each is told by itself. `packed`: updates are fetched packed."""
        return Fit(round=self.round, clients=[], config=dict(self.config), needs=self.needs, weighting=self.weighting,
                   weighs=self.weighs, reduction=self.reduction, cohort_size=len(self.cohort),
                   total_samples=self.total_samples, deadline=self.deadline, compression=self.compression, packed=packed,
                   peaks=self.peaks)


@dataclass(frozen=True)
class Fitted:
    """What came of a plan: outcomes in the order of the cohort, problems, exact metrics, seconds by rank.

    sums: those of other ranks, where they came with the reports.
    """

    plan: Plan
    outcomes: Sequence[Outcome]
    problems: Sequence[Problem]
    metrics: MetricSum
    ranks: Mapping[str, int]
    limbs: int
    seconds: Mapping[int, float]
    sums: Sequence[np.ndarray] = ()

    @classmethod
    def of(cls, plan: Plan, shares: Mapping[int, Sequence[str]], reports: Mapping[int, FitReport]) -> Fitted:
        """What ranks report that were given these `shares`. UpdateError for an update that does not fit the model."""
        for report in reports.values():
            if report.refused:
                raise UpdateError(f"round {plan.round}: {report.refused}")
        outcomes = {outcome.client_id: outcome for report in reports.values() for outcome in report.outcomes}
        problems = {problem.client_id: problem for report in reports.values() for problem in report.problems}
        ranks = {name: rank for rank, share in shares.items() for name in share}
        ranks |= {outcome.client_id: rank for rank, report in reports.items() for outcome in report.outcomes}
        names = [client.client_id for client in plan.cohort]
        return cls(plan, [outcomes[name] for name in names if name in outcomes],
                   [problems[name] for name in names if name in problems],
                   MetricSum.total(report.metrics for report in reports.values()), ranks,
                   max(report.limbs for report in reports.values()),
                   {rank: report.seconds for rank, report in reports.items()})

    @property
    def contributing(self) -> list[str]:
        """The clients that have trained on something."""
        return [outcome.client_id for outcome in self.outcomes if outcome.num_samples]

    @property
    def late(self) -> list[str]:
        """The clients that were not begun by the deadline."""
        reported = {outcome.client_id for outcome in self.outcomes} | {problem.client_id for problem in self.problems}
        return [client.client_id for client in self.plan.cohort if client.client_id not in reported]

    @property
    def num_samples(self) -> int:
        """Samples that the contributing clients trained on."""
        return sum(outcome.num_samples for outcome in self.outcomes)

    def stats(self, num_clients: int) -> RoundStats:
        """What an aggregator may know of the round, in a run of `num_clients`; who has left since is one of them."""
        num_clients = max(num_clients, len(self.plan.cohort))
        return RoundStats(self.plan.round, num_clients, len(self.contributing), self.num_samples, self.metrics.means())


class Evaluated(NamedTuple):
    """Exact sums of metrics: over the shards of the test set, over clients, and over clients with their own models."""

    shards: MetricSum
    clients: MetricSum
    personal: MetricSum

    @classmethod
    def of(cls, reports: Collection[EvaluateReport]) -> Evaluated:
        """What all ranks report."""
        return cls(MetricSum.total(report.shards for report in reports),
                   MetricSum.total(report.clients for report in reports),
                   MetricSum.total(report.personal for report in reports))


def no_samples(fitted: Fitted) -> RoundError:
    """The error for a round whose clients have no samples at all."""
    names = ", ".join(outcome.client_id for outcome in fitted.outcomes)
    return RoundError(f"round {fitted.plan.round}: the samples of all clients ({names}) add up to 0, so there is no "
                      f"mean; the global weights stay as they were")


def check_problems(fitted: Fitted, min_clients: int, on_divergence: Literal["drop", "raise"]) -> None:
    """Warn about each client that contributed nothing, and raise when too few did.

    Raises Diverged for a diverged client under `on_divergence="raise"`, RoundError with fewer than `min_clients`.
    """
    for problem in fitted.problems:
        logger.warning("round %d: %s %s and contributes nothing: %s", fitted.plan.round, problem.client_id, problem.kind,
                       problem.details)
        if problem.kind == "diverged" and on_divergence == "raise":
            raise Diverged(problem.client_id, problem.parameter)
    if len(fitted.outcomes) < min_clients:
        late = f". Late: {', '.join(fitted.late)}" if fitted.late else ""
        raise RoundError(f"round {fitted.plan.round}: {len(fitted.outcomes)} of {len(fitted.plan.cohort)} clients "
                         f"succeeded; min_clients={min_clients}. Failed: "
                         f"{', '.join(problem.client_id for problem in fitted.problems) or 'none'}{late}")


def check_updates(fitted: Fitted, aggregator: Aggregator) -> None:
    """Raise RoundError where nobody has trained on anything, and where fewer have than the rule of `aggregator` needs."""
    if not fitted.contributing and fitted.outcomes:
        raise no_samples(fitted)
    aggregator.check_updates(len(fitted.contributing), f"round {fitted.plan.round}")
