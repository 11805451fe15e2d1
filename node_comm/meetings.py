"""Collectives between processes, step by step: all enter, all hear whether they agree, all say that they are done.

Rank 0 coordinates: it collects what the ranks enter with, answers with a verdict, and says when all are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node_comm.agreement import Call, disagreement
from node_comm.errors import BufferMismatch, CommError, Disconnected
from node_comm.frames import Done, Enter, Finished, Frame, Verdict
from node_comm.segments import Location

COORDINATOR = 0


@dataclass(slots=True)
class Meeting:
    """One collective, as this rank sees it. `places[rank]` is where that rank's parts lie, once all have entered."""

    number: int
    verdict: asyncio.Future[Verdict]
    finished: asyncio.Future[None]
    places: tuple[tuple[Location, ...], ...] = ()
    entered: dict[int, Enter] = field(default_factory=dict)
    done: int = 0

    def fail(self, failure: Callable[[], CommError]) -> None:
        """Wake the rank that waits, if one does."""
        for future in (self.verdict, self.finished):
            if not future.done():
                future.set_exception(failure())
                future.exception()  # marks it as seen: only one of the two is awaited, and perhaps none


class Meetings:
    """The collectives of rank `rank`; `put(dest, frame)` sends a frame, also to the rank itself."""

    def __init__(self, rank: int, size: int, put: Callable[[int, Frame], None]) -> None:
        self._rank = rank
        self._size = size
        self._put = put
        self._open: dict[int, Meeting] = {}
        self._begun = 0
        self._left: dict[int, int] = {}  # rank: the last collective that it completed
        self.completed = 0

    def begin(self) -> Meeting:
        """The next collective; Disconnected if a rank is gone that would have to take part."""
        self._begun += 1
        for rank, completed in self._left.items():
            if completed < self._begun:
                raise Disconnected(f"rank {rank} has left this world")
        return self._meeting(self._begun)

    async def enter(self, meeting: Meeting, call: Call, places: Sequence[Location]) -> None:
        """Report this rank's call and parts, and wait for the others; BufferMismatch if they do not agree."""
        self._put(COORDINATOR, Enter(source=self._rank, number=meeting.number, call=call, places=tuple(places)))
        verdict = await meeting.verdict
        if verdict.problem:
            self.complete(meeting)
            raise BufferMismatch(verdict.problem)
        meeting.places = verdict.places

    async def finish(self, meeting: Meeting, wait: bool = True) -> None:
        """Say that this rank has read and written what it must; `wait` until all have."""
        self._put(COORDINATOR, Done(source=self._rank, number=meeting.number))
        if wait or self._rank == COORDINATOR:
            await meeting.finished

    def complete(self, meeting: Meeting) -> None:
        """This rank has done all of its part, and leaves nobody waiting."""
        self.completed = max(self.completed, meeting.number)

    def end(self, meeting: Meeting) -> None:
        """Forget it, whatever came of it."""
        self._open.pop(meeting.number, None)

    def handle(self, frame: Enter | Verdict | Done | Finished) -> None:
        """Act on a frame."""
        meeting = self._meeting(frame.number) if isinstance(frame, Enter) else self._open.get(frame.number)
        match frame:
            case _ if meeting is None:
                pass  # of a collective that this rank need not wait for
            case Enter():
                meeting.entered[frame.source] = frame
                if len(meeting.entered) == self._size:
                    self._put_to_all(self._verdict(meeting))
            case Verdict():
                if not meeting.verdict.done():
                    meeting.verdict.set_result(frame)
            case Done():
                meeting.done += 1
                if meeting.done == self._size:
                    self._put_to_all(Finished(source=self._rank, number=frame.number))
            case Finished():
                if not meeting.finished.done():
                    meeting.finished.set_result(None)

    def leave(self, rank: int, completed: int) -> None:
        """`rank` has left after collective `completed`: whoever waits for it in a later one waits in vain."""
        self._left[rank] = completed
        for meeting in self._open.values():
            if meeting.number > completed:
                meeting.fail(lambda: Disconnected(f"rank {rank} has left this world"))

    def fail(self, failure: Callable[[], CommError]) -> None:
        """End all that are open."""
        for meeting in self._open.values():
            meeting.fail(failure)

    def _meeting(self, number: int) -> Meeting:
        if number not in self._open:
            loop = asyncio.get_running_loop()
            self._open[number] = Meeting(number, loop.create_future(), loop.create_future())
        return self._open[number]

    def _verdict(self, meeting: Meeting) -> Verdict:
        entered = [meeting.entered[rank] for rank in range(self._size)]
        problem = disagreement([entry.call for entry in entered])
        places = () if problem else tuple(entry.places for entry in entered)
        return Verdict(source=self._rank, number=meeting.number, problem=problem, places=places)

    def _put_to_all(self, frame: Frame) -> None:
        for rank in range(self._size):
            self._put(rank, frame)
