"""A world of processes on one machine: the parent is rank 0, its children are the other ranks.

    async def main(transport, seed): ...

    async with processes.World(4, main, (17,)) as transport:     # ranks 1, 2, 3 run main(transport, 17)
        await transport.broadcast(array)

Children are started by `spawn`, or forked from a server that has imported what they need. They end with their parent,
whatever ends it; a child that dies or raises ends the world: all others are ended, and every call of the parent's
transport raises PeerFailed, with the child's traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

from node_comm import fork_server, launchers, memory
from node_comm.errors import CommError, Disconnected, PeerFailed, Unavailable
from node_comm.frames import Ended, Failed, Hello, Report
from node_comm.process_transport import ProcessTransport
from node_comm.queues import MAX_FRAME, Queues
from node_comm.transport import Transport

Result = TypeVar("Result")
Main = Callable[..., Awaitable[Any]]

log = logging.getLogger(__name__)

#: Larger worlds are spawned even so: a fork server passes at most 256 descriptors.
MOST_FORKED = 200
#: Times that a world is started whose children are killed by signals before they are ready.
START_ATTEMPTS = 3
#: Exit code of a child that finds itself starting a world while it imports its parent's script.
NO_MAIN_GUARD = 119

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_KILL_AFTER = 3.0  # seconds between SIGTERM and SIGKILL


def run(main: Callable[..., Awaitable[Result]], size: int, *args: Any, env: Mapping[str, str] | None = None) -> Result:
    """Run `main(transport, *args)` on `size` ranks, rank 0 in this process, in a new event loop; rank 0's result."""
    async def lead() -> Result:
        async with World(size, main, args, env=env) as transport:
            return await main(transport, *args)

    return asyncio.run(lead())


