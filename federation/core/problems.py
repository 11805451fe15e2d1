"""What is wrong with a setting, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def whole_number_problem(name: str, value: object) -> list[str]:
    """[] for an integer of at least 1, else one sentence."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1:
        return []
    return [f"{name}={value!r} is not a whole number of at least 1"]


def number_problem(name: str, value: object) -> list[str]:
    """[] for a finite number of at least 0, else one sentence."""
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if is_real and 0 <= value < math.inf:  # type: ignore[operator]
        return []
    return [f"{name}={value!r} is not a number of at least 0"]


def choice_problem(name: str, value: object, allowed: Sequence[str]) -> list[str]:
    """[] for one of `allowed`, else one sentence."""
    return [] if value in allowed else [f"{name}={value!r} is not one of {', '.join(allowed)}"]
