"""What one rank has of the updates of a round: their sum, or a row of each, and packed ones where they are fetched so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from federation.core.aggregator import Aggregator, MeanAggregator, count_of
from federation.core.compression import Packing
from federation.core.matrix import checked_row, combination
from federation.core.random import stream
from federation.core.types import ClientUpdate, WeightsLike
from federation.core.updates import Contribution, UpdateSum, make_sum
from federation.core.weights import Allocate, Layout, Weights
from federation.errors import UpdateError
from federation.node.protocol import Combine, Combined, Fit


class Updates:
    """The updates of clients that one rank has trained, as the order that began the round wants them.

    `aggregator` weighs them, where it has a rule of its own for that. `seed` is that of the draws of compression.
    `allocate(nbytes)` gives the uint8 memory for sums (None: ordinary memory), which is kept from round to round.
    """

    def __init__(self, aggregator: Aggregator | None, seed: int, allocate: Allocate | None) -> None:
        self.aggregator = aggregator
        self._seed = seed
        self._allocate = allocate
        self._round: tuple[Fit, Weights] | None = None  # the order that began it, and what clients start from
        self._sum: UpdateSum | None = None
        self._sum_kind: tuple[str, Layout] | None = None
        self._rows: dict[str, tuple[Weights, Mapping[str, Any]]] = {}
        self._packing: Packing | None = None
        self._packed: dict[str, tuple[np.ndarray, Mapping[str, Any]]] = {}

    def forget(self, allocate: Allocate | None) -> None:
        """As before the first round; `allocate` gives memory from now on."""
        self._clear()
        self._sum = self._sum_kind = None
        self._allocate = allocate

    def begin(self, order: Fit, start: Weights, local: Sequence[int]) -> None:
        """There is none yet of the round of `order`, whose clients train from `start`; it is borrowed until the next begins.

        Arrays at the places `local` are not compressed.
        """
        self._clear()
        self._round = order, start
        if order.compression:
            self._packing = Packing(order.compression, start, local)
        if order.needs != "mean":
            return
        kind = (order.reduction, start.layout)
        if self._sum is None or self._sum_kind != kind:
            self._sum = make_sum(order.reduction, start.layout, start, total_samples=order.total_samples,
                                 cohort_size=order.cohort_size, allocate=self._allocate)
            self._sum_kind = kind
        else:
            self._sum.reset(start, order.total_samples, order.cohort_size, order.peaks)

    def take(self, client_id: str, arrays: WeightsLike, num_samples: int, metrics: Mapping[str, Any],
             rest: np.ndarray | None) -> tuple[float, np.ndarray | None]:
        """Keep the row of a client, or add it to the sum; returns what it counts for in the divisor, and what compression
        has left out. `rest` is what that was the last time.

        Raises what `UpdateSum.add` raises.
        """
        order, start = self._begun
        left_out = None
        if self._packing is not None:
            packed = self._packing.pack(client_id, start.layout.conform(arrays, client_id),
                                        stream(self._seed, "compression", order.round, client_id), rest)
            if packed is not None:
                arrays, left_out = packed.arrays, packed.rest
                if order.packed:
                    self._packed[client_id] = packed.data, metrics
        if order.needs == "mean":
            return self.add(client_id, arrays, num_samples, metrics), left_out
        self._rows[client_id] = checked_row(client_id, arrays, start), metrics
        return float(count_of(order.weighting, num_samples)), left_out

    def add(self, client_id: str, arrays: WeightsLike, num_samples: int, metrics: Mapping[str, Any]) -> float:
        """Add the update of a client, which may have been trained elsewhere, to the sum; what it counts for in the divisor.

        Raises what `UpdateSum.add` raises.
        """
        order, start = self._begun
        count = count_of(order.weighting, num_samples)
        contribution = Contribution(count, count)
        if order.weighs and count:
            if not isinstance(self.aggregator, MeanAggregator):
                raise UpdateError(f"{client_id}: the server's aggregator weighs updates by a rule of its own, which "
                                  "this rank does not have: give its ClientNode the same aggregator")
            contribution = self.aggregator.weigh(ClientUpdate(client_id, arrays, num_samples, metrics), start)
        self.sum.add(client_id, arrays, count, contribution)
        return float(contribution.divisor)

    def combine(self, order: Combine) -> Combined:
        """Add up rows, times coefficients, into the sum."""
        _, start = self._begun
        total = combination(start, order.cohort_size, self._allocate)
        for client_id, coefficient in order.coefficients.items():
            total.add(client_id, self._rows[client_id][0], 1, Contribution(coefficient, 0.0))
        self._sum, self._sum_kind = total, None
        return Combined(limbs=total.num_limbs)

    @property
    def sum(self) -> UpdateSum:
        """The sum of the last round that needed a mean, or of the last `combine`."""
        assert self._sum is not None, "no fit with needs='mean' yet"
        return self._sum

    @property
    def limbs(self) -> int:
        """The words of the sum of this round; 0 where it has none."""
        return self.sum.num_limbs if self._begun[0].needs == "mean" else 0

    @property
    def packing(self) -> Packing:
        """How updates are packed."""
        assert self._packing is not None, "no fit with a compression yet"
        return self._packing

    def of(self, client_id: str) -> tuple[np.ndarray, Mapping[str, Any]]:
        """The bytes (owned here, until the next round begins) and metrics of one client's update: packed, or of its row."""
        if client_id in self._packed:
            return self._packed[client_id]
        weights, metrics = self.row(client_id)
        return weights.buffer, metrics

    def row(self, client_id: str) -> tuple[Weights, Mapping[str, Any]]:
        """The update (owned here, until the next round begins) and metrics of one client, where rows are kept."""
        return self._rows[client_id]

    @property
    def _begun(self) -> tuple[Fit, Weights]:
        assert self._round is not None, "no fit yet"
        return self._round

    def _clear(self) -> None:
        self._rows.clear()
        self._packed.clear()
        self._packing = None