def ensure_main_guard() -> None:
    """End this process quietly if it is a child that is only importing its parent's script.

    A script that starts a world at its top level does so again in every child that imports it. The parent reports
    that once. Call this before anything that the script does at its top level has an effect, e.g. makes a folder.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_MAIN_GUARD)  # an exception would be printed by every child


class World:
    """`size` ranks: this process, and `size - 1` children that run `main(transport, *args)`.

    `main` is a coroutine function at the top level of a module, `args` are copied to every child. `env` is set in the
    children before they import anything (say, OMP_NUM_THREADS).

    With `preload`, names of modules, these are imported once, by a server from which the children are forked, so that they
    start in some hundredths of a second; `env` is set after that, then. The server is one for this process, with the
    modules of the first such world, and ends with it. On leaving the context, children are awaited for
    `grace` seconds; those still there, and all of them if an exception leaves it, are ended.

    Raises CommError when the children cannot be started, PeerFailed when one of them fails.
    """

    def __init__(self, size: int, main: Main, args: Sequence[Any] = (), *, env: Mapping[str, str] | None = None,
                 preload: Sequence[str] = (), grace: float = 10.0) -> None:
        if size < 1:
            raise CommError(f"a world has at least one rank, not {size}")
        self.size = size
        self._main = main
        self._args = tuple(args)
        self._env = dict(env or {})
        self._preload = list(preload) if size <= MOST_FORKED and sys.platform == "linux" else []
        self._grace = grace
        self._children: dict[int, BaseProcess] = {}
        self._watched: dict[int, int] = {}  # rank: a descriptor that becomes readable when the process ends
        self._ready: set[int] = set()
        self._ended: set[int] = set()  # those whose end, and all that they sent before it, has been read
        self._tracebacks: dict[int, str] = {}
        self._failure: Callable[[], CommError] | None = None
        self._terminated = False
        self._generation = 0
        self._changed = asyncio.Event()
        self._queues: Queues
        self._transport: ProcessTransport

    async def __aenter__(self) -> Transport:
        """Start the children, and wait until all are ready."""
        ensure_main_guard()
        if self.size == 1:
            return memory.world(1)[0]
        _check_importable(self._main)
        return await self._begin()

    async def _begin(self) -> Transport:
        """Start the children, and wait until all are ready; once more where a signal has killed one before that."""
        for attempt in range(1, START_ATTEMPTS + 1):
            self._generation += 1
            self._ready, self._ended, self._tracebacks, self._failure, self._terminated = set(), set(), {}, None, False
            self._make_transport(self._generation)
            try:
                self._start()
                await self._until(lambda: len(self._ready) == self.size - 1 or self._failure is not None)
                if self._failure is not None:
                    raise self._failure()
            except BaseException as error:
                await self._end_now()
                if not _was_killed(error) or attempt == START_ATTEMPTS:
                    raise
                log.warning("%s while it was started: once more", error)
            else:
                break
        return self._transport

    async def recover(self) -> Transport:
        """End the children that are left, and start as many as before; what `Transport.recover` does at rank 0.

        Raises what ended the world where that was not a signal: a child that raised, or left by itself, would do so again.
        """
        failure = self.failure
        if failure is not None and not _was_killed(failure):
            raise failure
        for rank in self._watched:
            self._children[rank].kill()
        await self._end_now()
        transport = await self._begin()
        transport.lost = (failure.rank,) if isinstance(failure, PeerFailed) else ()
        return transport

    @property
    def failure(self) -> CommError | None:
        """What ended the world before its time; None where nothing did."""
        return None if self._failure is None else self._failure()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Wait for the children, end those that do not come to an end, reap all."""
        if self.size == 1:
            return
        if error is None and self._failure is None:
            await self._end_in_peace()
        else:
            await self._end_now()
        if self._failure is not None:
            if error is None:
                raise self._failure()
            if not _mentions(error, PeerFailed):
                error.add_note(f"Before that, {self._failure()}")

    # Start

    def _make_transport(self, generation: int) -> None:
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(self.size)]
        self._readers = [reader for reader, _ in pipes]
        self._writers = [writer for _, writer in pipes]
        self._queues = Queues(0, self._readers[0], self._writers)
        self._transport = ProcessTransport(0, self.size, self._queues, functools.partial(self._supervise, generation),
                                           self.recover)

    def _start(self) -> None:
        resource_tracker.ensure_running()  # else the first start does it, and lets go of the signals held back below
        context: Any = multiprocessing.get_context("forkserver" if self._preload else "spawn")
        env = self._env
        if self._preload:
            context.set_forkserver_preload([fork_server.__name__, *self._preload])
            env = {**env, fork_server.FOLDER: multiprocessing.util.get_temp_dir()}
        with _environment(env), _interrupts_held_back():
            for rank in range(1, self.size):
                child = context.Process(
                    target=_child, name=f"rank {rank}",
                    args=(rank, self.size, self._readers[rank], self._writers, self._env, self._main, self._args))
                try:
                    child.start()
                except Exception as error:
                    raise CommError(
                        f"rank {rank} cannot be started: {error}. {self._main!r} must be a coroutine function at the "
                        "top level of a module, and its arguments plain data (no lambdas, locks, open files)"
                    ) from error
                self._children[rank] = child
                self._watched[rank] = _exit_descriptor(child)
                asyncio.get_running_loop().add_reader(self._watched[rank], self._exited, rank)
        self._close_readers()

    def _close_readers(self) -> None:
        """Only the children read their inboxes; with them gone, writing is an error instead of waiting."""
        for reader in self._readers[1:]:
            reader.close()

    # Watch

    def _exited(self, rank: int) -> None:
        """A process has ended: reap it, and report that behind everything that it had sent."""
        self._unwatch(rank)
        child = self._children[rank]
        child.join()
        exitcode = 1 if child.exitcode is None else child.exitcode  # None: somebody else has reaped it
        self._transport.report(Ended(source=rank, exitcode=exitcode))

    def _supervise(self, generation: int, report: Report) -> None:
        if generation != self._generation:
            return  # the last word of a world that has been given up
        rank = report.source
        if isinstance(report, Ended):
            self._ended.add(rank)
        match report:
            case Hello():
                self._ready.add(rank)
            case Failed():
                self._tracebacks[rank] = self._tracebacks.get(rank, "") + report.text
                if report.last and report.disconnected:  # who ends first is to blame; this one, if it does not end either
                    asyncio.get_running_loop().call_later(_KILL_AFTER, self._supervise, generation, Ended(source=rank, exitcode=1))
                elif report.last:
                    self._fail(rank, 1)
            case Ended() if report.exitcode == NO_MAIN_GUARD and rank not in self._ready:
                self._fail_with(lambda: Unavailable(_advice_on_main_guard()))
            case Ended() if rank in self._tracebacks or not self._transport.has_left(rank):
                self._fail(rank, report.exitcode)
            case Ended() if report.exitcode and not self._terminated:
                log.warning("rank %d had finished, but its process ended with exit code %d", rank, report.exitcode)
        self._changed.set()

    def _fail(self, rank: int, exitcode: int) -> None:
        if not self._terminated:
            text = self._tracebacks.get(rank, "")
            self._fail_with(lambda: PeerFailed(rank, exitcode, text))

    def _fail_with(self, failure: Callable[[], CommError]) -> None:
        """End the world: the others could only wait for the rank that is missing."""
        if self._failure is None:
            self._failure = failure
            self._transport.fail(failure)
            self._terminate()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # End

    async def _end_in_peace(self) -> None:
        """Let the children finish; end those who do not."""
        try:
            async with asyncio.timeout(self._grace):
                await self._transport.close()
                await self._until(lambda: len(self._ended) == len(self._children) or self._failure is not None)
        except TimeoutError:
            log.warning("ranks %s did not finish within %g s after rank 0: they are ended now",
                        ", ".join(map(str, sorted(self._watched))), self._grace)
        finally:
            await self._end_now()

    async def _end_now(self) -> None:
        """End all children, first politely; reap them; free everything."""
        try:
            self._terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILL_AFTER):
                    await self._until(lambda: not self._watched)
        finally:
            for rank in list(self._watched):
                self._unwatch(rank)
            for child in self._children.values():
                child.kill()
                child.join()
                child.close()
            self._children.clear()
            self._close_readers()
            self._transport.fail(lambda: Disconnected("this world of processes has been left"))
            await self._transport.close()
            self._queues.close()

    def _terminate(self) -> None:
        self._terminated = True
        for rank in self._watched:
            self._children[rank].terminate()

    def _unwatch(self, rank: int) -> None:
        descriptor = self._watched.pop(rank)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._changed.set()


