"""Starts `mpirun` from a test, with everything that must not go wrong on a CI machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Makes Open MPI move a message only when its receiver is there, from the first byte on. (80 is the least that it
#: accepts; in shared memory it buffers about 200 bytes even so, through TCP none.)
NOTHING_BUFFERED = ("--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_eager_limit", "80")

_INHERITED = re.compile(r"OMPI_|PMIX_|PMI_|PRTE_|MPI_LOCAL|SLURM_")


def find_mpirun() -> str | None:
    """The mpirun beside this Python, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


needs_mpi = pytest.mark.skipif(find_mpirun() is None, reason="no mpirun beside this Python or on PATH")


def mpirun_command(n: int, *command: str, extra: Iterable[str] = ()) -> list[str]:
    """The command line that starts `command` on `n` ranks here: as root and beyond the cores only where that is so."""
    program = find_mpirun()
    assert program is not None, "no mpirun: mark the test with mpi_helper.needs_mpi"
    return [program, *(["--allow-run-as-root"] if os.geteuid() == 0 else []),
            *(["--oversubscribe"] if n > (os.cpu_count() or 1) else []), *extra, "-n", str(n), *command]


def mpirun(n: int, *command: str, env: Mapping[str, str] | None = None, timeout: float = 120,
           extra: Iterable[str] = (), cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `command` on `n` ranks; returns its exit status and output (text, stdout and stderr apart).

    `extra` are options of mpirun, `env` is added to this process's environment (without a launcher's variables).
    A command that has not ended after `timeout` seconds is killed with all its ranks, and the test fails with what
    it has written.
    """
    line = mpirun_command(n, *command, extra=extra)
    surroundings = {name: value for name, value in os.environ.items() if not _INHERITED.match(name)}
    surroundings |= {"OMP_NUM_THREADS": "1", **(env or {})}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                          env=surroundings, cwd=cwd, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException as error:
            kill_tree(process.pid)
            out, err = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            pytest.fail(f"{' '.join(line)}\ndid not end within {timeout:g} s\n--- stdout\n{out}\n--- stderr\n{err}")
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def report(done: subprocess.CompletedProcess[str]) -> str:
    """Everything about a run, for an assertion's message."""
    return f"{' '.join(done.args)}\nexit status {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"


def kill_tree(pid: int) -> None:
    """Kill `pid` and its descendants; ranks are in process groups of their own, so that killing one's is not enough."""
    victims = [*_descendants(pid), pid]
    for victim in victims:
        _kill(victim)
    deadline = time.monotonic() + 10
    while any(map(is_alive, victims)) and time.monotonic() < deadline:
        time.sleep(0.01)
    sweep()


def sweep() -> None:
    """Remove what processes could not that had been killed all at once: Open MPI's files, and multiprocessing's folders."""
    sockets = Path("/proc/net/unix").read_text()
    for folder in Path(tempfile.gettempdir()).glob("*"):
        owner = re.fullmatch(r"(?:ompi|prted)\.(\d+)", folder.name)
        if (owner and not is_alive(int(owner[1]))) or (
                folder.name.startswith("pymp-") and folder.name not in sockets):
            shutil.rmtree(folder, ignore_errors=True)
    for segment in Path("/dev/shm").glob("sm_segment.*"):
        if not any(segment.name in _maps(entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
            segment.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether the process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _maps(process: Path) -> str:
    try:
        return (process / "maps").read_text()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended by itself


def _descendants(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for row in listing.splitlines():
        child, parent = map(int, row.split())
        children.setdefault(parent, []).append(child)
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found
