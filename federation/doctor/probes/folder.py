"""The folder that a run would write to: tried, not only looked at."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.doctor.facts import FolderFacts
from federation.doctor.probes.host import room

#: Bytes that are written to see whether a file can be: beyond what a file system keeps beside a file's name.
TRIAL = 1 << 20


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there: where a run would begin to make folders."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if _is_there(folder))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # the folder above, then, is the one that cannot be used
        return False


@contextmanager
def trial_file(folder: Path) -> Iterator[tuple[Path, str]]:
    """A file of TRIAL bytes in `folder`, gone at the end, that this process has locked; and why that failed, or nothing."""
    path = folder / f".federation-doctor.{socket.gethostname()}.{os.getpid()}"
    descriptor = None
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _write(descriptor)
            reason = ""
        except OSError as error:
            reason = f"a file cannot be written ({error.strerror or error})"
        yield path, reason
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def try_folder(folder: Path, trial: Path, reason: str) -> FolderFacts:
    """What `folder` is like; `trial` is the file of `trial_file`, which is then locked until it is closed."""
    if not folder.is_dir():
        reason = f"{folder} is not a folder"
    found = room(folder)
    return FolderFacts(
        path=str(folder), file_system=file_system(folder), problem=reason, flock="" if reason else try_flock(trial),
        hdf5="" if reason else _try_hdf5(trial.with_name(trial.name + ".h5")), size=found and found.size,
        left=found and found.left, files_left=found and found.files_left)


def try_flock(path: Path) -> str:
    """Why an exclusive lock on `path` does not keep a second taker out; empty where it does."""
    first, second = (os.open(path, os.O_RDWR | os.O_CLOEXEC) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return "" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else f"{error.strerror or error}"
        return "two at once get an exclusive lock"
    except OSError as error:
        return f"{error.strerror or error}"
    finally:
        os.close(first)
        os.close(second)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path` meanwhile, where one can be had."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # no locks here, as `try_flock` has said
            pass
        yield
    finally:
        os.close(descriptor)


def visit(path: Path) -> str:
    """What another process finds of the file that rank 0 has locked: "locked out", "gets the lock" or "does not see it"."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return "does not see it"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return "locked out"
    finally:
        os.close(descriptor)
    return "gets the lock"


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system of `folder`, such as ext4, nfs4 or lustre; empty where the system does not say."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        words = line.split()
        point = Path(words[1].replace("\\040", " "))
        # Of two mounts on one folder, the later one is seen.
        if (folder == point or point in folder.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), words[2]
    return kind


def _write(descriptor: int) -> None:
    content = memoryview(bytes(TRIAL))
    while content:
        content = content[os.write(descriptor, content):]
    os.fsync(descriptor)


def _try_hdf5(path: Path) -> str:
    """Why HDF5 cannot lock a file of its own there; empty where it can, or without h5py."""
    try:
        h5py = importlib.import_module("h5py")
    except Exception:  # said elsewhere: the versions list what is installed
        return ""
    try:
        with h5py.File(path, "w", locking=True):
            return ""
    except (OSError, ValueError) as error:
        return str(error)
    finally:
        path.unlink(missing_ok=True)
