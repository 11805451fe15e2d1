"""The thread that runs operations: results, errors, order, naps and its end. No MPI is needed for any of it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import types
from collections.abc import Callable, Iterable

import pytest

from node_comm.bells import Bells
from node_comm.errors import Disconnected
from node_comm.mpi_thread import LONGEST_NAP, LONGEST_NAP_BY_BELL, Operation, OperationThread


class Sleepless(Bells):
    """Remembers how long each nap was to be, and takes none; somebody rings it in nap number `rung_at`."""

    def __init__(self, rung_at: int = 0) -> None:
        super().__init__()
        self.naps: list[float] = []
        self._rung_at = rung_at

    def wait(self, seconds: float | None) -> bool:
        if seconds is None:
            return super().wait(None)
        self.naps.append(seconds)
        return super().wait(0) or len(self.naps) == self._rung_at


def unchanged(error: Exception) -> Exception:
    return error


def after(looks: int, value: str) -> Operation[str]:
    """Ends at the given look."""
    for _ in range(looks):
        yield
    return value


def until(event: threading.Event) -> Operation[str]:
    while not event.is_set():
        yield
    return threading.current_thread().name


def failing() -> Operation[str]:
    yield
    raise KeyError("inside")


def test_operations_run_side_by_side_in_one_thread() -> None:
    async def main() -> None:
        thread = OperationThread("worker", unchanged, Bells())
        event = threading.Event()
        waiting = asyncio.ensure_future(thread.run(until(event)))
        assert await asyncio.gather(*(thread.run(after(looks, str(looks))) for looks in (9, 0, 3))) == ["9", "0", "3"]
        assert not waiting.done()
        event.set()
        assert await waiting == "worker"
        assert await thread.stop(Disconnected("the end"))

    asyncio.run(main())


def test_errors_reach_who_waits_translated() -> None:
    async def main() -> None:
        thread = OperationThread("worker", lambda error: LookupError(f"translated {error!r}"), Bells())
        with pytest.raises(LookupError, match=r"translated KeyError\('inside'\)"):
            await thread.run(failing())
        assert await thread.run(after(2, "later ones run")) == "later ones run"
        await thread.stop(Disconnected("the end"))

    asyncio.run(main())


def test_a_stop_ends_what_is_pending_and_what_comes_later() -> None:
    async def main() -> None:
        thread = OperationThread("worker", unchanged, Bells())
        pending = [asyncio.ensure_future(thread.run(until(threading.Event()))) for _ in range(3)]
        await asyncio.sleep(0)
        thread.end(Disconnected("the end"))
        late = asyncio.ensure_future(thread.run(after(0, "late")))
        assert await thread.stop(Disconnected("twice"))
        for call in [*pending, late]:
            with pytest.raises(Disconnected, match="the end"):
                await call

    asyncio.run(main())


def test_nothing_is_handed_over_once_a_stop_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lie behind the thread's end, where nobody settles it."""
    async def main() -> None:
        thread = OperationThread("worker", unchanged, Bells())
        refused = []

        async def elsewhere(stop: Callable[[Disconnected], bool], reason: Disconnected) -> bool:
            with pytest.raises(Disconnected, match="the end"):
                thread.begin(until(threading.Event()))
            refused.append(reason)
            return stop(reason)

        monkeypatch.setattr(asyncio, "to_thread", elsewhere)
        assert await thread.stop(Disconnected("the end"))
        assert refused

    asyncio.run(main())


def test_a_cancelled_wait_does_not_disturb_the_thread() -> None:
    async def main() -> None:
        thread = OperationThread("worker", unchanged, Bells())
        event = threading.Event()
        waiting = asyncio.ensure_future(thread.run(until(event)))
        await asyncio.sleep(0)
        waiting.cancel()
        event.set()
        assert await thread.run(after(5, "still running")) == "still running"
        await thread.stop(Disconnected("the end"))

    asyncio.run(main())


