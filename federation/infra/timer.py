"""Seconds by phase of the server's round, and how evenly ranks were busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from federation.infra.trace import Spans


class Timer:
    """Adds up the seconds spent in named phases. For one thread.

    `clock` returns seconds that only grow. Phases are kept as `spans`, too, where somebody wants those.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, spans: Spans | None = None) -> None:
        self._clock = clock
        self._spans = spans or Spans()
        self._round: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body's seconds towards `name`, also when it raises. Phases may be nested; each counts its own."""
        start = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - start
            self.add(name, seconds)
            self._spans.add(name, seconds)

    def add(self, name: str, seconds: float) -> None:
        """Count `seconds`, measured elsewhere, towards `name`."""
        self._round[name] = self._round.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """The seconds by phase since the last `take` (a round); they go into the totals, and counting starts anew."""
        taken, self._round = self._round, {}
        for name, seconds in taken.items():
            self._totals[name] = self._totals.get(name, 0.0) + seconds
        return taken

    @property
    def totals(self) -> dict[str, float]:
        """Seconds by phase over all rounds that were taken; a copy."""
        return dict(self._totals)


class Balance:
    """How evenly ranks were busy, from the seconds that each one trained in each round."""

    def __init__(self) -> None:
        self._busy: dict[int, float] = {}
        self._longest = self._mean = 0.0

    def add(self, seconds: Mapping[int, float]) -> None:
        """A round: the seconds by rank, of those that trained."""
        for rank, spent in seconds.items():
            self._busy[rank] = self._busy.get(rank, 0.0) + spent
        self._longest += max(seconds.values())
        self._mean += sum(seconds.values()) / len(seconds)

    @property
    def efficiency(self) -> float:
        """The share of the training time in which the ranks trained, and did not wait for the last one."""
        return self._mean / self._longest if self._longest else 1.0

    def __str__(self) -> str:
        """For people; empty where a single rank has trained."""
        if len(self._busy) < 2:
            return ""
        straggler = max(self._busy, key=lambda rank: self._busy[rank])
        mean = sum(self._busy.values()) / len(self._busy)
        return (f"parallel efficiency {100 * self.efficiency:.0f} %; rank {straggler} trained longest, "
                f"{self._busy[straggler] / mean:.2f} times the mean")
