"""Exact sample-weighted means of metrics: the same in every order and over any split of the clients."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

#: Every finite float64 is a whole multiple of 2**-1074, the smallest one.
_UNIT_BITS = 1074


class MetricSum:
    """Weighted sums of metrics by key, kept as integers, so that adding and merging round nothing.

    left_out: keys of values that are not numbers (None, text, arrays), which no mean takes in.
    """

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self._sums: dict[str, int] = {}  # in units of 2**-1074
        self._weights: dict[str, int] = {}
        self._not_finite: set[str] = set()

    def add(self, metrics: Mapping[str, Any], num_samples: int) -> None:
        """Add means over `num_samples` samples: numbers, NumPy scalars, 0-d arrays and tensors.

        A NaN or infinite value makes the mean of its key NaN. Raises ValueError, with nothing added, unless
        `num_samples` is an integer of 0 or more; 0 adds nothing but `left_out`.
        """
        if isinstance(num_samples, bool) or not isinstance(num_samples, (int, np.integer)) or num_samples < 0:
            raise ValueError(f"num_samples must be an integer of 0 or more, not {num_samples!r}")
        weight = int(num_samples)
        for key, value in metrics.items():
            number = as_number(value)
            if number is None or not isinstance(key, str):
                self.left_out.add(str(key))
            elif weight > 0:
                self._weights[key] = self._weights.get(key, 0) + weight
                self._sums.setdefault(key, 0)
                if math.isfinite(number):
                    self._sums[key] += _in_units(number) * weight
                else:
                    self._not_finite.add(key)

    def merge(self, other: MetricSum) -> None:
        """Add all that was added to `other`, which stays as it is."""
        for key, weight in other._weights.items():
            self._weights[key] = self._weights.get(key, 0) + weight
            self._sums[key] = self._sums.get(key, 0) + other._sums[key]
        self._not_finite |= other._not_finite
        self.left_out |= other.left_out

    def means(self) -> dict[str, float]:
        """The mean of each key over the samples of those who gave it, rounded once; keys are sorted."""
        return {key: math.nan if key in self._not_finite else self._sums[key] / (self._weights[key] << _UNIT_BITS)
                for key in sorted(self._weights)}

    @property
    def most_samples(self) -> int:
        """The most samples that a mean is taken over."""
        return max(self._weights.values(), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain builtins (integers as hexadecimal text, which no message format limits); `from_dict` reads them."""
        return {
            "sums": {key: hex(total) for key, total in sorted(self._sums.items())},
            "weights": {key: hex(weight) for key, weight in sorted(self._weights.items())},
            "not_finite": sorted(self._not_finite),
            "left_out": sorted(self.left_out),
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> MetricSum:
        """The sum that `to_dict` described. Raises ValueError where the description contradicts itself."""
        result = cls()
        result._sums = {key: int(text, 16) for key, text in description["sums"].items()}
        result._weights = {key: int(text, 16) for key, text in description["weights"].items()}
        result._not_finite = set(description["not_finite"])
        result.left_out = set(description["left_out"])
        if result._sums.keys() != result._weights.keys() or not result._not_finite <= result._weights.keys():
            raise ValueError("sums, weights and not_finite of a metric sum must name the same keys")
        if not all(isinstance(key, str) for key in result._weights):
            raise ValueError("the keys of a metric sum must be text")
        if min(result._weights.values(), default=1) <= 0:
            raise ValueError("the weights of a metric sum must be above 0")
        return result

    @classmethod
    def total(cls, descriptions: Iterable[Mapping[str, Any]]) -> MetricSum:
        """The sum of all that `to_dict` described."""
        total = cls()
        for description in descriptions:
            total.merge(cls.from_dict(description))
        return total


def _in_units(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return numerator << (_UNIT_BITS - (denominator.bit_length() - 1))


def as_number(value: Any) -> float | None:
    """`value` as a float64, or None where it is not a number. An integer beyond float64 counts as infinite."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
