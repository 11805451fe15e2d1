"""Who takes part in a round: over-selection, deadlines, and both clocks."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import federation
from federation import EvalResult, Learner, TrainResult
from federation.builtin.trainers.cohorts import Cohorts, latency_of, sampler_of
from federation.config import trainer_config
from federation.core.metrics import MetricSum
from federation.core.weights import Weights
from federation.data.availability import AvailableSampler, DayAndNight, read_trace
from federation.data.latency import Latency
from federation.data.sampling import draw_cohort, weighted
from federation.errors import ConfigError, RoundError
from federation.node import host as host_module
from federation.node.host import ClientHost
from federation.node.protocol import Fit
from federation.node.proxy import ClientProxy, ClientTable
from federation.node.round import Fitted, Plan, check_problems
from tests.node.worlds import Arrays, f32


def draw(sizes: list[int], round: int = 1, seed: int = 0, **config: Any) -> Any:
    """The cohort of one round of clients with these samples."""
    return Cohorts(trainer_config(config), seed).draw(ClientTable(np.array(sizes, np.int64)), round)


def names_of(cohort: Any) -> list[str]:
    return [client.client_id for client in cohort.clients]


def by_samples(seconds: float = 1.0) -> dict[str, Any]:
    """A client with n samples takes n times `seconds`."""
    return {"kind": "constant", "work_seconds": 0.0, "sample_seconds": seconds}


# -- the virtual clock ------------------------------------------------------------------------------------------------

def test_the_fastest_count_and_the_round_closes_with_the_last_of_them() -> None:
    cohort = draw([5, 1, 4, 2, 3], cohort_size=3, over_select=1.5, latency=by_samples())  # ceil(4.5) = 5 are drawn
    assert names_of(cohort) == ["client_1", "client_3", "client_4"]
    assert (cohort.late, cohort.virtual_seconds, cohort.deadline) == (2, 3.0, None)


def test_ties_go_to_the_first_in_the_table() -> None:
    cohort = draw([2, 2, 1, 2, 2], cohort_size=3, over_select=2, latency=by_samples())
    assert names_of(cohort) == ["client_0", "client_1", "client_2"]
    assert (cohort.late, cohort.virtual_seconds) == (2, 2.0)


@pytest.mark.parametrize(("deadline", "expected", "late", "closes"), [
    (3.0, ["client_1", "client_3", "client_4"], 2, 3.0),   # exactly at the deadline is in time
    (2.999, ["client_1", "client_3"], 3, 2.999),           # the third is waited for until the deadline
    (10.0, ["client_1", "client_3", "client_4"], 2, 3.0),  # all that are wanted are there before it
])
def test_a_deadline_closes_the_round(deadline: float, expected: list[str], late: int, closes: float) -> None:
    cohort = draw([5, 1, 4, 2, 3], cohort_size=3, over_select=1.5, deadline=deadline, latency=by_samples())
    assert (names_of(cohort), cohort.late, cohort.virtual_seconds) == (expected, late, closes)


def test_without_over_selection_a_deadline_leaves_clients_out() -> None:
    cohort = draw([5, 1, 4, 2, 3], deadline=3.5, latency=by_samples())
    assert (names_of(cohort), cohort.late, cohort.virtual_seconds) == (["client_1", "client_3", "client_4"], 2, 3.5)


def test_a_latency_alone_times_the_round() -> None:
    cohort = draw([5, 1, 4, 2, 3], latency=by_samples(0.5))
    assert (len(cohort.clients), cohort.late, cohort.virtual_seconds) == (5, 0, 2.5)


@pytest.mark.parametrize(("deadline", "least", "message"), [
    (2.5, 3, "round 1: 2 of the 5 clients drawn are done by the deadline, 2.5 s, and min_clients is 3; the first would "
             "be done after 1 s"),
    (0.5, 1, "round 1: 0 of the 5 clients drawn are done by the deadline, 0.5 s, and min_clients is 1; the first would "
             "be done after 1 s"),
])
def test_too_few_in_time_is_an_error_with_numbers(deadline: float, least: int, message: str) -> None:
    with pytest.raises(RoundError) as caught:
        draw([5, 1, 4, 2, 3], cohort_size=3, over_select=1.5, deadline=deadline, latency=by_samples(),
             min_clients=least)
    assert str(caught.value) == message


@given(seed=st.integers(0, 999), round=st.integers(1, 50), num_clients=st.integers(1, 30), data=st.data(),
       factor=st.sampled_from([None, 1.0, 1.3, 2.0]), deadline=st.none() | st.sampled_from([0.3, 1.0, 3.0]),
       kind=st.sampled_from(["constant", "uniform", "exponential", "lognormal"]))
@settings(max_examples=200, deadline=None)
def test_a_queue_of_events_finds_the_same(seed: int, round: int, num_clients: int, data: st.DataObject,
                                          factor: float | None, deadline: float | None, kind: str) -> None:
    """The clients report one after the other; the round closes at the deadline, or with the last that is wanted."""
    size = data.draw(st.integers(1, num_clients))
    sizes = np.array(data.draw(st.lists(st.integers(1, 4), min_size=num_clients, max_size=num_clients)), np.int64)
    spread = 0.5 if kind in ("uniform", "lognormal") else 0.0
    latency = Latency(kind, 0.5, 0.25, spread, 0.2)  # type: ignore[arg-type]
    wanted = min(num_clients, -(-size * {None: 10, 1.0: 10, 1.3: 13, 2.0: 20}[factor] // 10))
    drawn = draw_cohort(seed, round, num_clients, wanted)
    events = [(latency.seconds(seed, f"client_{index}", round, int(sizes[index])), index) for index in drawn.tolist()]
    heapq.heapify(events)
    reported: list[int] = []
    now = 0.0
    while events and len(reported) < size and now != deadline:
        at, index = heapq.heappop(events)
        if deadline is not None and at > deadline:
            now = deadline
        else:
            now = at
            reported.append(index)
    config = dict(cohort_size=size, over_select=factor, deadline=deadline,
                  latency={"kind": kind, "work_seconds": 0.5, "sample_seconds": 0.25, "spread": spread,
                           "client_spread": 0.2})
    cohorts = Cohorts(trainer_config(config), seed)
    if not reported:
        with pytest.raises(RoundError, match="0 of the"):
            cohorts.draw(ClientTable(sizes), round)
        return
    cohort = cohorts.draw(ClientTable(sizes), round)
    assert names_of(cohort) == [f"client_{index}" for index in sorted(reported)]
    assert cohort.late == wanted - len(reported)
    assert cohort.virtual_seconds == now


# -- who is drawn -----------------------------------------------------------------------------------------------------

def test_plain_rounds_draw_as_ever() -> None:
    cohort = draw([3] * 20, round=4, seed=9, cohort_size=6)
    assert names_of(cohort) == [f"client_{index}" for index in draw_cohort(9, 4, 20, 6)]
    assert (cohort.late, cohort.virtual_seconds, cohort.deadline) == (0, None, None)
    assert len(draw([3] * 100, fraction=0.29).clients) == 29
    assert len(draw([3] * 7).clients) == 7


def test_a_cohort_that_was_drawn_ahead_is_the_one_that_would_be_drawn() -> None:
    table = ClientTable()
    for index in range(12):
        table.add(ClientProxy(f"c{index}", 3, rank=1 + index % 3))
    cohorts = Cohorts(trainer_config({"cohort_size": 4}), 9)
    drawn: list[int] = []
    sampler, cohorts._sampler = cohorts._sampler, lambda seed, round, *rest: drawn.append(round) or sampler(seed, round, *rest)
    cohorts.prepare(table, 4)
    assert names_of(cohorts.draw(table, 4)) == [f"c{index}" for index in draw_cohort(9, 4, 12, 4)]
    assert drawn == [4]
    cohorts.prepare(table, 6)
    assert names_of(cohorts.draw(table, 5)) == [f"c{index}" for index in draw_cohort(9, 5, 12, 4)]  # the round comes again
    cohorts.prepare(table, 6)
    table.remove_rank(1)
    assert names_of(cohorts.draw(table, 6)) == [table[index].client_id for index in draw_cohort(9, 6, 8, 4)]
    table.remove_rank(2)
    table.remove_rank(3)
    cohorts.prepare(table, 7)  # nobody is left, which is for the round to say
    with pytest.raises(ConfigError, match="cannot be drawn from 0"):
        cohorts.draw(table, 7)


def test_over_selection_is_limited_by_the_clients_there_are() -> None:
    cohort = draw([1] * 10, cohort_size=9, over_select=1.3, latency={"kind": "constant"})  # ceil(11.7) = 12
    assert (len(cohort.clients), cohort.late) == (9, 1)
    with pytest.raises(ConfigError, match="cohort_size: 11 clients cannot be drawn from 10"):
        draw([1] * 10, cohort_size=11, over_select=1.3, latency={"kind": "constant"})


def test_fractions_are_over_selected_too() -> None:
    cohort = draw([1] * 100, fraction=0.29, over_select=1.1, latency={"kind": "constant"})  # 29, and ceil(31.9) = 32
    assert (len(cohort.clients), cohort.late) == (29, 3)


def test_samplers_by_name(tmp_path: Path) -> None:
    sizes = [5, 0, 1, 9, 30, 2, 2, 8]
    expected = [f"client_{index}" for index in weighted(3, 2, np.array(sizes), 3)]
    assert names_of(draw(sizes, round=2, seed=3, cohort_size=3, sampling="weighted")) == expected
    turns = [name for round in range(1, 8)
             for name in names_of(draw(sizes, round, cohort_size=1, sampling="round_robin"))]
    assert sorted(turns) == sorted(f"client_{index}" for index in range(8) if sizes[index])
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start,end\n0,0,1\n3,0,2\n4,1,2\n")
    config = dict(sampling="availability", availability={"trace": str(trace), "period": 2.0})
    assert [names_of(draw(sizes, round, **config)) for round in (1, 2, 3, 4)] == [
        ["client_0", "client_3"], ["client_3", "client_4"]] * 2


def test_settings_reach_the_models(tmp_path: Path) -> None:
    days = dict(period=10.0, share=0.4, peak=0.2, spread=0.1)
    sampler = sampler_of(trainer_config(dict(sampling="availability", availability=days | {"round_length": 0.5})))
    assert isinstance(sampler, AvailableSampler)
    assert sampler.round_length == 0.5
    np.testing.assert_array_equal(sampler.availability.at(1, 3.0, 50), DayAndNight(**days).at(1, 3.0, 50))
    default = sampler_of(trainer_config(dict(sampling="availability")))
    assert isinstance(default, AvailableSampler)
    np.testing.assert_array_equal(default.availability.at(1, 3.0, 50), DayAndNight().at(1, 3.0, 50))
    (tmp_path / "t.csv").write_text("client,start,end\n1,0,3\n")
    traced = sampler_of(trainer_config(dict(sampling="availability",
                                            availability={"trace": str(tmp_path / "t.csv"), "period": 4.0})))
    assert isinstance(traced, AvailableSampler)
    for time in (0.0, 3.5, 4.0):
        expected = read_trace(tmp_path / "t.csv", 4.0).at(0, time, 3)
        np.testing.assert_array_equal(traced.availability.at(0, time, 3), expected)
    given = dict(kind="lognormal", work_seconds=2.0, sample_seconds=0.1, spread=0.3, client_spread=0.4)
    assert latency_of(trainer_config(dict(latency=given)).latency) == Latency(**given)
    assert latency_of(trainer_config().latency) is None


@pytest.mark.parametrize(("sampling", "words"), [("availability", "are available and have samples"),
                                                 ("uniform", "have samples"), ("weighted", "have samples")])
def test_too_few_clients_is_an_error_with_numbers(tmp_path: Path, sampling: str, words: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start,end\n0,0,9\n1,0,9\n2,0,9\n")
    given = {"availability": {"trace": str(trace)}} if sampling == "availability" else {}
    sizes = [1, 1, 0, 1] if sampling == "availability" else [1, 0, 0, 1]
    with pytest.raises(RoundError, match=rf"round 2: 2 of 4 clients {words}, and min_clients is 3"):
        draw(sizes, 2, min_clients=3, sampling=sampling, **given)
    assert len(draw(sizes, 2, min_clients=2, sampling=sampling, **given).clients) == 2


@pytest.mark.parametrize("more", [{}, {"over_select": 2.0, "latency": {"kind": "constant"}}], ids=["", "over-selected"])
def test_a_fraction_of_those_who_are_left_may_be_too_few(more: dict[str, Any]) -> None:
    """Of the clients of a configuration it is enough; over a network, they come and go."""
    with pytest.raises(RoundError, match=r"round 1: 0\.1 of 19 clients is 1, and min_clients is 2"):
        draw([1] * 19, fraction=0.1, min_clients=2, **more)
    assert len(draw([1] * 20, fraction=0.1, min_clients=2, **more).clients) == 2


def test_all_who_are_left_may_be_too_few() -> None:
    with pytest.raises(RoundError, match=r"round 1: 2 of 2 clients have samples, and min_clients is 3"):
        draw([1, 1], min_clients=3)


# -- the real clock ---------------------------------------------------------------------------------------------------

class Clock:
    """A clock that learners turn."""

    now = 0.0


class Ticking(Learner):
    """Trains for one second of `Clock`."""

    def fit(self, config=None):
        Clock.now += 1
        return TrainResult(self.get_weights(), 10, {})

    def evaluate(self, config=None):
        return EvalResult(1, {})


@pytest.fixture
def clock(monkeypatch):
    """Rank 0's host reads `Clock`."""
    Clock.now = 100.0
    monkeypatch.setattr(host_module, "time", SimpleNamespace(perf_counter=lambda: Clock.now))


