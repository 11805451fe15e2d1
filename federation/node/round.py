"""A round as data: what it is to do, what came of it, and when that is not enough."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from federation.core.aggregator import Aggregator, Needs, RoundStats, Weighting
from federation.core.compression import Compression
from federation.core.metrics import MetricSum
from federation.errors import Diverged, RoundError
from federation.node.protocol import Outcome, Problem
from federation.node.proxy import ClientProxy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a round is to do: who trains, with which settings, and what is to be brought together.

    deadline: seconds after which ranks begin no further client; None: no limit. late: clients that were drawn beside
    the cohort and are too late by the virtual clock. virtual_seconds: what the round takes by it; None without one.
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

    @property
    def total_samples(self) -> int:
        """What the clients are expected to count for in all; it sets the scale of the exact sum, not its result."""
        if self.weighting == "uniform":
            return max(1, len(self.cohort))
        return max(1, sum(client.num_samples for client in self.cohort))


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
        """What an aggregator may know of the round, in a run of `num_clients`."""
        return RoundStats(self.plan.round, num_clients, len(self.contributing), self.num_samples, self.metrics.means())


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
            raise Diverged(problem.client_id, problem.reason)
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
