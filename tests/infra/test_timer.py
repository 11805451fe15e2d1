"""Seconds by phase, on a clock that the tests turn."""

from __future__ import annotations

import pytest

from federation.infra.timer import Balance, Timer


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


def test_balance() -> None:
    """Two rounds: 1 of 2 s and then 3 of 4 s on average; rank 2 has 5 s, and the mean of all three is 4 s / 3 * 3."""
    balance = Balance()
    assert (str(balance), balance.efficiency) == ("", 1.0)
    balance.add({1: 2.0, 2: 1.0, 3: 0.0})
    assert balance.efficiency == 0.5
    balance.add({1: 2.0, 2: 4.0, 3: 3.0})
    assert balance.efficiency == (1 + 3) / (2 + 4)
    assert str(balance) == "parallel efficiency 67 %; rank 2 trained longest, 1.25 times the mean"


def test_one_rank_alone_is_no_matter_of_balance() -> None:
    balance = Balance()
    balance.add({0: 2.0})
    assert str(balance) == ""
