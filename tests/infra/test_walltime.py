"""The job's time against made-up clocks."""

from __future__ import annotations

import logging
import subprocess

import numpy as np
import pytest

from federation.core.weights import Weights
from federation.infra.checkpoint import Checkpoints, Snapshot
from federation.infra.recorder import Recorder
from federation.infra.tracker import NoTracker
from federation.infra.walltime import MARGIN, RECENT_ROUNDS, RESERVE, OutOfTime, WallTime, parse_time, seconds_left


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ran(seconds: float | None, rounds: list[float]) -> tuple[WallTime, Clock]:
    """A wall time of `seconds`, after rounds of the given lengths."""
    clock = Clock()
    wall_time = WallTime(seconds, clock)
    wall_time.begin()
    for length in rounds:
        clock.now += length
        wall_time.end_round()
    return wall_time, clock


def test_a_round_fits_until_it_does_not():
    """By the rule's own numbers: the last moment at which a round of 20 s and a write of 4 s fit, and one just after."""
    needed = MARGIN * (20 + 4) + RESERVE
    wall_time, clock = ran(100 + needed, [10, 20, 15])
    clock.now = 1000 + 100
    assert wall_time.shortage(4) is None
    clock.now += 0.001
    assert wall_time.shortage(4) is not None
    for part in (f"{needed:.0f} s are left", "20.0 s", "4.0 s"):
        assert part in str(wall_time.shortage(4))
    assert wall_time.shortage(3) is None
    clock.now = 1000 + 60
    assert wall_time.shortage(4, end_seconds=40) is None
    assert wall_time.shortage(4, end_seconds=40.001) is not None


def test_nothing_is_stopped_without_a_limit_or_a_measurement():
    assert ran(None, [1e9])[0].shortage(1e9) is None
    unmeasured, clock = ran(5, [])
    clock.now += 4
    assert unmeasured.shortage(1e9) is None
    never_begun = WallTime(5, clock)
    never_begun.end_round()
    assert never_begun.shortage(1e9) is None


def test_a_round_that_is_under_way_counts_with_the_time_that_it_has_taken():
    """Also where it is the first, and where it is the longest."""
    for rounds, longest in (([], 8), ([6], 8), ([9], 9)):
        needed = MARGIN * longest + RESERVE
        wall_time, clock = ran(sum(rounds) + 8 + needed, rounds)
        clock.now += 8
        assert wall_time.shortage(under_way=True) is None
        clock.now += 0.001
        assert f"{longest:.1f} s" in str(wall_time.shortage(under_way=True))
        assert rounds == [9] or wall_time.shortage() is None, "it has not been measured yet"


def test_waiting_before_the_first_round_is_no_part_of_it():
    clock = Clock()
    wall_time = WallTime(1000, clock)
    clock.now += 800
    wall_time.begin()
    clock.now += 1
    wall_time.begin()  # asked again in the middle of a round: it goes on
    clock.now += 1
    wall_time.end_round()
    assert wall_time.shortage() is None
    clock.now = 2000 - (MARGIN * 2 + RESERVE)
    assert wall_time.shortage() is None
    clock.now += 0.001
    assert wall_time.shortage() is not None


def test_a_slow_round_of_long_ago_is_forgotten():
    slow = [500.0] + [1.0] * (RECENT_ROUNDS - 1)
    assert ran(sum(slow) + 100, slow)[0].shortage() is not None
    assert ran(sum(slow) + 101, [*slow, 1.0])[0].shortage() is None


@pytest.mark.parametrize(("text", "seconds"), [
    ("1-02:03:04", 93784), ("2:03:04\n", 7384), ("3:04", 184), ("0:00", 0), ("10-00:00:00", 864000), ("UNLIMITED", None)])
def test_slurms_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "NOT_SET", "INVALID", "12", "1:2:3:4", "-3:04", "1-3"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="is not a time"):
        parse_time(text)


def forbidden(job: str) -> str:
    raise AssertionError("squeue was asked")


