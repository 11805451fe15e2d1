"""How long clients take: distributions, what they depend on, and settings that cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.latency import Latency
from federation.errors import ConfigError

stats = pytest.importorskip("scipy.stats")


def test_constant_work_takes_what_it_says() -> None:
    assert Latency(work_seconds=2.5).seconds(0, "client_0", 1, 1000) == 2.5
    assert Latency(work_seconds=1.0, sample_seconds=0.5).seconds(3, "a", 9, 4) == 3.0
    assert Latency(work_seconds=0.0, sample_seconds=0.25).seconds(3, "a", 9, 8) == 2.0


@pytest.mark.parametrize(("latency", "law"), [
    (Latency("uniform", spread=0.5), stats.uniform(0.5, 1.0)),
    (Latency("uniform", spread=1.0), stats.uniform(0.0, 2.0)),
    (Latency("exponential"), stats.expon()),
    (Latency("lognormal", spread=0.7), stats.lognorm(0.7)),
    (Latency("lognormal", spread=2.0), stats.lognorm(2.0)),
])
def test_one_client_varies_by_the_law_of_its_kind(latency: Latency, law: object) -> None:
    seconds = [latency.seconds(1, "client_5", number, 10) for number in range(1500)]
    assert stats.kstest(seconds, law.cdf).pvalue > 1e-3  # type: ignore[attr-defined]
    doubled = Latency(latency.kind, 1.0, 0.1, latency.spread).seconds(1, "client_5", 3, 10)
    assert doubled == 2 * seconds[3], "the variation multiplies the nominal duration"


def test_clients_differ_by_a_slowness_of_their_own() -> None:
    latency = Latency("constant", work_seconds=1.0, client_spread=0.6)
    slowness = [latency.seconds(4, f"client_{index}", 0, 1) for index in range(1500)]
    assert stats.kstest(slowness, stats.lognorm(0.6).cdf).pvalue > 1e-3
    assert [latency.seconds(4, "client_7", number, 1) for number in range(5)] == [slowness[7]] * 5
    assert latency.slowness(4, "client_7") == slowness[7]
    varying = Latency("exponential", client_spread=0.6)
    same = Latency("exponential")
    expected = slowness[7] * same.seconds(4, "client_7", 2, 1)
    assert varying.seconds(4, "client_7", 2, 1) == pytest.approx(expected, rel=1e-15)


def test_equal_clients_take_their_turns_independently() -> None:
    latency = Latency("lognormal", spread=0.5)
    table = np.array([[latency.seconds(0, f"client_{client}", number, 1) for number in range(300)]
                      for client in range(3)])
    assert abs(np.corrcoef(np.log(table)) - np.eye(3)).max() < 4 / math.sqrt(300)
    assert abs(np.corrcoef(np.log(table[0, :-1]), np.log(table[0, 1:]))[0, 1]) < 4 / math.sqrt(300)


@given(kind=st.sampled_from(["constant", "uniform", "exponential", "lognormal"]), seed=st.integers(0, 2**63 - 1),
       client=st.text(max_size=8), number=st.integers(0, 10**9), samples=st.integers(0, 2**48),
       work=st.floats(0, 1e9), each=st.floats(0, 1e9), spread=st.floats(0, 1), client_spread=st.floats(0, 10))
@settings(max_examples=200, deadline=None)
def test_seconds_are_positive_finite_and_fixed(kind: str, seed: int, client: str, number: int, samples: int,
                                               work: float, each: float, spread: float, client_spread: float) -> None:
    if work == each == 0:
        work = 1.0
    takes = spread if kind in ("uniform", "lognormal") else 0.0
    latency = Latency(kind, work, each, takes, client_spread)  # type: ignore[arg-type]
    seconds = latency.seconds(seed, client, number, samples)
    assert type(seconds) is float
    assert 0 < seconds < math.inf
    latency.seconds(seed, client, number + 1, samples)  # what is asked in between makes no difference
    assert seconds == latency.seconds(seed, client, number, samples)


@pytest.mark.parametrize(("latency", "expected"), [
    (Latency("uniform", spread=0.5),
     ["0x1.25fbc64c436d7p-1", "0x1.2eccd05909c32p+0", "0x1.74ae9de6cfee4p+0"]),
    (Latency("exponential"),
     ["0x1.4cf33bea6a933p+1", "0x1.86b10662906adp-2", "0x1.726c43bef2229p-5"]),
    (Latency("lognormal", 2.0, 0.01, 1.0, 0.5),
     ["0x1.cd012233b726ap-1", "0x1.1ab85f093375ep+0", "0x1.2c679d09891c0p-1"]),
])
def test_seconds_stay_what_they_are(latency: Latency, expected: list[str]) -> None:
    """Runs of earlier versions and of other platforms can be repeated, to the last bit."""
    assert [latency.seconds(7, f"client_{client}", 3, 20).hex() for client in range(3)] == expected


@pytest.mark.parametrize(("given_settings", "expected"), [
    (dict(kind="gamma"), ["kind 'gamma' is not known; allowed are constant, uniform, exponential, lognormal"]),
    (dict(spread=0.5), ["constant has no spread, and spread is 0.5"]),
    (dict(kind="exponential", spread=1), ["exponential has no spread, and spread is 1"]),
    (dict(kind="uniform", spread=1.5), ["spread 1.5 is not a number from 0 to 1"]),
    (dict(kind="lognormal", spread=11), ["spread 11 is not a number from 0 to 10"]),
    (dict(work_seconds=float("nan")), ["work_seconds nan is not a number from 0 to 1e+09"]),
    (dict(work_seconds=float("inf")), ["work_seconds inf is not a number"]),
    (dict(work_seconds=True), ["work_seconds True is not a number"]),
    (dict(work_seconds="1"), ["work_seconds '1' is not a number"]),
    (dict(work_seconds=0), ["work_seconds and sample_seconds are both 0"]),
    (dict(work_seconds=-1, sample_seconds=2e9, client_spread=-0.1, spread=-1),
     ["work_seconds -1 is", "sample_seconds 2000000000.0 is", "spread -1 is", "client_spread -0.1 is"]),
])
def test_settings_that_cannot_be_are_refused_together(given_settings: dict[str, object], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Latency(**given_settings)  # type: ignore[arg-type]
    assert len(caught.value.problems) == len(expected)
    for problem, text in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(f"latency: {text}")


@pytest.mark.parametrize(("number", "samples"), [(-1, 1), (1, -1)])
def test_neither_number_nor_samples_are_negative(number: int, samples: int) -> None:
    with pytest.raises(ValueError, match=r"of client_1, .* neither may be negative"):
        Latency().seconds(0, "client_1", number, samples)
