"""The aggregator of asynchronous training: it takes updates one at a time, as they come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from federation.core.aggregator import Aggregator
from federation.core.matrix import checked_row
from federation.core.problems import choice_problem
from federation.core.types import ClientUpdate, WeightsLike
from federation.core.weights import Layout, Weights
from federation.errors import UpdateError

Staleness = Literal["constant", "polynomial", "hinge"]
STALENESSES: tuple[Staleness, ...] = get_args(Staleness)
#: The settings of `discount` where none are given.
EXPONENT, HINGE = 0.5, 10


@dataclass(frozen=True)
class LateUpdate:
    """One client's update, and the version of the global weights that it started from.

    weights, start: in one layout, borrowed. staleness: how many versions the global weights are ahead by now.
    """

    client_id: str
    weights: Weights
    start: Weights
    num_samples: int
    staleness: int


class AsyncAggregator(Aggregator):
    """Changes the global weights as updates come in."""

    @abstractmethod
    def receive(self, weights: Weights, update: LateUpdate) -> bool:
        """Take in `update`; change `weights`, the global ones, in place where that is due. True: they are a new version."""

    def aggregate(self, updates: Sequence[ClientUpdate], global_model: WeightsLike | None = None) -> Weights:
        """The updates one after the other, each fresh. Without `global_model` they start from zero.

        As in a run, clients that have trained on nothing are left out. Raises Diverged for NaN and infinity.
        """
        start = Weights.zeros(Layout.of(updates[0].weights if global_model is None else global_model))
        if global_model is not None:
            start.copy_from(global_model, who="the global model")
        weights = start.copy()
        for update in updates:
            if update.num_samples:
                own = checked_row(update.client_id, update.weights, start)
                self.receive(weights, LateUpdate(update.client_id, own, start, update.num_samples, 0))
        return weights


def staleness_of(version: int, started_from: int, client_id: str) -> int:
    """How many versions an update is behind. Raises UpdateError for one from a version that does not exist yet."""
    if started_from > version:
        raise UpdateError(f"{client_id}: the update started from version {started_from}, but the global weights are at "
                          f"version {version}")
    return version - started_from


def staleness_problems(kind: str, exponent: float, hinge: int) -> list[str]:
    """What is wrong with the settings of `discount` together, one sentence each."""
    if kind not in STALENESSES:
        return choice_problem("staleness", kind, STALENESSES)
    found = []
    if kind == "constant" and exponent != EXPONENT:
        found.append(f"exponent={exponent!r} is for staleness=polynomial or hinge, and it is constant; leave it out")
    if kind != "hinge" and hinge != HINGE:
        found.append(f"hinge={hinge!r} is for staleness=hinge, and it is {kind}; set that, or leave it out")
    return found


def discount(kind: Staleness, staleness: int, exponent: float, hinge: int) -> float:
    """s(t - tau) of Xie et al. 2019, section 5: how much an update counts that is `staleness` versions behind."""
    if kind == "polynomial":
        return float((1.0 + staleness) ** -exponent)
    if kind == "hinge" and staleness > hinge:
        return 1.0 / (exponent * (staleness - hinge) + 1.0)
    return 1.0

