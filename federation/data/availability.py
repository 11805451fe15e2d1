"""When clients can be drawn: by a trace of their availability, or by a model of day and night.

Time is counted in a unit of the user's choice, from 0 at the start of the run; round r (from 1) is drawn at
(r - 1) * `round_length`. So a cohort depends on its round's number alone, and not on how long rounds took. With a
round_length of 1, the unit is a round.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import numpy as np

from federation.core.random import stream
from federation.data.draws import uniforms
from federation.data.sampling import Pool, as_written, check_cohort_size, draw_cohort, pool_of
from federation.errors import ConfigError, DataError

HEADER = ["client", "start", "end"]


class Availability(Protocol):
    """Says who is available when."""

    def at(self, seed: int, time: float, num_clients: int) -> np.ndarray:
        """bool[num_clients]: whether each client is available at `time`; a function of the arguments alone."""
        ...


@final
@dataclass(frozen=True)
class AvailableSampler:
    """Draws uniformly among the clients that have samples and are available in a round.

    Called as the samplers of `federation.data.sampling`, with one difference: where nobody is available, the cohort is
    empty, and no error.
    """

    availability: Availability
    round_length: float = 1.0

    def __call__(self, seed: int, round: int, clients: np.ndarray | Pool, cohort_size: int) -> np.ndarray:
        sizes = pool_of(clients).sizes
        check_cohort_size(len(sizes), cohort_size, int(np.count_nonzero(sizes)))
        # A product of floats may fall short of where an interval begins.
        time = float(as_written(self.round_length) * (round - 1))
        available = self.availability.at(seed, time, len(sizes)) & (sizes > 0)
        eligible = np.flatnonzero(available)
        return draw_cohort(seed, round, len(sizes), cohort_size, eligible) if len(eligible) else eligible


@final
class DayAndNight:
    """Each client is available in one window of each day, at its own hour.

    period: the length of a day. share: the part of it that a window lasts, above 0 and at most 1. The middle of a
    client's window is `peak` + `spread` * (u + v - 1) of a day, where u and v are uniform on (0, 1), and drawn once for
    each client. So windows are spread around `peak`, most of them near it; both are from 0 to 1. Raises ConfigError for
    numbers out of these ranges.
    """

    def __init__(self, period: float = 24.0, share: float = 0.5, peak: float = 0.5, spread: float = 0.5) -> None:
        problems = [f"availability: {name} {value!r} is not a number from 0 to 1"
                    for name, value in (("share", share), ("peak", peak), ("spread", spread)) if not 0 <= value <= 1]
        if not (math.isfinite(period) and period > 0):
            problems.append(f"availability: period {period!r} is not a number above 0")
        if share == 0:
            problems.append("availability: share 0 makes no client available, ever; give one above 0")
        if problems:
            raise ConfigError(problems)
        self.period, self.share, self.peak, self.spread = period, share, peak, spread
        self._starts: tuple[int, np.ndarray] = (0, np.empty(0))

    def at(self, seed: int, time: float, num_clients: int) -> np.ndarray:
        """See Availability. A client's window does not depend on how many others there are."""
        into_window = np.mod(time / self.period - self._start(seed, num_clients), 1.0)
        # Of a tiny number below 0, the remainder is rounded to 1 itself, which no window reaches that ends there.
        available: np.ndarray = (into_window < self.share) | (self.share == 1)
        return available

    def _start(self, seed: int, num_clients: int) -> np.ndarray:
        """Where windows start, as parts of a day; float64[num_clients], kept for the next round."""
        if self._starts[0] != seed or len(self._starts[1]) != num_clients:
            drawn = uniforms(stream(seed, "availability"), 2 * num_clients).reshape(-1, 2)
            self._starts = seed, self.peak + self.spread * (drawn[:, 0] + drawn[:, 1] - 1) - self.share / 2
        return self._starts[1]


@final
@dataclass(frozen=True, eq=False)
class Trace:
    """Intervals in which clients are available: `clients` (int64[n], indices), `starts` and `ends` (float64[n]).

    Client clients[i] is available from starts[i] on, and no longer at ends[i]; a client may have many intervals, and
    one without any is never available. With a `period`, which no interval may exceed, all begins again after it.
    `source` names the trace in errors.
    """

    clients: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    period: float | None = None
    source: str = "the trace"

    def at(self, seed: int, time: float, num_clients: int) -> np.ndarray:
        """See Availability. Raises ConfigError where the trace is about clients that the run has not."""
        if self.clients.max() >= num_clients:
            raise ConfigError(f"{self.source}: client {self.clients.max()} is not among the {num_clients} clients of "
                              f"this run, 0 to {num_clients - 1}: change num_clients, or the trace")
        now = time if self.period is None else float(as_written(time) % as_written(self.period))
        available = np.zeros(num_clients, bool)
        available[self.clients[(self.starts <= now) & (now < self.ends)]] = True
        return available


def read_trace(path: str | Path, period: float | None = None) -> Trace:
    """The trace in the CSV file at `path`: the header `client,start,end`, then one interval a line.

    `client` is a client's index (that of client_3 is 3; of clients that bring their own data, the place in the order of
    their names). Raises DataError, naming the line, for a file that cannot be read or is not of this form, and for an
    interval that is empty, starts before 0, or ends after `period`.
    """
    rows = list(_rows(Path(path), period))
    if not rows:
        raise DataError(f"{path}: holds no interval, so that nobody would ever be available")
    clients, starts, ends = zip(*rows, strict=True)
    return Trace(np.array(clients, np.int64), np.array(starts, np.float64), np.array(ends, np.float64), period,
                 str(path))


def _rows(path: Path, period: float | None) -> Iterator[tuple[int, float, float]]:
    limit = math.inf if period is None else period
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            if [name.strip() for name in next(lines, [])] != HEADER:
                raise DataError(f"{path}: the first line must be {','.join(HEADER)}")
            for fields in lines:
                if not fields:
                    continue
                try:
                    client, start, end = int(fields[0]), float(fields[1]), float(fields[2])
                    is_interval = (len(fields) == 3 and 0 <= client < 2**63 and 0 <= start < end <= limit
                                   and math.isfinite(end))
                except (ValueError, IndexError):
                    is_interval = False
                if not is_interval:
                    until = "" if period is None else f" <= {period:g}, the period"
                    raise DataError(f"{path}, line {lines.line_num}: {','.join(fields)!r} is not an interval; wanted "
                                    f"are a client's index, and 0 <= start < end{until}")
                yield client, start, end
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a trace of availability: {error}") from error
