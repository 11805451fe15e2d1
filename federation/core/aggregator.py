"""The aggregator: how the updates of a round become the new global weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from federation.core.types import ClientUpdate, WeightsLike
from federation.core.updates import ExactSum
from federation.core.weights import Layout, Weights

Needs = Literal["rows", "mean", "matrix"]


class Aggregator(ABC):
    """Turns a round's updates into new weights.

    `needs` says what has to travel for it, and the engine moves no more:

    - ``"rows"`` (the default, right for any class): every update is brought to the server, one at a time,
      and `aggregate` is called there with all of them, in the order of the cohort.
    - ``"mean"``: ranks add updates up as their clients finish and one reduction brings the mean; see MeanAggregator.
    - ``"matrix"``: updates stay on their ranks as the rows of a distributed matrix. Reserved.
    """

    needs: ClassVar[Needs] = "rows"

    @abstractmethod
    def aggregate(self, updates: Sequence[ClientUpdate], global_model: WeightsLike | None = None) -> WeightsLike:
        """The new global weights from `updates` (never empty), which started from `global_model`.

        Pure: neither `updates` nor `global_model` may be changed. Returns arrays in the model's order.
        """

    def state(self) -> dict[str, Any]:
        """What must survive a restart: named arrays and scalars, nested as needed."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take on what `state` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {sorted(state)}")


class MeanAggregator(Aggregator):
    """An aggregator that needs only the weighted mean of the updates.

    Subclasses say what each update counts (`weighting`) and what to do with the mean (`step`).
    """

    needs: ClassVar[Needs] = "mean"
    #: What an update counts in the mean: its number of samples, or one.
    weighting: Literal["samples", "uniform"] = "samples"

    @abstractmethod
    def step(self, start: Weights, mean: Weights) -> None:
        """Turn `mean`, in place, into the new global weights; `start` are those that the round began with."""

    def aggregate(self, updates: Sequence[ClientUpdate], global_model: WeightsLike | None = None) -> Weights:
        """The same step on updates at hand; the same bits as the reduction gives for the samples that it planned with.

        Without `global_model` the sum is taken around zero, which is exact as well; only the resolution differs.
        Raises RoundError when the weights of all updates add up to zero.
        """
        layout = Layout.of(updates[0].weights if global_model is None else global_model)
        start = Weights.zeros(layout)
        if global_model is not None:
            start.copy_from(global_model, who="the global model")
        counts = [update.num_samples if self.weighting == "samples" else 1 for update in updates]
        total = ExactSum(layout, start, total_samples=max(1, sum(counts)), cohort_size=len(updates))
        for update, count in zip(updates, counts, strict=True):
            total.add(update.client_id, update.weights, count)
        mean = Weights.zeros(layout)
        total.mean_into(mean)
        self.step(start, mean)
        return mean
