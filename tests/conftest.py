"""Settings for the whole suite."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.util
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test looks at a clock: a machine that is busy must not fail one.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# A shell without job control has what it starts in the background be deaf to Ctrl-C, and all that the tests start with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: Every process that a test starts inherits this variable, with the name of its suite.
MARK = "FEDERATION_TEST_SUITE"
#: Seconds that processes and files of the last tests are given to go.
PATIENCE = 15.0
#: Folders that pytest, torch and Open MPI make once a machine and user.
SHARED_FOLDERS = re.compile(r"pytest-of-.*|torchinductor_.*|ompi\.[^.]*\.\d+")
#: Children of the suite's own process, that Python's multiprocessing starts once and that end with it.
OWN_SERVICES = re.compile(rb"multiprocessing\.(resource_tracker|forkserver)")


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """S-LIFE-06: at the end of the suite there is no process, shared memory or temporary file of its tests."""
    name = f"{os.getpid()}.{time.time_ns()}"
    shared = set(_shared_memory())
    before, os.environ[MARK] = os.environ.get("TMPDIR"), name
    folder = tempfile.mkdtemp(prefix="suite")  # short, for the sockets in it
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    yield
    deadline = time.monotonic() + PATIENCE
    while (left := _left(name, shared, Path(folder))) and time.monotonic() < deadline:
        time.sleep(0.2)
    tempfile.tempdir = None
    del os.environ[MARK], os.environ["TMPDIR"]
    if before is not None:
        os.environ["TMPDIR"] = before
    # After multiprocessing has removed its own.
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)
    assert left == [], "\n".join(left)


def _left(name: str, shared: set[str], folder: Path) -> list[str]:
    wanted = f"{MARK}={name}".encode()
    processes = [f"process {pid}: {_read(pid, 'cmdline')!r}" for pid in _pids()
                 if pid != os.getpid() and wanted in _read(pid, "environ").split(b"\0")
                 and not (OWN_SERVICES.search(_read(pid, "cmdline")) and _parent(pid) == os.getpid())]
    # Open MPI's own segments stay when all its processes are killed at once, and are swept where tests do that.
    memory = [f"/dev/shm/{name}" for name in _shared_memory() if name not in shared and not name.startswith("sm_segment.")]
    if memory:
        mapped = b"".join(_read(pid, "maps") for pid in _pids())
        memory = [path for path in memory if path.encode() not in mapped]  # else another suite's, or somebody else's
    own = multiprocessing.process.current_process()._config.get("tempdir")  # removed when this process ends
    return processes + memory + [str(path) for path in folder.iterdir()
                                 if str(path) != own and not SHARED_FOLDERS.fullmatch(path.name)]


def _parent(pid: int) -> int:
    return int((_read(pid, "stat").rpartition(b")")[2].split() or [b"", b"0"])[1])


def _shared_memory() -> list[str]:
    return os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()] if os.path.isdir("/proc") else []


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data are stored in a folder of the suite's, by the processes that tests start as well, and not in the user's."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
