"""Seconds by phase, on a clock that the tests turn."""

from __future__ import annotations

import random

import pytest

from federation.infra.timer import PhaseStatistics, Timer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_add_up_by_round_and_in_total() -> None:
    clock = Clock()
    timer = Timer(clock)
    for _ in range(2):
        with timer.phase("fit"):
            clock.now += 2
        clock.now += 50  # belongs to no phase
    with timer.phase("reduce"):
        clock.now += 1
        with timer.phase("step"):
            clock.now += 0.5
    timer.add("elsewhere", 3)
    assert timer.take() == {"fit": 4, "step": 0.5, "reduce": 1.5, "elsewhere": 3}
    assert timer.take() == {}
    with timer.phase("fit"):
        clock.now += 1
    assert timer.take() == {"fit": 1}
    assert timer.totals == {"fit": 5, "step": 0.5, "reduce": 1.5, "elsewhere": 3}


def test_a_phase_that_raises_is_counted_and_raises() -> None:
    clock = Clock()
    timer = Timer(clock)

    def fit() -> None:
        with timer.phase("fit"):
            clock.now += 2
            raise KeyError

    with pytest.raises(KeyError):
        fit()
    assert timer.take() == {"fit": 2}


def test_the_default_clock_runs() -> None:
    timer = Timer()
    with timer.phase("fit"):
        pass
    assert timer.take()["fit"] >= 0


def test_statistics_over_ranks() -> None:
    ranks = [{"fit": 1.0, "reduce": 0.5}, {"fit": 3.0}, {"fit": 2.0, "reduce": 1.0}, {}]
    statistics = PhaseStatistics.over_ranks(ranks)
    assert statistics.to_dict() == {"fit": {"max": 3.0, "mean": 1.5}, "reduce": {"max": 1.0, "mean": 0.375}}
    assert PhaseStatistics.over_ranks([]).to_dict() == {}


def test_statistics_merge_in_any_grouping() -> None:
    draw = random.Random(2)
    ranks = [{name: float(draw.randrange(100)) for name in draw.sample("abcd", 3)} for _ in range(7)]
    whole = PhaseStatistics.over_ranks(ranks).to_dict()
    for cut in range(8):
        parts = PhaseStatistics.over_ranks(ranks[cut:]).merge(PhaseStatistics.over_ranks(ranks[:cut]))
        assert parts.to_dict() == whole
