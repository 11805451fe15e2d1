"""The process that kills a frozen one: tried on processes that freeze."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mpi_helper import is_alive

PROGRAM = """
import sys, time
from federation.infra.watchdog import Watchdog
dog = Watchdog(float(sys.argv[1]))
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    dog.beat()
    time.sleep(0.05)
if len(sys.argv) > 3:
    time.sleep(60)
"""


def start(seconds: float, beats: int, *rest: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(seconds), str(beats), *rest], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_end(pid: int) -> None:
    while is_alive(pid):
        time.sleep(0.01)


@pytest.mark.parametrize("beats", [1, 5])
def test_a_process_that_stands_still_is_killed(beats: int) -> None:
    with start(0.5, beats, "and wait") as process:
        assert process.wait(timeout=30) == -signal.SIGKILL


def test_a_frozen_process_is_killed() -> None:
    """S-LIFE-08: SIGSTOP, which no process can answer itself."""
    with start(0.5, 1000) as process:
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGSTOP)
        assert process.wait(timeout=30) == -signal.SIGKILL


def test_nothing_happens_before_the_first_beat_or_while_it_beats() -> None:
    with start(0.3, 0, "and wait") as waiting, start(0.3, 20) as beating:
        assert beating.wait(timeout=30) == 0
        assert waiting.poll() is None
        waiting.kill()


def test_a_suspended_job_is_not_blamed() -> None:
    """All its processes are stopped for longer than the limit, and go on: nobody is killed."""
    with start(1.0, 40) as process:
        time.sleep(0.2)
        both = [process.pid, *children(process.pid)]
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.0)
        for pid in both:
            os.kill(pid, signal.SIGCONT)
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_it_ends_with_its_process(number: signal.Signals | None) -> None:
    """And keeps no stream open, so that whoever reads the process's output sees its end."""
    with start(60.0, 2, *(["and wait"] if number else [])) as process:
        (dog,) = children(process.pid)
        if number:
            process.send_signal(number)
        assert process.communicate(timeout=30)[0] == ""
        wait_for_end(dog)
