"""How many compute threads a process uses, one by default: so that results do not depend on the machine."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

from federation.errors import ConfigError
from federation.infra.libraries import prepare

logger = logging.getLogger(__name__)

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def resolve_threads(
    setting: int | Literal["auto"], workers_on_node: int, environ: Mapping[str, str], cores: int
) -> int:
    """Compute threads for this process, at least 1.

    setting: a number is taken as it is, whatever OMP_NUM_THREADS says (a log line says so where they differ). "auto"
        follows OMP_NUM_THREADS, else shares `cores` evenly, and never exceeds `cores`.
    workers_on_node: computing processes on this node, this one included.
    cores: cores that this process may use, see `available_cores`.

    Raises ConfigError for any other setting.
    """
    wanted = _from_environment(environ)
    if setting == "auto":
        return max(1, min(wanted or cores // max(1, workers_on_node), cores))
    if isinstance(setting, bool) or not isinstance(setting, int) or setting < 1:
        raise ConfigError(f"threads: {setting!r} is not allowed. Give a whole number from 1 on, or auto.")
    if wanted not in (None, setting):
        logger.info(
            "threads: %d a process, as configured; OMP_NUM_THREADS=%s is not followed (threads: auto follows it)",
            setting, environ["OMP_NUM_THREADS"],
        )  # fmt: skip
    return setting


def available_cores() -> int:
    """Cores that this process may use: its CPU affinity, within the CPU quota of its container; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota() or cores))


def apply_threads(count: int, environ: MutableMapping[str, str] | None = None) -> dict[str, int]:
    """Make BLAS, OpenMP and torch use `count` threads, in this process and in those it starts.

    environ: where the variables for children and for libraries loaded later are set; `os.environ` by default.

    Returns the threads that each library in memory now reports, by its name (empty where none can be asked).
    No library is imported for this: call it again after torch has been imported.
    """
    target = os.environ if environ is None else environ
    for name in _VARIABLES:
        target[name] = str(count)
    prepare(target)
    in_use: dict[str, int] = {}
    if importlib.util.find_spec("threadpoolctl") is not None:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
        threadpoolctl.threadpool_limits(limits=count)
        for pool in threadpoolctl.threadpool_info():
            name = str(pool["internal_api"])
            in_use[name] = max(in_use.get(name, 0), int(pool["num_threads"]))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
        in_use["torch"] = torch.get_num_threads()
    logger.info("threads: %d a process (%s)", count, ", ".join(f"{k} {v}" for k, v in in_use.items()) or "none loaded")
    return in_use


def _from_environment(environ: Mapping[str, str]) -> int | None:
    """OMP_NUM_THREADS, the outermost level where it lists several; None where unset or not a number from 1 on."""
    text = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not text:
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    logger.warning("OMP_NUM_THREADS=%s is not a number from 1 on, and is ignored", environ["OMP_NUM_THREADS"])
    return None


def _quota() -> int | None:
    """Whole cores of the container's CPU quota (cgroup 2, then 1), rounded up; None where there is none."""
    root = Path("/sys/fs/cgroup")
    try:
        if (root / "cpu.max").exists():
            limit, period = (root / "cpu.max").read_text().split()
        else:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return max(1, -(-int(limit) // int(period))) if int(limit) > 0 else None
    except (OSError, ValueError):  # not in a container, or "max": no quota
        return None