def test_the_time_left_by_the_environment():
    """The end that Slurm tells goes before squeue, which is not troubled then; outside of a job there is no limit."""
    assert seconds_left({}, forbidden) is None
    assert seconds_left({"SLURM_JOB_END_TIME": "100"}, forbidden) is None
    assert seconds_left({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "100"}, forbidden, now=lambda: 40.0) == 60


def test_the_time_left_by_squeue():
    asked = []
    assert seconds_left({"SLURM_JOB_ID": "7"}, lambda job: asked.append(job) or "2:00") == 120
    assert seconds_left({"SLURM_JOB_ID": "7"}, lambda job: "UNLIMITED") is None
    assert asked == ["7"]


def test_a_task_of_an_array_asks_for_itself():
    """The last task has the number of the whole array, for which squeue gives a line for each task."""
    asked = []
    environ = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4"}
    assert seconds_left(environ, lambda job: asked.append(job) or "2:00") == 120
    assert asked == ["7_4"]


@pytest.mark.parametrize("error", [FileNotFoundError("no squeue"), subprocess.TimeoutExpired("squeue", 10),
                                   subprocess.CalledProcessError(1, "squeue"), None])
def test_no_answer_is_said_and_limits_nothing(error, caplog):
    def ask(job: str) -> str:
        if error is not None:
            raise error
        return "INVALID"

    with caplog.at_level(logging.WARNING):
        assert seconds_left({"SLURM_JOB_ID": "4711"}, ask) is None
    assert "4711" in caplog.text


def test_squeue_is_called_as_documented(tmp_path, monkeypatch):
    """A squeue of our own on PATH: its arguments, and its answer."""
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "1:00:01"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert seconds_left({"SLURM_JOB_ID": "12"}) == 3601
    assert (tmp_path / "asked").read_text().split() == ["--noheader", "--jobs", "12", "--Format", "TimeLeft"]


def test_the_recorder_keeps_a_checkpoint_of_the_last_round_that_fits(tmp_path):
    """Out of turn (every=1000), and before it stops the trainer."""
    clock = Clock()
    checkpoints = Checkpoints(tmp_path, every=1000, asynchronous=False)
    recorder = Recorder(checkpoints=checkpoints, wall_time=WallTime(44, clock))
    weights = Weights.of([np.zeros(3)])
    for number in (1, 2):
        recorder.check_time()
        clock.now += 10
        assert recorder.has_time() == (number == 1), "known before it is recorded"
        recorder.record({"round": number})
        assert recorder.is_due(number) == (number == 2)
        if recorder.is_due(number):
            recorder.checkpoint(Snapshot(round=number, weights=weights))
    with pytest.raises(OutOfTime, match="24 s are left"):
        recorder.check_time()
    assert [path.name for path in tmp_path.glob("*.h5")] == ["round_000002.h5"]
    assert recorder.checkpoint_now(None) == tmp_path / "round_000002.h5"
    recorder.close()


@pytest.mark.parametrize(("patience", "is_last"), [(0.0, False), (30.0, True)])
def test_a_tracker_has_time_to_send_the_rest(tmp_path, patience, is_last):
    """A second round of 10 s would end 33 s before the job's time is up: too little where a server may be slow for 30 s."""
    clock, tracker = Clock(), NoTracker()
    tracker.patience = patience
    recorder = Recorder(tracker=tracker, wall_time=WallTime(53, clock), checkpoints=Checkpoints(tmp_path, every=1000))
    recorder.check_time()
    clock.now += 10
    assert recorder.has_time() != is_last
    recorder.record({"round": 1})
    assert recorder.is_due(1) == is_last
    recorder.close()


def test_without_checkpoints_nothing_stops_a_run():
    clock = Clock()
    bare = Recorder(wall_time=WallTime(44, clock))
    bare.check_time()
    clock.now += 1000
    bare.record({"round": 1})
    assert not bare.is_due(1)
    bare.check_time()
