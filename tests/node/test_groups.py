"""Clients that a learner trains at once, as the host sees it: groups, faults, time, and when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from federation import Learner, TrainResult
from federation.core.learner import Turn
from federation.core.types import EvalResult
from federation.core.weights import Weights
from federation.data.dataset import Dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.node.host import ClientHost
from federation.node.protocol import Evaluate, Fit, FitReport
from tests.node.worlds import Arrays, f32

CLIENTS = 7


class Groups(Learner):
    """Adds its client's number to the weights, three clients at once, in reverse order; `answers` has other ends for some."""

    clients_at_once = 3

    def __init__(self, answers: Mapping[int, Any] | None = None, keeps: bool = False) -> None:
        super().__init__(Arrays({"w": f32(0, 0), "own": f32(0)}))
        self.answers = answers or {}
        self.groups: list[list[str]] = []
        self.keeps = keeps

    def fit(self, config=None):
        raise AssertionError("trained by itself")

    def fit_many(self, turns: Sequence[Turn], config=None) -> Iterator[tuple[int, TrainResult | Exception]]:
        assert len(turns) <= self.clients_at_once
        self.groups.append([turn.context.client_id for turn in turns])
        assert {(turn.context.round, turn.context.seed) for turn in turns} == {(1, 5)}
        borrowed = Weights.of(turns[0].start).copy()
        for index in reversed(range(len(turns))):
            who = int(turns[index].data.y_test[0]) if len(turns[index].data.y_test) else int(turns[index].data.x[0, 0])
            answer = self.answers.get(who)
            if isinstance(answer, BaseException):
                raise answer
            borrowed["w"][:] = np.nan if answer == "nan" else turns[index].start["w"] + who
            borrowed["own"][:] = turns[index].start["own"] + 1
            error = answer if isinstance(answer, tuple) else None
            yield index, error[0] if error else self.answers.get("result") or TrainResult(borrowed, 1, {"who": float(who)})

    def evaluate(self, config=None):
        return EvalResult(0)


class Broken(DataManager):
    """Cannot bring the data of client 4."""

    def client(self, index, round=0):
        if index == 4:
            raise OSError("the disk is gone")
        return super().client(index, round)


def host_of(learner: Learner, manager: type[DataManager] = DataManager, **settings: Any) -> ClientHost:
    x, y = np.arange(CLIENTS, dtype=np.float32)[:, None], np.arange(CLIENTS) % 2
    data = manager(Dataset(x, y, x, y, 2, "few"), Partition(np.arange(CLIENTS), np.arange(CLIENTS + 1)))
    host = ClientHost(learner, data, seed=5, **settings)
    host.start_from(Weights.of({"w": f32(10, 20), "own": f32(3)}), 2)
    return host


def fit(host: ClientHost, **order: Any) -> FitReport:
    clients = [f"client_{index}" for index in range(CLIENTS)]
    return host.fit(Fit(**{"round": 1, "clients": clients, "config": {}, "needs": "rows", "weighting": "samples",
                           "weighs": False, "reduction": "exact", "total_samples": CLIENTS, "cohort_size": CLIENTS, **order}))


def test_each_result_is_taken_before_the_next_overwrites_it():
    learner = Groups()
    host = host_of(learner)
    report = fit(host)
    assert learner.groups == [["client_0", "client_1", "client_2"], ["client_3", "client_4", "client_5"], ["client_6"]]
    assert sorted(outcome.client_id for outcome in report.outcomes) == [f"client_{index}" for index in range(CLIENTS)]
    for index in range(CLIENTS):
        weights, metrics = host.updates.row(f"client_{index}")
        assert (weights["w"].tolist(), metrics) == ([10 + index, 20 + index], {"who": float(index)})


def test_their_sum_is_that_of_clients_one_by_one():
    host = host_of(Groups())
    assert fit(host, needs="mean").problems == []
    mean = Weights.zeros(host.layout)
    host.updates.sum.mean_into(mean)
    assert mean["w"].tolist() == [13, 23]


