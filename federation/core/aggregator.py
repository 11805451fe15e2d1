"""The aggregator: how the updates of a round become the new global weights."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from federation.core.matrix import LocalMatrix, Matrix, run_here
from federation.core.metrics import MetricSum
from federation.core.types import ClientUpdate, WeightsLike
from federation.core.updates import Contribution, ExactSum
from federation.core.weights import Layout, Weights
from federation.errors import RoundError

Needs = Literal["rows", "mean", "matrix"]
Weighting = Literal["samples", "uniform"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True)
class RoundStats:
    """What is known of a round's updates as a whole.

    num_clients: clients of the run; num_updates: those that contributed; num_samples: what they trained on, in all.
    metrics: means of their training metrics, weighted by samples, exact and rounded once.
    """

    round: int
    num_clients: int
    num_updates: int
    num_samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Aggregator(ABC):
    """Turns a round's updates into new weights.

    `needs` says what has to travel for it, and the engine moves no more:

    - ``"rows"`` (the default, right for any class): every update is brought to the server, one at a time,
      and `aggregate` is called there with all of them, in the order of the cohort.
    - ``"mean"``: ranks add updates up as their clients finish and one reduction brings the mean; see MeanAggregator.
    - ``"matrix"``: updates stay on their ranks as the rows of a distributed matrix; see MatrixAggregator.

    `learner` names the learner that the rule needs; empty where any will do. `metrics_needed` are metrics that clients
    have to report beside their own; learners find them in their config, under "metrics".
    """

    needs: ClassVar[Needs] = "rows"
    learner: ClassVar[str] = ""
    metrics_needed: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def aggregate(self, updates: Sequence[ClientUpdate], global_model: WeightsLike | None = None) -> WeightsLike:
        """The new global weights from `updates` (never empty), which started from `global_model`.

        Pure: neither `updates` nor `global_model` may be changed. Returns arrays in the model's order.
        """

    @property
    def min_updates(self) -> int:
        """The fewest updates that the rule is defined for."""
        return 1

    def check_updates(self, count: int, what: str) -> None:
        """Raise RoundError, beginning with `what`, where `count` updates are too few for the rule."""
        if count < self.min_updates:
            raise RoundError(f"{what}: {type(self).__name__} {self._minimum()}, and there are {count}")

    def _minimum(self) -> str:
        """What the rule needs, in words with the numbers."""
        return f"needs at least {self.min_updates} updates"

    def shared(self, layout: Layout) -> Layout | None:
        """The arrays that travel to the clients beside a model of `layout`, and back; None: only the model does.

        They begin at zero, follow the model's arrays in what `aggregate` and `step` get and write, and reach learners
        as `Learner.shared`; clients answer with `TrainResult.shared`.
        """
        return None

    def state(self) -> dict[str, Any]:
        """What must survive a restart: named arrays and scalars, nested as needed."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take on what `state` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {sorted(state)}")


class MeanAggregator(Aggregator):
    """An aggregator that needs only a weighted mean of the updates.

    Subclasses say what each update counts (`weighting`, or `weigh`) and what to do with the mean (`step`).
    """

    needs: ClassVar[Needs] = "mean"
    #: What an update counts in the mean: its number of samples, or one.
    weighting: Weighting = "samples"
    #: The settings by which `weigh` does not go: over a network, clients, who weigh their own updates, may have others.
    server_settings: ClassVar[frozenset[str]] = frozenset()

    def weigh(self, update: ClientUpdate, start: Weights) -> Contribution:
        """What `update`, which started from `start`, counts in the mean. Called where the client trained.

        Pure, and of these arguments alone, so that every rank would say the same. `update.weights` are borrowed.
        Not asked for clients without samples. Buffers are always averaged by `weighting`.
        """
        count = count_of(self.weighting, update.num_samples)
        return Contribution(count, count)

    def divisor(self, total: float, stats: RoundStats) -> float:
        """What the sum is divided by; `total` is the sum of the contributions' divisors."""
        return total

    @property
    def weighs(self) -> bool:
        """Whether updates are weighed by a rule of this class's own."""
        return type(self).weigh is not MeanAggregator.weigh

    @abstractmethod
    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """Turn `mean`, in place, into the new global weights; `start` are those that the round began with.

        Both hold the model's arrays and what is `shared` beside them.
        """

    def aggregate(self, updates: Sequence[ClientUpdate], global_model: WeightsLike | None = None) -> Weights:
        """The same step on updates at hand; the same bits as the reduction gives for the samples that it planned with.

        Without `global_model` the sum is taken around zero, which is exact as well; only the resolution differs.
        All clients are taken to be in `updates`. Raises RoundError when the weights of all updates add up to zero.
        """
        self.check_updates(len(updates), "aggregate")
        start = _start_of(updates, global_model)
        counts = [count_of(self.weighting, update.num_samples) for update in updates]
        total = ExactSum(start.layout, start, total_samples=max(1, sum(counts)), cohort_size=len(updates))
        metrics = MetricSum()
        divisors = []
        for update, count in zip(updates, counts, strict=True):
            contribution = self.weigh(update, start) if count else Contribution(0, 0)
            total.add(update.client_id, update.weights, count, contribution)
            metrics.add(update.metrics, update.num_samples)
            divisors.append(contribution.divisor)
        num_samples = sum(update.num_samples for update in updates)
        stats = RoundStats(0, len(updates), sum(map(bool, counts)), num_samples, metrics.means())
        total.divisor = self.divisor(math.fsum(divisors), stats)
        mean = Weights.zeros(start.layout)
        total.mean_into(mean)
        self.step(start, mean, stats)
        return mean


class MatrixAggregator(Aggregator):
    """An aggregator that works on all updates at once, where they are: on the verbs of a Matrix."""

    needs: ClassVar[Needs] = "matrix"

    @abstractmethod
    async def step(self, matrix: Matrix, out: Weights) -> None:
        """Write the new global weights into `out`, from the rows of `matrix` (at least `min_updates`)."""

    def aggregate(self, updates: Sequence[ClientUpdate], global_model: WeightsLike | None = None) -> Weights:
        """The same step on updates at hand, to the same bits. Without `global_model`, differences are from zero.

        Clients that have trained on nothing are left out. The others count in the order of their ids, numbers in them by
        size (client_2 before client_10), as they do in a run: how `updates` are ordered makes no difference.
        """
        updates = sorted((update for update in updates if update.num_samples), key=_in_order)
        self.check_updates(len(updates), "aggregate")
        start = _start_of(updates, global_model)
        out = Weights.zeros(start.layout)
        run_here(self.step(LocalMatrix(updates, start), out))
        return out


def count_of(weighting: Weighting, num_samples: int) -> int:
    """How often a client counts; one that has trained on nothing never does."""
    return num_samples if weighting == "samples" else min(1, num_samples)


def _in_order(update: ClientUpdate) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", update.client_id)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], update.client_id


def _start_of(updates: Sequence[ClientUpdate], global_model: WeightsLike | None) -> Weights:
    start = Weights.zeros(Layout.of(updates[0].weights if global_model is None else global_model))
    if global_model is not None:
        start.copy_from(global_model, who="the global model")
    return start
