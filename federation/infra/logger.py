"""One log handler for the whole process: rank and round in each record, secrets masked.

    12:00:01 r0 #12 INFO federation.node.server: round 12 of 30 ...

(or the same as JSON, for machines)

Modules log through `logging.getLogger(__name__)`; the launcher calls `configure` once.
"""

from __future__ import annotations

import json
import logging
import sys
import urllib.parse
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

#: The round that this process or task is in; None outside of rounds.
round_number: ContextVar[int | None] = ContextVar("round_number", default=None)

_LOGGERS = ("federation", "node_comm")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_MASK = "***"

_secrets: set[str] = set()


def configure(rank: int = 0, level: str = "INFO", quiet: bool = False, form: Literal["text", "json"] = "text") -> None:
    """Send what `federation` and `node_comm` log to standard error. May be called again; the last call counts.

    json: an object a line, with time (UTC), rank, round (or null), level, logger, message, and traceback where there is one.
    Rank 0 logs from `level` on, or from WARNING when `quiet`. The other ranks log from WARNING on, so that a line a
    round stays one line at any number of ranks; only `level="DEBUG"` opens all of them.
    Raises ValueError for an unknown level.
    """
    name = level.upper()
    if name not in _LEVELS:
        raise ValueError(f"log level {level!r}: give one of {', '.join(_LEVELS)}")
    threshold = logging.getLevelNamesMapping()[name]
    if quiet or (rank != 0 and threshold > logging.DEBUG):
        threshold = max(threshold, logging.WARNING)
    handler = _Handler()
    handler.setFormatter(_JsonFormatter(rank) if form == "json" else _Formatter(rank))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for old in [h for h in logger.handlers if isinstance(h, _Handler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(threshold)
        logger.propagate = False  # a handler that some library puts on the root would print every line twice


def register_secret(text: str) -> None:
    """Mask `text` (a key, a token) in all that is logged from now on, tracebacks included. Blank text is ignored.

    Masked as well: the text as it looks inside quotes, in JSON and in a URL, and each line of a text of many lines.
    """
    for line in (text, *text.splitlines()):
        if line.strip():
            _secrets.update((line, repr(line)[1:-1], json.dumps(line)[1:-1], urllib.parse.quote(line, safe="")))


def redact(text: str) -> str:
    """`text` with each registered secret shown as ***. For whatever is printed or stored beside the log."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return text


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is at the time: a progress bar and pytest put their own in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a wrong logging call as usual; a standard error that nobody reads any more must not stop a run."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Formatter(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__("%(asctime)s r%(rank)d #%(round)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        # Masked last, over the finished text: arguments, exception and stack are all in it by then.
        record.rank = self._rank
        current = round_number.get()
        record.round = "-" if current is None else current
        return redact(super().format(record))


class _JsonFormatter(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "rank": self._rank, "round": round_number.get(), "level": record.levelname, "logger": record.name,
                "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(line))