def test_the_seconds_of_a_group_are_shared_out():
    """Three by three and the one that is left: those of a group have the same, and all together no more than the round."""
    report = fit(host_of(Groups()))
    seconds = {outcome.client_id: outcome.seconds for outcome in report.outcomes}
    for group in ("012", "345"):
        assert len({seconds[f"client_{index}"] for index in group}) == 1
    assert 0 < sum(seconds.values()) <= report.seconds


@pytest.mark.parametrize(("answers", "manager", "kinds"), [
    ({1: (ValueError("no"),)}, DataManager, {"client_1": "failed"}),
    ({1: "nan", 2: (ValueError("no"),)}, DataManager, {"client_1": "diverged", "client_2": "failed"}),
    ({}, Broken, {"client_4": "failed"}),
    ({4: RuntimeError("a bug")}, DataManager, {"client_3": "failed", "client_4": "failed"}),
    ({1: (TrainResult([f32(1, 1), f32(1)], 1, {"odd": 2**64}),), 2: (3,)}, DataManager,
     dict.fromkeys(["client_1", "client_2"], "failed")),
    ({"result": 3}, DataManager, dict.fromkeys((f"client_{index}" for index in range(CLIENTS)), "failed")),
], ids=["raised", "diverged", "no data", "the learner itself", "no good", "no result"])
def test_who_fails_is_left_out_alone(answers, manager, kinds):
    """Where `fit_many` itself raises, those that it has not given by then are lost, and the next group is not."""
    report = fit(host_of(Groups(answers), manager))
    assert {problem.client_id: problem.kind for problem in report.problems} == kinds
    assert {outcome.client_id for outcome in report.outcomes} == {f"client_{index}" for index in range(CLIENTS)} - set(kinds)


def test_a_stop_ends_the_round_after_a_group():
    class Stopping(Groups):
        def fit_many(self, turns, config=None):
            host.stopping.set()
            yield from super().fit_many(turns, config)

    learner = Stopping()
    host = host_of(learner)
    assert len(fit(host).outcomes) == 3
    assert len(learner.groups) == 1


def test_no_group_begins_after_the_deadline():
    learner = Groups()
    assert fit(host_of(learner), deadline=0.0).outcomes == learner.groups == []


def test_an_update_that_does_not_fit_ends_the_round():
    learner = Groups({"result": TrainResult([f32(1)], 1)})
    report = fit(host_of(learner))
    assert "client_2" in report.refused
    assert (report.outcomes, len(learner.groups)) == ([], 1)


def test_local_parameters_start_from_each_clients_own():
    host = host_of(Groups(), local_parameters=["own"])
    for wanted in (4, 5):
        assert {outcome.keeps for outcome in fit(host).outcomes} == {True}
        host.states.commit()
        assert [float(host.states.of(f"client_{index}")["local.own"][0]) for index in range(CLIENTS)] == [wanted] * CLIENTS


def test_they_are_trained_with_what_no_client_keeps():
    """Whichever client the learner was turned to last; what is shared is that of the round."""
    class Looks(Groups):
        def fit_many(self, turns: Sequence[Turn], config=None) -> Iterator[tuple[int, TrainResult | Exception]]:
            seen.append((dict(self.client_state), [array.tolist() for array in self.shared or ()]))
            yield from ((index, ValueError("only looks")) for index in range(len(turns)))

    seen: list[Any] = []
    host = host_of(Looks())
    host.states.put("client_0", Weights.of({"kept": f32(1)}))
    for common in (7, 8):
        host.start_from(Weights.of({"w": f32(10, 20), "own": f32(3), "common": f32(common)}), 2)
        fit(host, clients=["client_1", "client_2"])
        host.evaluate(Evaluate(round=1, shards=[], clients=["client_0"], part="test"))
    assert seen == [({}, [[7]]), ({}, [[8]])]


def test_a_learner_without_fit_many_says_so():
    class Without(Groups):
        fit_many = Learner.fit_many

    report = fit(host_of(Without()))
    assert {problem.reason for problem in report.problems} == {
        "NotImplementedError: Without has clients_at_once=3, and no fit_many"}
