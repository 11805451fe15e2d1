"""The one thread that makes a rank's MPI calls, so that the event loop never waits in one.

An *operation* is a generator: each `yield` means "not yet, look again later", its return value is the result. The
thread steps all pending operations in turn. Between looks it naps by its bell, longer the longer nothing has happened: a
new operation rings it, and so do the ranks of the machine when they have done their part of one. A thread with no operation
sleeps until then. An operation of many parts yields True when one more has been done, so that the naps begin anew.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from node_comm.bells import Bells
from node_comm.errors import Disconnected

Result = TypeVar("Result")
Operation = Generator[Any, None, Result]

#: Nap for this share of the time already waited, so that no wait is prolonged by more than about this share...
NAP_SHARE = 1 / 16
#: ...but never longer than this (seconds), so that a rank that waits for minutes still answers at once.
LONGEST_NAP = 1e-3
#: Longer naps delay next to nothing where every other rank rings, and nothing is under way that MPI needs to be called for:
#: only what arrives after its ring waits for their end.
NAP_SHARE_BY_BELL = 1 / 2
LONGEST_NAP_BY_BELL = 16e-3
#: A thread that has no operation calls `listen` so often (seconds).
LISTENING_NAP = 50e-3
#: How long a thread that is asked to stop may take (seconds); it overruns only inside a blocking call of a dead world.
STOP_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class _Job:
    operation: Operation[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    partners: Sequence[int] | None
    awaits_ring: bool
    has_begun: bool = False
    has_ended: bool = False

    def step(self, translate: Callable[[Exception], Exception]) -> bool:
        """Look once; whether the operation has begun, moved or ended by it. When it has ended, its future is told."""
        try:
            has_moved = next(self.operation) is True or not self.has_begun
            self.has_begun = True
        except StopIteration as end:
            self.settle(end.value, None)
        except Exception as error:
            self.settle(None, translate(error))
        else:
            return has_moved
        self.has_ended = True
        return True

    def cut_off(self, reason: Disconnected) -> None:
        """Tell the future that the operation will not end."""
        # MPI may use the operation's buffers until it is finalized, which is after Python's last object has been
        # freed. So they are made to outlive the interpreter.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.operation))
        self.settle(None, Disconnected(*reason.args))

    def settle(self, result: object, error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has been closed: nobody waits any more
            self.loop.call_soon_threadsafe(_settle, self.future, result, error)


def _settle(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class OperationThread:
    """Runs operations in one thread, started here; `translate` turns what they raise into what callers get.

    The thread sleeps by `bells`, which stay the caller's, who may close them when the thread has stopped. It calls `listen`,
    where there is one, whenever it looks after its operations, and now and then without any.
    """

    def __init__(self, name: str, translate: Callable[[Exception], Exception], bells: Bells,
                 listen: Callable[[], None] | None = None) -> None:
        self._translate = translate
        self._bells = bells
        self._listen = listen
        self._ended: Disconnected | None = None
        # Not a queue.SimpleQueue: its `get` with a short timeout can block for ever (CPython 3.11).
        self._inbox: deque[_Job | Disconnected] = deque()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        # A rank that ends without `stop` must not finalize MPI under the feet of this thread.
        atexit.register(self._stop_at_exit)

    async def run(self, operation: Operation[Result], partners: Sequence[int] | None = (), *,
                  awaits_ring: bool = False) -> Result:
        """Hand `operation` over and await its result. Cancelling the wait does not stop the operation.

        `partners` (None: all) are the ranks that are woken when it has begun, when a part of it is done, and when it ends.
        `awaits_ring`: nothing happens to it before another rank has done something that rings.
        """
        return await self.begin(operation, partners, awaits_ring=awaits_ring)

    def begin(self, operation: Operation[Result], partners: Sequence[int] | None = (), *,
              awaits_ring: bool = False) -> asyncio.Future[Result]:
        """The first half of `run`: hand `operation` over; its result comes in the future."""
        if self._ended is not None:
            raise Disconnected(*self._ended.args)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._put(_Job(operation, loop, future, partners, awaits_ring))
        return future

    def end(self, reason: Disconnected) -> None:
        """Stop soon: pending and later calls of `run` raise Disconnected with the text of the first `reason` given."""
        if self._ended is None:
            self._ended = reason
            self._put(reason)

    async def stop(self, reason: Disconnected) -> bool:
        """`end`, and wait until the thread has ended; False if it has not within STOP_SECONDS."""
        self.end(reason)  # on the caller's thread, as `begin`: nothing is handed over behind the thread's end
        return await asyncio.to_thread(self.stop_now, reason)

    def stop_now(self, reason: Disconnected, seconds: float = STOP_SECONDS) -> bool:
        """`stop`, which lets the event loop wait too, for `seconds`."""
        self.end(reason)
        self._thread.join(seconds)
        atexit.unregister(self._stop_at_exit)
        return not self._thread.is_alive()

    def _stop_at_exit(self) -> None:
        self.stop_now(Disconnected("this process ends"))

    def _put(self, item: _Job | Disconnected) -> None:
        self._inbox.append(item)
        self._bells.ring()

    def _serve(self) -> None:
        jobs: list[_Job] = []
        last_change = time.monotonic()
        while True:
            waited = time.monotonic() - last_change
            rests = self._bells.is_rung_by_all and all(job.awaits_ring for job in jobs)
            share, longest = (NAP_SHARE_BY_BELL, LONGEST_NAP_BY_BELL) if rests else (NAP_SHARE, LONGEST_NAP)
            idle = None if self._listen is None else LISTENING_NAP
            has_changed = self._bells.wait(min(waited * share, longest) if jobs else idle)
            while self._inbox:
                item = self._inbox.popleft()
                if isinstance(item, Disconnected):
                    for job in jobs:
                        job.cut_off(item)
                    return
                jobs.append(item)
            if self._listen is not None:
                self._listen()
            for job in jobs:
                if job.step(self._translate):
                    self._bells.ring_others(job.partners)
                    has_changed = True
            jobs = [job for job in jobs if not job.has_ended]
            if has_changed:
                last_change = time.monotonic()
