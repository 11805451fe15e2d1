"""Seconds by phase: of one process's round, and over all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class Timer:
    """Adds up the seconds spent in named phases. For one thread.

    `clock` returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._round: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body's seconds towards `name`, also when it raises. Phases may be nested; each counts its own."""
        start = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - start)

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


@dataclass(frozen=True)
class PhaseStatistics:
    """Seconds by phase over `ranks` ranks: the largest and the sum. A rank without a phase spent 0 s in it.

    Two of them merge into one in any order, so that they can be combined up a tree of ranks.
    """

    ranks: int
    maximum: Mapping[str, float]
    total: Mapping[str, float]

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> PhaseStatistics:
        """The statistics of a single rank."""
        return cls(1, dict(seconds), dict(seconds))

    @classmethod
    def over_ranks(cls, seconds: Sequence[Mapping[str, float]]) -> PhaseStatistics:
        """The statistics of several ranks, each given by what its `Timer.take` returned."""
        merged = cls(0, {}, {})
        for of_rank in seconds:
            merged = merged.merge(cls.of(of_rank))
        return merged

    def merge(self, other: PhaseStatistics) -> PhaseStatistics:
        names = dict.fromkeys((*self.maximum, *other.maximum))
        return PhaseStatistics(
            self.ranks + other.ranks,
            {name: max(self.maximum.get(name, 0.0), other.maximum.get(name, 0.0)) for name in names},
            {name: self.total.get(name, 0.0) + other.total.get(name, 0.0) for name in names},
        )

    @property
    def mean(self) -> dict[str, float]:
        """Mean seconds a rank by phase."""
        return {name: seconds / self.ranks for name, seconds in self.total.items()}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{"fit": {"max": ..., "mean": ...}, ...}`, in seconds."""
        mean = self.mean
        return {name: {"max": seconds, "mean": mean[name]} for name, seconds in self.maximum.items()}
