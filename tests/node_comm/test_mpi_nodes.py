"""Reductions among machines, with ranks that behave as if they were on several: right, and in as few bytes as promised."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from node_comm.launchers import PRETENDED_NODES
from tests.mpi_helper import find_mpirun, mpirun, needs_mpi, report
from tests.node_comm.test_mpi import assert_all_pass

SUITE = "tests/node_comm/mpi_nodes_suite.py"
#: What small messages (arrivals, offers, MPI's own at the start) may come to between two ranks: less than a piece.
SMALL = 1 << 16


def run_program(n: int, machines: str, *words: str, extra: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run one of `mpi_programs` on `n` ranks that are taken apart into machines."""
    return mpirun(n, sys.executable, "-m", "tests.node_comm.mpi_programs", *words, extra=extra, env={PRETENDED_NODES: machines})


def counts_messages() -> bool:
    """Whether Open MPI's own counting of messages is here, which no other library has."""
    program = find_mpirun()
    info = Path(program).with_name("ompi_info") if program else None
    return info is not None and info.exists() and "pml: monitoring" in subprocess.run(
        [info], capture_output=True, text=True, timeout=60, check=True).stdout


@needs_mpi
@pytest.mark.parametrize("n", [4, 5, 6])
def test_suite(n: int) -> None:
    """Every rank passes the suite: the contract, and sums against NumPy's."""
    assert_all_pass(n, SUITE, 30)


@needs_mpi
@pytest.mark.parametrize(("machines", "root"), [("2,2", 0), ("2,2", 1), ("2,3", 4), ("1,3", 2), ("2,2,2", 3)])
def test_one_array_leaves_each_machine_but_the_roots(machines: str, root: int, tmp_path: Path) -> None:
    """Bytes from rank to rank, as Open MPI counts what it sends: four reductions of 8 MB beyond the fourth part of it."""
    if not counts_messages():
        pytest.skip("this MPI library does not count its messages")
    sizes = [int(size) for size in machines.split(",")]
    machine_of = [machine for machine, size in enumerate(sizes) for _ in range(size)]
    sent = bytes_sent(machines, root, tmp_path)
    for machine in range(len(sizes)):
        leaving = sum(nbytes for (source, dest), nbytes in sent.items()
                      if machine_of[source] == machine and machine_of[dest] != machine)
        arrays = 0 if machine == machine_of[root] else 4 * 8_000_000
        assert arrays <= leaving < arrays + SMALL, (machine, sent)
    first = [machine_of.index(machine) for machine in machine_of]
    assert all(nbytes < SMALL for (source, dest), nbytes in sent.items()
               if machine_of[source] == machine_of[dest] or source != first[source] or dest != first[dest]), sent


@needs_mpi
def test_by_mpi_alone_one_array_leaves_each_rank(tmp_path: Path) -> None:
    """The premise of the test above: it would see the arrays."""
    if not counts_messages():
        pytest.skip("this MPI library does not count its messages")
    assert sum(bytes_sent("1,1,1,1", 0, tmp_path).values()) >= 3 * 4 * 8_000_000


def bytes_sent(machines: str, root: int, folder: Path) -> dict[tuple[int, int], int]:
    """Bytes that each rank has sent to each other in four reductions of a million int64."""
    n = sum(int(size) for size in machines.split(","))
    options = ("--mca", "pml_monitoring_enable", "1", "--mca", "pml_monitoring_enable_output", "3",
               "--mca", "pml_monitoring_filename", str(folder / "sent"))
    done = run_program(n, machines, "reductions", "4", "1000000", str(root), extra=options)
    assert done.returncode == 0, report(done)
    sent = {}
    for rank in range(n):
        for line in (folder / f"sent.{rank}.prof").read_text().splitlines():
            if found := re.match(r"[EI]\t(\d+)\t(\d+)\t(\d+) bytes", line):  # messages of the user and of collectives
                key = int(found[1]), int(found[2])
                sent[key] = sent.get(key, 0) + int(found[3])
    return sent


@needs_mpi
@pytest.mark.parametrize(("machines", "death", "said"), [
    ("2,2", "5:3", "3 left, without [3]"), ("2,2", "5:23", "2 left, without [2, 3]"),
    ("2,2", "5+3", "3 left, without [3]"), ("2,2", "5+2", "3 left, without [2]"),
    ("2,3", "7+1", "4 left, without [1]"), ("1,3", "5+1", "3 left, without [1]"),
])
def test_a_world_of_machines_outlives_its_ranks(machines: str, death: str, said: str) -> None:
    """S-LIFE-03: with ULFM; a rank that combines, one that leads, a whole machine, before and in the midst of a reduction."""
    n = sum(int(size) for size in machines.split(","))
    done = run_program(n, machines, "survive", death, extra=("--with-ft", "ulfm"))
    assert done.returncode == 0, report(done)
    assert done.stdout.splitlines() == [said, "done"], report(done)
