"""A lock on a folder that a dead process cannot leave behind, and that says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from federation.errors import ConfigError

logger = logging.getLogger(__name__)

_RECORD_WAIT_S = 1.0  # a holder signs right after it locks; a second comer waits this long to read who it is


class FolderLock:
    """The file `run.lock` in `folder`, held with flock and signed with run id, host and process.

    The OS drops a flock when its process dies, however it dies, so nothing has to be cleaned by hand. Where the file
    system has no flock, a file that is created exclusively stands in: it is stale when its process is gone from the
    same host; one left behind by another host has to be deleted by a person, as the error says.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self.run_id = ""
        self._claim = folder / ".run.claim"
        self._claimed = False
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> dict[str, Any]:
        """Take the lock and return the record of the run that had it before (empty where there was none).

        Raises ConfigError naming run, host and process where a live one holds it, OSError where the file cannot be
        made or written.
        """
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise self._in_use(self.path) from None
                logger.debug("%s: no flock on this file system (%s)", self.path, error)
                self._take_claim()
        except BaseException:
            self._drop()
            raise
        return _read_record(self.path)

    def sign(self, run_id: str = "", job: str = "") -> None:
        """Write who holds the lock. An empty `run_id` begins a new one."""
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self._write({"run_id": self.run_id, **_this_process(job)})

    def release(self) -> None:
        """Give the lock back; the run id stays on record. Does nothing where the lock is not held."""
        if self._descriptor is not None:
            try:
                if self.run_id:
                    self._write({"run_id": self.run_id})
            except OSError as error:  # a full disk: there is no reason to keep the folder, nor to hide why the run ends
                logger.debug("%s: %s", self.path, error)
            finally:
                self._drop()

    def _write(self, record: dict[str, Any]) -> None:
        assert self._descriptor is not None
        text = json.dumps(record).encode() + b"\n"
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def _drop(self) -> None:
        if self._claimed:
            self._claim.unlink(missing_ok=True)
            self._claimed = False
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take_claim(self) -> None:
        """Create the stand-in file, taking over one whose process is gone from this host."""
        for _ in range(2):
            try:
                descriptor = os.open(self._claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                holder = _read_record(self._claim)
                if holder.get("host") != socket.gethostname() or process_is_alive(holder.get("pid")):
                    break
                self._claim.unlink(missing_ok=True)
            else:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(_this_process(""), file)
                self._claimed = True
                return
        raise self._in_use(self._claim)

    def _in_use(self, path: Path) -> ConfigError:
        give_up = time.monotonic() + _RECORD_WAIT_S
        while "pid" not in (holder := _read_record(path)) and time.monotonic() < give_up:
            time.sleep(0.02)
        run = f"run {holder['run_id']}" if "run_id" in holder else "a run"
        job = f" of {holder['job']}" if holder.get("job") else ""
        advice = (
            f" If that process is gone, delete {self._claim}: this file system has no locks that end with a process."
            if path == self._claim
            else ""
        )
        return ConfigError(
            f"output_dir {str(self.path.parent)!r} is in use by {run}{job}: process {holder.get('pid', 'unknown')} on "
            f"host {holder.get('host', 'unknown')}, since {holder.get('since', 'unknown')}. Start the job once (one "
            "launcher, not srun in front of mpiexec), wait for the other run, or choose another output_dir." + advice
        )


def _this_process(job: str) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "since": since}


def _read_record(path: Path) -> dict[str, Any]:
    """The record in `path`; empty where there is none or it is being written."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def process_is_alive(pid: object) -> bool:
    """Whether process `pid` of this host lives. What is no process id, from a record being written, counts as alive."""
    if not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
