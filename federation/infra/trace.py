"""Where each rank spends its time, as a timeline for Perfetto (ui.perfetto.dev) or Chrome (chrome://tracing)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Something that took time: since when (seconds since 1970, by the clock of its machine), for how long, and for whom."""

    name: str
    began: float
    seconds: float
    who: str = ""


class Spans:
    """Those of one rank, until somebody takes them. Where they are not `wanted`, nothing is kept. For any thread."""

    def __init__(self, wanted: bool = False) -> None:
        self.wanted = wanted
        self._kept: list[Span] = []

    @contextmanager
    def span(self, name: str, who: str = "") -> Iterator[None]:
        """Keep the time of the block, also where it raises."""
        if not self.wanted:
            yield
            return
        began, start = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self._kept.append(Span(name, began, time.perf_counter() - start, who))

    def add(self, name: str, seconds: float) -> None:
        """Keep `seconds` that end now."""
        if self.wanted:
            self._kept.append(Span(name, time.time() - seconds, seconds))

    def take(self) -> list[Span]:
        """What was kept since the last call."""
        taken, self._kept = self._kept, []
        return taken


class TraceFile:
    """A file in the trace event format: a JSON array, an event a line, which viewers read without its end as well.

    Where it cannot be written any more, as on a full disk, it is given up with a warning, and the run goes on.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        """A new file, or the old one to go on with."""
        lines = path.read_text(errors="replace").splitlines() if resume and path.exists() else []
        events = [event for line in lines if _is_whole(event := line.rstrip(","))]  # the last line may be torn, after a kill
        self._path = path
        self._file = path.open("w")
        self._file.write("[" + ",".join(f"\n{event}" for event in events))
        self._is_first = not events
        self._known: set[int] = set()

    def write(self, rank: int, spans: Sequence[Span]) -> None:
        """Spans of one rank."""
        if self._file.closed:
            return
        try:
            if rank not in self._known:
                self._known.add(rank)
                self._event({"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}})
            for span in spans:
                self._event({"name": span.name, "ph": "X", "pid": rank, "tid": 0, "ts": round(1e6 * span.began, 3),
                             "dur": round(1e6 * span.seconds, 3), **({"args": {"client": span.who}} if span.who else {})})
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """End the array."""
        if not self._file.closed:
            try:
                self._file.write("\n]\n")
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s: %s; the trace ends here", self._path, error.strerror or error)
        try:
            self._file.close()
        except OSError:  # what could not be written is still there
            pass

    def _event(self, event: dict[str, object]) -> None:
        self._file.write(("\n" if self._is_first else ",\n") + json.dumps(event))
        self._is_first = False


def _is_whole(line: str) -> bool:
    """Whether a line of the file is an event."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