def _was_killed(error: BaseException | None) -> bool:
    """Whether a signal has ended a child; one that raised, or left by itself, would do so again."""
    return isinstance(error, PeerFailed) and error.exitcode < 0


def _check_importable(main: Main) -> None:
    """Refuse what was typed in: a child can import a script or a module, but nothing from a prompt or a notebook."""
    module = sys.modules["__main__"]
    if main.__module__ == "__main__" and module.__spec__ is None and not hasattr(module, "__file__"):
        raise CommError(f"{main!r} was defined interactively, where child processes cannot find it: "
                        "move it to a module, and import it")


def _exit_descriptor(child: BaseProcess) -> int:
    """A descriptor that becomes readable when `child` ends; the caller closes it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # forbidden in some sandboxes
            return os.pidfd_open(child.pid or 0)
    return os.dup(child.sentinel)  # a pipe that closes with the process, and with those that it may have forked


def _advice_on_main_guard() -> str:
    script = getattr(sys.modules["__main__"], "__file__", None) or "the script"
    return (f"{script} starts worker processes as soon as it is imported, and every worker has to import it. "
            'Put what it does under  if __name__ == "__main__":')


def _mentions(error: BaseException | None, kind: type[CommError]) -> bool:
    """Whether one of that kind is among an error, its causes and its parts."""
    while error is not None:
        if isinstance(error, kind):
            return True
        if isinstance(error, BaseExceptionGroup) and any(_mentions(part, kind) for part in error.exceptions):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which its children inherit, for a while."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Block SIGINT for a while. Children inherit that, so that Ctrl-C does not hit them while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the child


def _child(rank: int, size: int, reader: Connection, writers: Sequence[Connection], env: Mapping[str, str], main: Main,
           args: Sequence[Any]) -> None:
    """The whole life of a child."""
    os.environ.update({**env, launchers.WORKER: str(rank - 1)})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    if not asyncio.run(_serve(rank, size, Queues(rank, reader, writers), main, args)):
        sys.exit(1)


async def _serve(rank: int, size: int, queues: Queues, main: Main, args: Sequence[Any]) -> bool:
    """Run `main`; what it raises is sent home, to be printed there, once. Whether all went well."""
    transport = ProcessTransport(rank, size, queues)
    try:
        transport.report(Hello(source=rank))
        await main(transport, *args)
        await transport.close()
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, Disconnected) and transport.has_left(0):
            log.info("rank 0 has left: %s", error)
            await transport.close()
            return True
        _send_home(transport, traceback.format_exc(), _mentions(error, Disconnected))
        return False
    finally:
        queues.close()
    return True


def _send_home(transport: ProcessTransport, text: str, disconnected: bool) -> None:
    length = (MAX_FRAME - 64) // 4  # a character is four bytes at most
    pieces = [text[begin:begin + length] for begin in range(0, len(text), length)]
    try:
        for number, piece in enumerate(pieces, start=1):
            transport.report(Failed(source=transport.rank, text=piece, last=number == len(pieces), disconnected=disconnected))
    except Disconnected:
        sys.stderr.write(text)  # the parent is gone


def _end_with_parent() -> None:
    """Make sure that this process does not outlive its parent, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
