"""That robust rules withstand what they are for: digits with 4 of 20 clients malicious, as benchmarks/bench_robust.py
has it, on a small model."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROUNDS = 15


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    """accuracy(rule, attack), of a run of its own, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        bench = import_module("bench_robust")
    return cache(lambda rule, attack: bench.accuracy(rule, attack, "linear", ROUNDS, tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("attack", ["sign_flip", "large_norm"])
def test_the_mean_falls(accuracy, attack):
    assert accuracy("fedavg", "none") > 0.9
    assert accuracy("fedavg", attack) < accuracy("fedavg", "none") - 0.15


@pytest.mark.parametrize("attack", ["sign_flip", "large_norm"])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "multikrum", "bulyan", "geometric_median", "centred_clipping"])
def test_robust_rules_stay_within_three_points_of_the_mean_without_attackers(accuracy, rule, attack):
    assert accuracy(rule, attack) >= accuracy("fedavg", "none") - 0.03


@pytest.mark.parametrize("attack", ["sign_flip", "large_norm"])
def test_krum_stays_within_three_points_of_itself(accuracy, attack):
    """It follows one client's update a round, and is further from the mean of all, attacked or not."""
    assert accuracy("krum", attack) >= accuracy("krum", "none") - 0.03
