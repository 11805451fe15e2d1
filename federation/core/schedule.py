"""Learning rates that change over rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """What a learning rate is multiplied by in each round, from 1 on.

    constant: 1. step: `lr_gamma` once more after every `lr_step_rounds` rounds. cosine: from 1 in the first round down to
    `lr_floor` in round `lr_rounds`, and there it stays (Loshchilov and Hutter 2017, without restarts). The first
    `lr_warmup_rounds` rounds rise to that in equal steps.
    """

    lr_schedule: Literal["constant", "step", "cosine"] = "constant"
    lr_rounds: int | None = None
    lr_warmup_rounds: int = 0
    lr_step_rounds: int | None = None
    lr_gamma: float = 0.1
    lr_floor: float = 0.0

    def problems(self) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        found = []
        if self.lr_schedule not in ("constant", "step", "cosine"):
            found.append(f"lr_schedule={self.lr_schedule!r} is not one of constant, step, cosine")
        for name, owner in (("lr_rounds", "cosine"), ("lr_step_rounds", "step")):
            value = getattr(self, name)
            if self.lr_schedule == owner and not _is_count(value):
                found.append(f"{name}={value!r}: lr_schedule={owner} needs a whole number of at least 1")
            elif self.lr_schedule != owner and value is not None:
                found.append(f"{name}={value!r} is for lr_schedule={owner}, and it is {self.lr_schedule}")
        if not _is_count(self.lr_warmup_rounds) and self.lr_warmup_rounds != 0:
            found.append(f"lr_warmup_rounds={self.lr_warmup_rounds!r} is not a whole number of at least 0")
        for name, owner in (("lr_gamma", "step"), ("lr_floor", "cosine")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                found.append(f"{name}={value!r} is not a number from 0 to 1")
            elif self.lr_schedule != owner and value != getattr(Schedule, name):
                found.append(f"{name}={value!r} is for lr_schedule={owner}, and it is {self.lr_schedule}")
        return found

    def factor(self, round: int) -> float:
        """The factor of `round`, 1 or above.

        The same bits on every platform: the cosine, whose last places differ between mathematical libraries, is rounded to
        12 decimals, and powers are multiplied out.
        """
        warm = min(1.0, round / (self.lr_warmup_rounds + 1)) if self.lr_warmup_rounds else 1.0
        if self.lr_schedule == "step":
            assert self.lr_step_rounds is not None
            return warm * math.prod([self.lr_gamma] * ((round - 1) // self.lr_step_rounds))
        if self.lr_schedule == "cosine":
            assert self.lr_rounds is not None
            done = min(1.0, (round - 1) / max(1, self.lr_rounds - 1))
            return warm * (self.lr_floor + (1 - self.lr_floor) * _rounded(0.5 * (1 + math.cos(math.pi * done))))
        return warm


def _rounded(value: float) -> float:
    return round(value, 12)  # `round` is a method's argument above


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
