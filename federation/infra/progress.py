"""How a run shows that it lives: a bar on a terminal, one plain line a round elsewhere."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from federation.infra.json_values import as_float

_SHOWN = ("loss", "accuracy")


class Progress:
    """Shows rounds as they complete: live on a terminal, a line a round elsewhere, nothing when `quiet`.

    stream: standard output by default. When nobody reads it any more, nothing is shown and the run goes on.
    """

    def __init__(self, total_rounds: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._total = total_rounds
        self._stream = sys.stdout if stream is None else stream
        self._begin = time.monotonic()
        self._has_begun = False
        self._shown_rounds = 0
        self._display: _Display | None = None
        # Python sets sys.stdout to None in a process without any output.
        if not quiet and self._stream is not None:
            live = _is_terminal(self._stream) and importlib.util.find_spec("rich") is not None
            make = _Bar if live else _Lines
            self._attempt(lambda: self._show_with(make))

    def begin(self) -> None:
        """The first round begins: waiting for clients is over. Changes nothing when called again."""
        if not self._has_begun:
            self._has_begun, self._begin = True, time.monotonic()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show the record of a round that is complete: its `round`, and the losses and accuracies on its top level."""
        self._shown_rounds += 1
        rate = self._shown_rounds / max(time.monotonic() - self._begin, 1e-9)
        found = [(name, as_float(value)) for name, value in row.items() if name.lower().endswith(_SHOWN)]
        parts = [f"{name} {value:.4f}" for name, value in found if value is not None][:4]
        parts.append(f"{rate:.3g} rounds/s" if rate < 100 else f"{rate:.0f} rounds/s")
        if (display := self._display) is not None:
            self._attempt(lambda: display.show(row["round"], parts, rate))

    def close(self) -> None:
        """Leave the terminal in order. May be called again."""
        display, self._display = self._display, None
        if display is not None:
            self._attempt(display.close)

    def _show_with(self, make: type[_Bar] | type[_Lines]) -> None:
        self._display = make(self._total, self._stream)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError):  # the reader is gone, the stream is closed, or it cannot take a character
            self._display = None
            _abandon(self._stream)


class _Display(Protocol):
    def show(self, round: int, parts: list[str], rate: float) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """`round 12/30  loss 0.1234  accuracy 0.9512  3.2 rounds/s  ETA 0:00:05`"""

    def __init__(self, total_rounds: int, stream: TextIO) -> None:
        self._total = total_rounds
        self._stream = stream

    def show(self, round: int, parts: list[str], rate: float) -> None:
        minutes, seconds = divmod(int(max(0, self._total - round) / rate + 0.5), 60)
        left = f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        self._stream.write("  ".join([f"round {round}/{self._total}", *parts, left]) + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class _Bar:
    """A live bar with what a line has. Prints, and log lines where they go to the terminal, appear above it."""

    def __init__(self, total_rounds: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("round"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[parts]}", markup=False),
            TextColumn("ETA"), TimeRemainingColumn(), console=Console(file=stream),
            redirect_stderr=sys.stderr is not None and _is_terminal(sys.stderr),
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total_rounds, parts="")
        self._bar.start()

    def show(self, round: int, parts: list[str], rate: float) -> None:
        self._bar.update(self._task, completed=round, parts="  ".join(parts))

    def close(self) -> None:
        self._bar.stop()


def say(text: str) -> None:
    """Print `text` on standard output, as far as that takes it: what is done is done, whether or not anybody reads of it."""
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except (OSError, ValueError):  # as in `Progress`
        _abandon(sys.stdout)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _abandon(stream: TextIO) -> None:
    """Keep a broken standard output from failing once more when Python flushes it at the end."""
    if stream is sys.stdout and not stream.closed:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        except (OSError, ValueError):  # not a real file: nothing will be flushed to it
            pass
        finally:
            os.close(null)
