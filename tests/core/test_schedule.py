"""Schedules of learning rates over rounds, against torch's schedulers and by hand."""

from __future__ import annotations

import pytest
import torch

from federation.core.schedule import Schedule


def torch_factors(make, rounds: int) -> list[float]:
    """What a scheduler of torch multiplies a rate of 1 by, in each of the rounds from 1 on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(rounds):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def factors(rounds: int, **settings) -> list[float]:
    schedule = Schedule(**settings)
    assert schedule.problems() == []
    return [schedule.factor(round) for round in range(1, rounds + 1)]


def test_constant():
    assert factors(5) == [1.0] * 5


@pytest.mark.parametrize(("every", "gamma"), [(1, 0.9), (3, 0.1), (4, 0.5), (100, 0.1), (2, 0.0), (2, 1.0)])
def test_step(every, gamma):
    found = factors(13, lr_schedule="step", lr_step_rounds=every, lr_gamma=gamma)
    wanted = torch_factors(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, every, gamma), 13)
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("rounds", [2, 3, 10, 101])
@pytest.mark.parametrize("floor", [0.0, 0.05, 1.0])
def test_cosine(rounds, floor):
    """From 1 in the first round to the floor in the last one."""
    found = factors(rounds, lr_schedule="cosine", lr_rounds=rounds, lr_floor=floor)
    wanted = torch_factors(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds - 1, floor), rounds)
    assert found == pytest.approx(wanted, abs=1e-11)
    assert (found[0], found[-1]) == (1.0, floor)


def test_the_cosine_stays_at_its_floor():
    assert factors(6, lr_schedule="cosine", lr_rounds=3, lr_floor=0.25)[2:] == [0.25] * 4
    assert factors(3, lr_schedule="cosine", lr_rounds=1)[0] == 1.0


def test_the_cosine_has_no_more_than_twelve_decimals():
    """So that mathematical libraries whose cosines differ in the last place agree."""
    found = factors(50, lr_schedule="cosine", lr_rounds=50)
    assert all(float(f"{value:.12f}") == value for value in found)
    assert len(set(found)) == 50


def test_warm_up():
    """Equal steps up to the schedule's own value, which it multiplies."""
    assert factors(6, lr_warmup_rounds=3) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors(4, lr_warmup_rounds=1, lr_schedule="step", lr_step_rounds=2, lr_gamma=0.5) == [0.5, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(("settings", "words"), [
    (dict(lr_schedule="linear"), "lr_schedule"), (dict(lr_schedule="cosine"), "lr_rounds"),
    (dict(lr_schedule="step"), "lr_step_rounds"), (dict(lr_schedule="cosine", lr_rounds=0), "lr_rounds"),
    (dict(lr_schedule="step", lr_step_rounds=1.5), "lr_step_rounds"), (dict(lr_rounds=5), "lr_rounds"),
    (dict(lr_schedule="cosine", lr_rounds=5, lr_step_rounds=2), "lr_step_rounds"),
    (dict(lr_schedule="step", lr_step_rounds=True), "lr_step_rounds"), (dict(lr_warmup_rounds=-1), "lr_warmup_rounds"),
    (dict(lr_warmup_rounds=1.0), "lr_warmup_rounds"), (dict(lr_gamma=-0.1), "lr_gamma"), (dict(lr_gamma=1.1), "lr_gamma"),
    (dict(lr_floor=float("nan")), "lr_floor"), (dict(lr_floor="x"), "lr_floor"), (dict(lr_gamma=0.5), "lr_gamma"),
    (dict(lr_schedule="cosine", lr_rounds=5, lr_gamma=0.5), "lr_gamma"), (dict(lr_floor=0.01), "lr_floor"),
    (dict(lr_schedule="step", lr_step_rounds=5, lr_floor=0.01), "lr_floor"),
])
def test_settings_that_cannot_be(settings, words):
    (found,) = Schedule(**settings).problems()
    assert found.startswith(words)


def test_all_problems_are_named():
    assert len(Schedule("cosine", lr_warmup_rounds=-1, lr_gamma=2, lr_floor=-1).problems()) == 4
