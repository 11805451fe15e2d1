"""How far an update is from where it started."""

from __future__ import annotations

import math

from federation import kernels
from federation.core.types import WeightsLike
from federation.core.updates import comparable
from federation.core.weights import Weights


def squared_distance(weights: WeightsLike, start: Weights) -> float:
    """The squared L2 norm of `weights` - `start` over all parameters (Layout.parameters), the same bits on every rank.

    `weights` fit the layout of `start`. The order of summation within an array is fixed; arrays are added exactly.
    Infinite where float64 does not hold it.
    """
    given = start.layout.conform(weights, "an update")
    squares = [kernels.squared_distance(*comparable(given[index], start[index])) for index in start.layout.parameters]
    try:
        return math.fsum(squares)
    except OverflowError:  # of finite numbers; infinite ones are added
        return math.inf