def test_naps_begin_anew_when_an_operation_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a millisecond each time it is read: naps grow, and after True are as short as the first."""
    bells = Sleepless()

    def moving() -> Operation[None]:
        yield from (False, False, False, True, False, False)

    async def main() -> None:
        thread = OperationThread("worker", unchanged, bells)
        await thread.run(moving())
        await thread.stop(Disconnected("the end"))

    clock = itertools.count()
    monkeypatch.setattr("node_comm.mpi_thread.time", types.SimpleNamespace(monotonic=lambda: next(clock) * 1e-3))
    asyncio.run(main())
    first, second, third, anew, *_ = bells.naps
    assert first < second < third
    assert anew == first


def test_partners_are_woken_when_something_has_been_done() -> None:
    """Not when an operation only looked: at its begin, at the part that moves, and at its end."""
    events: list[object] = []

    class Recording(Bells):
        def ring_others(self, ranks: Iterable[int] | None) -> None:
            events.append(ranks)

    def moving() -> Operation[None]:
        for look in range(6):
            events.append(look)
            yield look == 3

    async def main() -> None:
        thread = OperationThread("worker", unchanged, Recording())
        await thread.run(moving(), [4, 2])
        await thread.run(after(0, "at once"), None)
        with pytest.raises(KeyError):
            await thread.run(failing(), [1])
        await thread.stop(Disconnected("the end"))

    asyncio.run(main())
    assert events == [0, [4, 2], 1, 2, 3, [4, 2], 4, 5, [4, 2], None, [1], [1]]


def test_a_ring_makes_naps_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock as above: who was rung looks soon, and soon again, for what MPI may not show at once."""
    bells = Sleepless(rung_at=4)

    async def main() -> None:
        thread = OperationThread("worker", unchanged, bells)
        await thread.run(after(6, "done"))
        await thread.stop(Disconnected("the end"))

    clock = itertools.count()
    monkeypatch.setattr("node_comm.mpi_thread.time", types.SimpleNamespace(monotonic=lambda: next(clock) * 1e-3))
    asyncio.run(main())
    first, _, _, fourth, anew, *_ = bells.naps
    assert fourth > first == anew


@pytest.mark.parametrize("is_rung", [True, False])
@pytest.mark.parametrize("others", [0, 1])
def test_long_naps_are_for_what_a_ring_brings(monkeypatch: pytest.MonkeyPatch, is_rung: bool, others: int) -> None:
    """By a clock that goes on by a second each time it is read: not where a transfer is under way beside it."""
    bells = Sleepless()
    bells.is_rung_by_all = is_rung
    is_over = threading.Event()

    async def main() -> None:
        thread = OperationThread("worker", unchanged, bells)
        beside = [asyncio.create_task(thread.run(until(is_over))) for _ in range(others)]
        await asyncio.sleep(0)  # the payload is known first, and stays to the end
        await thread.run(after(9, "a frame"), awaits_ring=True)
        is_over.set()
        await asyncio.gather(*beside)
        await thread.stop(Disconnected("the end"))

    clock = itertools.count()
    monkeypatch.setattr("node_comm.mpi_thread.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    asyncio.run(main())
    assert max(bells.naps) == (LONGEST_NAP_BY_BELL if is_rung and not others else LONGEST_NAP)


@pytest.mark.parametrize(("is_rung", "looks"), [(True, range(8, 25)), (False, range(60, 120))])
def test_who_will_be_rung_looks_less_often(monkeypatch: pytest.MonkeyPatch, is_rung: bool, looks: range) -> None:
    """By a clock that goes on by the naps and 15 us a look: 20 ms until a message comes."""
    bells = Sleepless()
    bells.is_rung_by_all = is_rung

    def now() -> float:
        return sum(bells.naps) + 15e-6 * len(bells.naps)

    def message() -> Operation[None]:
        while now() < 20e-3:
            yield

    async def main() -> None:
        thread = OperationThread("worker", unchanged, bells)
        await thread.run(message(), awaits_ring=True)
        await thread.stop(Disconnected("the end"))

    monkeypatch.setattr("node_comm.mpi_thread.time", types.SimpleNamespace(monotonic=now))
    asyncio.run(main())
    assert len(bells.naps) in looks


def test_naps_grow_with_the_wait_and_idleness_costs_nothing() -> None:
    """Few looks in a long wait; the thread's own processor time, not the clock, is what is checked."""
    spent: list[float] = []

    def look_for(seconds: float) -> Operation[int]:
        begin, looks = time.monotonic(), 0
        spent.append(time.thread_time())
        while time.monotonic() < begin + seconds:
            looks += 1
            yield
        spent.append(time.thread_time())
        return looks

    async def main() -> None:
        thread = OperationThread("worker", unchanged, Bells())
        looks = await thread.run(look_for(0.5))
        assert 5 < looks < 5_000  # a busy loop would look about a million times
        await asyncio.sleep(0.3)  # idle
        await thread.run(look_for(0))
        assert spent[1] - spent[0] < 0.25
        assert spent[2] - spent[1] < 0.05
        await thread.stop(Disconnected("the end"))

    asyncio.run(main())
