"""The time that a batch job has, and whether another round fits into what is left of it."""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping

from federation.errors import FederationError

logger = logging.getLogger(__name__)

#: Rounds of which the longest counts: enough to hold one with an evaluation, or with a checkpoint.
RECENT_ROUNDS = 25
#: By how much a round may be longer than those before it.
MARGIN = 1.5
#: Seconds for the end of all processes after the last checkpoint, where nobody outside the job is waited for.
RESERVE = 10.0
#: Seconds that Slurm's controller has to answer.
PATIENCE = 10.0

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)")


class OutOfTime(FederationError):
    """The job would end before another round does. Raised between two rounds, after a checkpoint."""


class WallTime:
    """Measures rounds against the time that the job has left. Only rank 0 has one.

    It decides when a run stops, between two rounds, and nothing else: what a round computes does not depend on it.

    seconds_left: what the job has left now; None where nothing limits it.
    clock: returns seconds that only grow.
    """

    def __init__(self, seconds_left: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds_left is None else clock() + seconds_left
        self._last: float | None = None
        self._rounds: deque[float] = deque(maxlen=RECENT_ROUNDS)

    def begin(self) -> None:
        """The first round begins: waiting for clients is over. Changes nothing when called again."""
        if self._last is None:
            self._last = self._clock()

    def end_round(self) -> None:
        """A round is over, and the next one begins. Without `begin`, nothing is measured."""
        now = self._clock()
        if self._last is not None:
            self._rounds.append(now - self._last)
            self._last = now

    def shortage(self, checkpoint_seconds: float = 0.0, end_seconds: float = 0.0, under_way: bool = False) -> str | None:
        """Why another round and its checkpoint do not fit any more, in words; None while they do.

        checkpoint_seconds: the longest time that writing a checkpoint has taken. Before a round was measured, any fits.
        end_seconds: what the end of the run may take beyond that of its processes.
        under_way: the round that is measured now counts, with the time that it has taken so far.
        """
        now = self._clock()
        rounds = [*self._rounds, *([now - self._last] if under_way and self._last is not None else [])]
        if self._end is None or not rounds:
            return None
        left, longest, end = self._end - now, max(rounds), RESERVE + end_seconds
        if left >= MARGIN * (longest + checkpoint_seconds) + end:
            return None
        return (f"the job's time: {left:.0f} s are left, and a round takes up to {longest:.1f} s, a checkpoint "
                f"{checkpoint_seconds:.1f} s, the end of the run {end:.0f} s")


def seconds_left(environ: Mapping[str, str], ask: Callable[[str], str] | None = None,
                 now: Callable[[], float] = time.time) -> float | None:
    """What the Slurm job that `environ` belongs to has left, in seconds; None outside of one, or without a limit.

    SLURM_JOB_END_TIME (seconds since 1970) counts where Slurm sets it. Else `ask` is called once with the job's id; by
    default it is `squeue`. An answer that cannot be had or read is logged, and means no limit: Slurm's warning signal
    is the second net.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return None
    if "SLURM_ARRAY_TASK_ID" in environ:  # the last task of an array has the number of the whole array
        job = f"{environ.get('SLURM_ARRAY_JOB_ID', job)}_{environ['SLURM_ARRAY_TASK_ID']}"
    left: float | None
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        left = float(end) - now()
    else:
        try:
            left = parse_time((ask or _squeue)(job))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            logger.warning("Slurm job %s: the time that is left is not known (%s); only its signal will stop the run", job, error)
            return None
    if left is not None:
        logger.info("Slurm job %s has %.0f s left", job, left)
    return left


def parse_time(text: str) -> float | None:
    """Seconds in Slurm's `days-hours:minutes:seconds`, of which days and hours may be missing; None for UNLIMITED.

    Raises ValueError for anything else (squeue may answer NOT_SET or INVALID).
    """
    text = text.strip()
    if text == "UNLIMITED":
        return None
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a time such as 1-02:03:04, 2:03:04 or 3:04")
    days, hours, minutes, seconds = (int(found[part] or 0) for part in ("days", "hours", "minutes", "seconds"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _squeue(job: str) -> str:
    """What `squeue` says; CalledProcessError, TimeoutExpired or OSError where it does not."""
    return subprocess.run(["squeue", "--noheader", "--jobs", job, "--Format", "TimeLeft"], capture_output=True, text=True,
                          timeout=PATIENCE, check=True).stdout
