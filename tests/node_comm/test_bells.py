"""Bells: who is rung wakes up, whoever it is that may ring, and nobody else. No MPI is needed for any of it."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator

import msgspec
import pytest

from node_comm.bells import Bells, Location

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/sys/kernel/random/boot_id"), reason="needs Linux's /proc")


@pytest.fixture
def world() -> Iterator[list[Bells]]:
    """Three ranks, which reach each other."""
    ranks = [Bells() for _ in range(3)]
    assert all([rank.reach([each.location() for each in ranks]) for rank in ranks])
    yield ranks
    for rank in ranks:
        rank.close()


def rung(world: list[Bells]) -> list[int]:
    return [rank for rank, bells in enumerate(world) if bells.wait(0)]


def test_who_is_rung_wakes_up_once(world: list[Bells]) -> None:
    assert rung(world) == []
    world[0].ring_others([2])
    world[1].ring_others([2])
    assert rung(world) == [2]
    assert rung(world) == []
    world[1].ring_others(None)
    assert rung(world) == [0, 2]
    world[1].ring()
    assert rung(world) == [1]


def test_a_ring_ends_a_sleep(world: list[Bells]) -> None:
    """Whoever sleeps for good wakes up; a time-out of minutes is only for a test that fails."""
    heard: list[bool] = []
    sleeper = threading.Thread(target=lambda: heard.append(world[0].wait(None)), daemon=True)
    sleeper.start()
    world[1].ring_others([0])
    sleeper.join(120)
    assert heard == [True]


def test_another_process_rings() -> None:
    with_a_bell = Bells()
    place = msgspec.json.encode(with_a_bell.location()).decode()
    program = ("import sys, msgspec\nfrom node_comm.bells import Bells, Location\nbells = Bells()\n"
               "assert bells.reach([msgspec.json.decode(sys.argv[1], type=Location), bells.location()])\n"
               "bells.ring_others([0])\n")
    subprocess.run([sys.executable, "-c", program, place], check=True, timeout=120)
    assert with_a_bell.wait(0)
    with_a_bell.close()


def test_more_rings_than_a_bell_holds_wait_for_nobody(world: list[Bells]) -> None:
    for _ in range(100_000):
        world[0].ring_others([1])
    assert world[1].wait(0)


@pytest.mark.parametrize("wrong", [{"boot": "another machine"}, {"inode": 1}, {"path": "/proc/self/fd/987654"}])
def test_what_is_no_bell_of_this_machine_is_not_rung(wrong: dict[str, object]) -> None:
    near, far = Bells(), Bells()
    location = far.location()
    assert location is not None
    fields = {name: getattr(location, name) for name in Location.__struct_fields__}
    assert not near.reach([near.location(), Location(**{**fields, **wrong})])  # type: ignore[arg-type]
    assert not near.reach([near.location(), None])
    near.ring_others(None)
    near.ring_others([1])
    assert not far.wait(0)
    near.close()
    far.close()


def test_who_has_left_disturbs_nobody(world: list[Bells]) -> None:
    world[2].close()
    world[0].ring_others(None)
    world[0].ring_others([1, 2])
    assert world[1].wait(0)
    world[2].close()


def test_survivors_keep_their_bells(world: list[Bells]) -> None:
    """Rank 1 of three is lost: rank 2 is 1 from then on, and what was rung before is not forgotten."""
    world[0].ring_others([2])
    left = [world[0].of_survivors([0, 2]), world[2].of_survivors([0, 2])]
    assert rung(left) == [1]
    left[1].ring_others(None)
    left[0].ring_others([1])
    assert rung(left) == [0, 1]
    assert not world[1].wait(0)
    for bells in left:
        bells.close()


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3000, reason="this process may not open as many files")
def test_a_process_with_thousands_of_open_files() -> None:
    ear, rope = os.pipe()
    bells = Bells(own=(fcntl.fcntl(ear, fcntl.F_DUPFD_CLOEXEC, 2000), rope))
    os.close(ear)
    assert not bells.wait(0)
    assert not bells.wait(0.0005)
    bells.ring()
    assert bells.wait(None)
    assert not bells.wait(0)
    bells.close()


def test_nothing_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    ranks = [Bells() for _ in range(3)]
    for rank in ranks:
        rank.reach([each.location() for each in ranks])
    successor = ranks[0].of_survivors([0, 1])
    for bells in (successor, *ranks):
        bells.close()
    assert set(os.listdir("/proc/self/fd")) == before
