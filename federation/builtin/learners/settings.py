"""Settings of learners: what a `config` overrides for one call, and which values can be."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: What the engine adds to a `config`.
CONTEXT = ("round", "client_id")


def overrides(config: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """The settings that `config` gives, `epochs` under its other name, `local_epochs`.

    Raises ValueError for a key that is neither `known` nor the engine's, with the nearest one.
    """
    given = {name: value for name, value in (config or {}).items() if name not in CONTEXT}
    if "epochs" in given:
        epochs = given.pop("epochs")
        if given.setdefault("local_epochs", epochs) != epochs:
            raise ValueError(f"config: epochs={epochs!r} and local_epochs={given['local_epochs']!r} are two words for "
                             "one thing; give one of them")
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"config: unknown key {name!r}{f'; did you mean {near[0]}?' if near else ''} "
                             f"(known: epochs, {', '.join(known)}; other settings are the constructor's)")
    return given


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