@pytest.mark.parametrize(("deadline", "begun"), [(0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (3.5, 4), (9.0, 4), (None, 4)])
@pytest.mark.parametrize("needs", ["mean", "rows"])
def test_a_rank_begins_no_client_after_the_deadline(clock, deadline: float | None, begun: int, needs: Any) -> None:
    """The client that is being trained may finish; those after it are late, and no failures."""
    host = ClientHost()
    start = Weights.of({"w": f32(1, 2)})
    host.start_from(start, 1)
    host.own = {f"client_{index}": Ticking(Arrays({"w": f32(0, 0)})) for index in range(4)}
    order = Fit(round=1, clients=list(host.own), config={}, needs=needs, weighting="samples", weighs=False,
                reduction="exact", total_samples=40, cohort_size=4, deadline=deadline)
    report = host.fit(order)
    assert [outcome.client_id for outcome in report.outcomes] == [f"client_{index}" for index in range(begun)]
    assert report.problems == []
    table = ClientTable(np.full(4, 10))
    plan = Plan(1, [table[index] for index in range(4)], deadline=deadline)
    fitted = Fitted(plan, report.outcomes, report.problems, MetricSum(), {}, 1, {})
    assert fitted.late == [f"client_{index}" for index in range(begun, 4)]
    check_problems(fitted, begun, "drop")
    if begun < 4:
        with pytest.raises(RoundError, match=rf"{begun} of 4 clients succeeded; .* Late: .*client_3"):
            check_problems(fitted, begun + 1, "drop")


def test_by_the_real_clock_all_that_are_drawn_may_count() -> None:
    cohort = draw([1] * 20, cohort_size=10, over_select=1.3, clock="real", deadline=5.0)
    assert (len(cohort.clients), cohort.late, cohort.virtual_seconds, cohort.deadline) == (13, 0, None, 5.0)


def test_a_run_by_the_real_clock_records_who_is_late(clock, tmp_path: Path) -> None:
    config = {"mode": "serial", "num_clients": 6, "output_dir": str(tmp_path / "run"), "tracker": "none",
              "components": {"learner": f"{__name__}:Ticking"},
              "trainer_config": {"max_rounds": 2, "cohort_size": 4, "over_select": 1.25, "clock": "real",
                                 "deadline": 2.5, "evaluate": "none"}}
    result = federation.run(config)
    rows = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["cohort_size"], row["clients_late"], row["clients_failed"]) for row in rows] == [(5, 2, 0)] * 2
    assert all("virtual_seconds" not in row and row["num_samples"] == 30 for row in rows)
