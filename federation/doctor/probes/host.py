"""This process and its host: cores, memory, GPUs."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")


class Room(NamedTuple):
    """A file system's size, and what of it is left for this user, in bytes; files that it still takes."""

    size: int
    left: int
    files_left: int | None


def cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; empty where it is not known."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpus() -> int | None:
    """GPUs that torch finds, without taking any memory on one; None without torch, or with one that does not load."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:  # a broken installation raises whatever it likes
        logger.warning("torch cannot be asked for GPUs (%s: %s)", type(error).__name__, error)
        return None


def room(folder: Path) -> Room | None:
    """The room in the file system of `folder`; None where there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    files = found.f_favail if found.f_files else None  # some file systems count no files
    return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, files)


def resident(status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes of memory that this process holds; None where the system does not say."""
    return _kilobytes(status, "VmRSS:")


def memory_left(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the host has left, or the control groups (a container's, a batch job's) that this process is in."""
    left = [_kilobytes(proc / "meminfo", "MemAvailable:"), *_left_in_groups(proc / "self/cgroup", cgroups)]
    return min((value for value in left if value is not None), default=None)


def _left_in_groups(membership: Path, cgroups: Path) -> Iterator[int | None]:
    """For each control group with a limit, from this process's own up: the limit less what cannot be given back."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the host's: only the groups that are visible count, the top one always.
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            if group == top or top in group.parents:
                yield _left_in_group(group, *names)


def _left_in_group(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        return None if most == "max" else max(0, int(most) - used + int(statistics.get(cache, 0)))
    except (OSError, ValueError):  # no such group here, or no limit
        return None


def _kilobytes(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def visible_gpus(environ: Mapping[str, str]) -> str | None:
    """What limits the GPUs that this process sees."""
    return environ.get("CUDA_VISIBLE_DEVICES")
