"""A process that kills this one when it stands still: one that is frozen cannot end itself."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from typing import NoReturn

#: The signals that ask a run to stop, of which rank 0 is the one to answer.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
#: Signs of life in the time after which there must have been one.
BEATS = 10


class Watchdog:
    """Watches this process, from a child of it, from the first `beat` on. Make it before there are threads.

    A process without a beat for `seconds` (it is stopped, or its event loop hangs in a call that never returns) gets SIGKILL.
    Time in which the watchdog itself is stopped, as in a job that is suspended, counts for nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        reader, self._writer = os.pipe()
        parent = os.getpid()
        if os.fork() == 0:
            _watch(parent, reader, self._writer, seconds)
        os.close(reader)

    def beat(self) -> None:
        """Say that this process lives."""
        os.write(self._writer, b".")

    async def keep_beating(self) -> None:
        """Beat for as long as the event loop runs."""
        while True:
            self.beat()
            await asyncio.sleep(self._seconds / BEATS)


def _watch(parent: int, reader: int, writer: int, seconds: float) -> NoReturn:
    """The child's whole life; it ends with its parent. Nothing of the parent's stays open: somebody may wait for its end."""
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        os.closerange(3, reader)
        os.closerange(reader + 1, max(reader, writer, nothing) + 256)
        if not os.read(reader, 1):
            os._exit(0)
        silent = 0
        while silent < BEATS:
            if not select.select([reader], [], [], seconds / BEATS)[0]:
                silent += 1
            elif os.read(reader, 4096):
                silent = 0
            else:
                os._exit(0)
        os.kill(parent, signal.SIGKILL)
    finally:
        os._exit(1)
