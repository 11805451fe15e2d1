"""The world of processes: the contract, what happens when a process ends, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from node_comm import CommError, Disconnected, PeerFailed, Transport, launchers, processes
from node_comm.process_transport import ProcessTransport
from node_comm.queues import Queues
from tests.mpi_helper import is_alive
from tests.node_comm.contract import CHECKS, CLOSING_CHECKS, Check, name_of


async def every_check(transport: Transport) -> None:
    for check in CHECKS:
        try:
            await check(transport)
        except Exception as error:
            error.add_note(f"in {name_of(check)} on rank {transport.rank}")
            raise


@pytest.mark.parametrize("size", [1, 2, 3])
def test_contract(size: int) -> None:
    """S-LIFE-04, S-COMM-01, S-COMM-03, S-COMM-04, S-COMM-06, S-COMM-07, S-COMM-08: every check, in one world."""
    processes.run(every_check, size)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("check", CLOSING_CHECKS, ids=name_of)
def test_contract_of_closing(check: Check, size: int) -> None:
    processes.run(check, size)


# What a child may do, each at the top level of this module, as `spawn` wants it


async def wait_for_word(transport: Transport) -> None:
    """Tell the parent this process's id, and end when it sends something."""
    await transport.send(0, str(os.getpid()).encode())
    await transport.recv(0)


async def fail_as_told(transport: Transport, how: str) -> None:
    """Rank 2 fails in one of several ways once rank 0 has spoken, the others wait for rank 0."""
    await wait_for_word(transport)
    if transport.rank == 2:
        match how:
            case "raise":
                raise ValueError("rank 2 cannot: \u00e9\u4e2d " + "x" * 20_000 + " end of text")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit 0":
                os._exit(0)
            case "exit 3":
                sys.exit(3)
            case "abort":
                os.abort()
    await transport.recv(0)


async def pids_of_children(transport: Transport) -> list[int]:
    return [int((await transport.recv(rank)).header) for rank in range(1, transport.size)]


PENDING: dict[str, Callable[[Transport], object]] = {
    "recv": lambda transport: transport.recv(),
    "recv from another rank": lambda transport: transport.recv(1),
    "send": lambda transport: transport.send(2, b"", np.zeros(100_000)),
    "reduce": lambda transport: transport.reduce(np.zeros(100_000), np.zeros(100_000)),
    "barrier": lambda transport: transport.barrier(),
}

FAILURES = {"raise": (1, "exit code 1"), "kill": (-9, "SIGKILL"), "exit 0": (0, "exit code 0"),
            "exit 3": (3, "exit code 3"), "abort": (-6, "SIGABRT")}


@pytest.mark.parametrize(("how", "pending"), [
    *((how, "recv") for how in FAILURES), *(("kill", pending) for pending in PENDING if pending != "recv")])
def test_child_that_fails_ends_the_world(how: str, pending: str) -> None:
    """S-LIFE-01, S-LIFE-03: pending and later calls of rank 0 say who failed and how; no child is left."""
    exitcode, words = FAILURES[how]
    pids = []

    async def lead() -> None:
        async with processes.World(4, fail_as_told, (how,)) as transport:
            pids.extend(await pids_of_children(transport))
            for rank in (1, 2, 3):
                await transport.send(rank, b"go on")
            with pytest.raises(PeerFailed, match=f"rank 2 .*{words}") as caught:
                await PENDING[pending](transport)  # type: ignore[misc]
            assert (caught.value.rank, caught.value.exitcode) == (2, exitcode)
            if how == "raise":
                assert "in fail_as_told" in caught.value.traceback
                assert "rank 2 cannot: \u00e9\u4e2d x" in caught.value.traceback
                assert caught.value.traceback.rstrip().endswith("end of text")
            for later in (transport.send(1, b""), transport.recv(), transport.barrier()):
                with pytest.raises(PeerFailed, match="rank 2"):
                    await later

    with pytest.raises(PeerFailed, match="rank 2"):  # nobody who caught it above may hide it
        asyncio.run(lead())
    assert len(pids) == 3
    assert not any(is_alive(pid) for pid in pids)


def test_error_of_the_parent_keeps_its_own_face() -> None:
    """The parent's error is raised, and mentions the failed child once; the children are ended at once."""
    pids = []

    async def lead(how: str) -> None:
        async with processes.World(3, fail_as_told, (how,)) as transport:
            pids.extend(await pids_of_children(transport))
            if how == "kill":
                await transport.send(2, b"go on")
                with pytest.raises(PeerFailed):
                    await transport.recv()
            raise KeyError("the parent's own")

    with pytest.raises(KeyError, match="the parent's own") as caught:
        asyncio.run(lead("nothing"))
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(KeyError, match="the parent's own") as caught:
        asyncio.run(lead("kill"))
    assert caught.value.__notes__ == ["Before that, rank 2 was killed by SIGKILL"]
    assert len(pids) == 4
    assert not any(is_alive(pid) for pid in pids)


async def raise_late(transport: Transport) -> None:
    with pytest.raises(Disconnected):
        await transport.recv(0)
    raise RuntimeError("after rank 0 had left")


async def be_killed_late(transport: Transport) -> None:
    with pytest.raises(Disconnected):
        await transport.recv(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("main", "words"), [(raise_late, "after rank 0 had left"), (be_killed_late, "was killed by SIGKILL")])
def test_failure_after_the_parent_has_left_is_raised_too(main: processes.Main, words: str) -> None:
    with pytest.raises(PeerFailed, match=words):
        asyncio.run(_enter_and_leave(main))


async def _enter_and_leave(main: processes.Main, size: int = 2, grace: float = 10.0) -> None:
    async with processes.World(size, main, grace=grace):
        pass


async def wait_for_ever(transport: Transport) -> None:
    while True:
        try:
            await asyncio.Event().wait()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def wait_for_the_parent(transport: Transport) -> None:
    await transport.recv(0)


async def outlast_a_request_to_end(transport: Transport) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await asyncio.Event().wait()


def test_child_that_waits_for_the_parent_ends_with_it() -> None:
    asyncio.run(_enter_and_leave(wait_for_the_parent, size=3))


@pytest.mark.parametrize("main", [wait_for_ever, outlast_a_request_to_end])
def test_child_that_does_not_finish_is_ended(main: processes.Main, caplog: pytest.LogCaptureFixture) -> None:
    """Politely at first, by SIGKILL in the end; the log says so."""
    asyncio.run(_enter_and_leave(main, grace=0.1))
    assert "ranks 1 did not finish" in caplog.text


async def speak_and_leave(transport: Transport) -> None:
    await transport.send(0, b"x" * 300_000)
    await transport.send(0, b"", np.arange(100))
    await transport.send(0, b"", np.arange(1_000_000))


def test_everything_sent_before_a_child_ends_arrives() -> None:
    """S-LIFE-04: large headers and arrays of processes that have finished are received, later."""
    async def lead() -> None:
        async with processes.World(3, speak_and_leave) as transport:
            for rank in (2, 1):
                assert (await transport.recv(rank)).header == b"x" * 300_000
                for count in (100, 1_000_000):
                    buffer = (await transport.recv(rank)).buffer
                    assert buffer is not None
                    assert (buffer == np.arange(count)).all()
            with pytest.raises(Disconnected, match="all other ranks have left"):
                await transport.recv()

    asyncio.run(lead())


async def receive_without_descriptors(transport: Transport) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        await transport.recv(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_rank_out_of_descriptors_says_so() -> None:
    """A long header, which it has to open, is not lost in silence."""
    async def lead() -> None:
        async with processes.World(2, receive_without_descriptors) as transport:
            await transport.send(1, bytes(100_000))
            async with asyncio.timeout(60):
                await transport.recv()

    with pytest.raises(PeerFailed, match=r"Unavailable: the memory of rank 0 \(100\d\d\d bytes\) cannot be .*ulimit -n"):
        asyncio.run(lead())


@pytest.mark.parametrize("rank", [0, 1], ids=["parent", "child"])
def test_an_array_that_cannot_be_sent_leaves_nothing_behind(rank: int) -> None:
    """Its segment is free again, and asyncio has no error to report that nobody asked for."""
    noise: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context["message"]))
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
        queues = Queues(rank, pipes[rank][0], [writer for _, writer in pipes])
        transport = ProcessTransport(rank, 2, queues, (lambda report: None) if rank == 0 else None)
        pipes[1 - rank][0].close()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_to_nobody(transport))
            if rank == 0:  # waits until it hears how the process ended
                await asyncio.sleep(0)
                assert not sending.done()
                transport.fail(lambda: PeerFailed(1, -signal.SIGKILL))
        assert transport._unacknowledged == {}
        assert transport._pool._lent == {}
        await transport.close()
        queues.close()
        gc.collect()

    asyncio.run(main())
    assert noise == []


async def send_to_nobody(transport: Transport) -> None:
    with pytest.raises(Disconnected, match="was killed by SIGKILL" if transport.rank == 0 else "has ended"):
        await transport.send(1 - transport.rank, b"", np.zeros(100_000))


async def be_cancelled(transport: Transport) -> None:
    if transport.rank:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await transport.barrier()
        with pytest.raises(Disconnected, match="cancelled in a barrier"):
            await transport.recv()
        return
    with pytest.raises(Disconnected):
        await transport.recv(1)
    for call in (transport.barrier(), transport.reduce(np.zeros(2), np.zeros(2)), transport.send(1, b"")):
        with pytest.raises(Disconnected):
            await call


def test_collective_that_a_rank_cancelled_is_not_waited_for() -> None:
    processes.run(be_cancelled, 2)


# What is left behind


def shared_memory() -> list[str]:
    """Names in /dev/shm that Python gives; others come and go with MPI programs."""
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "sem.mp-", "node_comm")))


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def keep_talking(transport: Transport) -> None:
    """200 messages and 200 collectives of varying size; open descriptors and shared memory stay what they were."""
    accumulator = transport.allocate((50_000,), np.dtype("f8"))

    async def one_round(number: int) -> None:
        count = 1_000 * (1 + number % 7)
        peer = (transport.rank + 1) % transport.size
        await asyncio.gather(transport.send(peer, b"", np.zeros(count)), transport.recv())
        await transport.broadcast(np.zeros(count))
        await transport.reduce(accumulator, np.zeros(50_000) if transport.rank == 0 else None)
        temporary = transport.allocate((count,), np.dtype("f4"))  # dropped in every round
        temporary[:] = 0
        await transport.gather(temporary, [np.zeros(count, np.float32)] * transport.size)
        del temporary
        await transport.barrier()

    for number in range(30):
        await one_round(number)
    before, shm = descriptors(), shared_memory()
    for number in range(30, 230):
        await one_round(number)
    await transport.barrier()
    assert descriptors() - before < 10  # some segments wait for the next call; one a round would make 200
    assert shared_memory() == shm
    if transport.rank:  # rank 0 is the process of the tests, which may have imported anything
        for name in ("mpi4py", "torch"):
            assert name not in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_descriptors_and_shared_memory_stay_flat() -> None:
    """S-LIFE-06, S-LIFE-07: a steady state opens nothing, and the world's end closes everything."""
    processes.run(keep_talking, 2)  # warms up what Python itself keeps open
    before, threads = descriptors(), threading.active_count()
    processes.run(keep_talking, 3)
    assert descriptors() == before
    assert threading.active_count() == threads


class Script:
    """A program in a process of its own, run until it ends or is killed."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.path = folder / "script.py"
        self.path.write_text(text)

    async def run(self, signal_at_word: signal.Signals | None = None) -> tuple[int, str, str]:
        """Exit code, stdout, stderr. The signal is sent when the program has printed a line."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(self.path), cwd=self.folder, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
        assert process.stdout is not None
        line = b""
        if signal_at_word is not None:
            line = await process.stdout.readline()
            process.send_signal(signal_at_word)
        out, err = await process.communicate()
        return process.returncode or 0, (line + out).decode(), err.decode()


WAITING = """
import asyncio, os, sys
import numpy as np
from node_comm import processes

async def main(transport):
    array = transport.allocate((100_000,), np.dtype("f8"))
    array[:] = 0
    await transport.reduce(array, array if transport.rank == 0 else None)
    await transport.send(0, str(os.getpid()).encode())
    if transport.rank == 0:
        pids = [(await transport.recv(rank)).header.decode() for rank in range(transport.size)]
        await transport.broadcast(array)
        print(*pids, flush=True)
    else:
        await transport.broadcast(array)
    await transport.recv(0)

if __name__ == "__main__":
    processes.run(main, 5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_outlives_the_parent(tmp_path: Path, number: signal.Signals) -> None:
    """S-LIFE-06: after SIGINT, SIGTERM and SIGKILL of the parent no process, segment or semaphore is left."""
    shm = shared_memory()
    code, out, err = asyncio.run(Script(tmp_path, WAITING).run(number))
    pids = [int(word) for word in out.split()]
    assert len(pids) == 5
    assert code in (-number, 128 + number)
    for _ in range(1_000):
        if not any(is_alive(pid) for pid in pids):
            break
        time.sleep(0.01)
    assert not any(is_alive(pid) for pid in pids)
    assert shared_memory() == shm
    assert "leaked" not in err
    assert "resource_tracker" not in err
    assert err.count("Traceback") <= (2 if number == signal.SIGINT else 0)  # asyncio's own two parts, of rank 0 only


@pytest.mark.parametrize("where", ["main", "nowhere"])
def test_traceback_of_a_child_is_printed_once(tmp_path: Path, where: str) -> None:
    """S-LIFE-01: by the parent, whose exit status is not 0; a run that goes well prints nothing."""
    text = f"""
from node_comm import processes

async def main(transport):
    if transport.rank == 2 and {where == "main"}:
        raise RuntimeError("this is " + "why")
    await transport.barrier()

if __name__ == "__main__":
    processes.run(main, 4)
"""
    code, out, err = asyncio.run(Script(tmp_path, text).run())
    if where == "nowhere":
        assert (code, out, err) == (0, "", "")
    else:
        assert code == 1
        assert err.count("RuntimeError: this is why") == 1
        assert err.count("rank 2 ended too early") == 1
        assert "leaked" not in err


def test_script_without_main_guard(tmp_path: Path) -> None:
    """S-LIFE-05: one message with advice, exit status not 0, no storm of processes."""
    code, _, err = asyncio.run(Script(tmp_path, """
from pathlib import Path
from node_comm import processes

with open(Path(__file__).with_name("imports"), "a") as log:
    log.write("imported\\n")

async def main(transport):
    await transport.barrier()

processes.run(main, 4)
""").run())
    assert code == 1
    assert err.count('if __name__ == "__main__":') == 1
    assert err.count("Traceback") == 1
    assert "script.py starts worker processes as soon as it is imported" in err
    assert len((tmp_path / "imports").read_text().split()) <= 4


def test_what_cannot_be_given_to_a_child() -> None:
    """S-LIFE-05: the error names what was given and says what is allowed; nothing is left running."""
    async def nested(transport: Transport) -> None: ...

    for main, args in ((nested, ()), (lambda transport: None, ()), (wait_for_word, (threading.Lock(),))):
        with pytest.raises(CommError, match=r"rank 1 cannot be started.*top level of a module"):
            asyncio.run(_enter(main, args))
    with pytest.raises(CommError, match="at least one rank"):
        processes.World(0, wait_for_word)


async def _enter(main: processes.Main, args: tuple[object, ...]) -> None:
    async with processes.World(2, main, args):
        raise AssertionError("entered")


async def report_environment(transport: Transport) -> bytes | None:
    if transport.rank == 0:
        return (await transport.recv(1)).header
    handlers = f"{signal.getsignal(signal.SIGINT)!r} {signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())}"
    await transport.send(0, f"{os.environ['OMP_NUM_THREADS']} {launchers.local_rank(os.environ)} {handlers}".encode())
    return None


def test_environment_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables reach the children alone; Ctrl-C, which the terminal sends to all, is left to the parent."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    header = processes.run(report_environment, 2, env={"OMP_NUM_THREADS": "3", "NODE_COMM_TEST": "1"})
    assert header == f"3 0 {signal.Handlers.SIG_IGN!r} False".encode()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "NODE_COMM_TEST" not in os.environ
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


async def add_ranks(transport: Transport, factor: int) -> int:
    out = np.zeros(1, np.int64)
    await transport.reduce(np.array([transport.rank * factor]), out)
    return int(out[0])


def test_run_returns_what_rank_0_returns() -> None:
    assert processes.run(add_ranks, 3, 10) == 30


async def add_up(transport: Transport) -> None:
    """Take part in one reduction after the other; a rank ends as it is told to."""
    while True:
        order = np.zeros(2, np.int64)
        await transport.broadcast(order)
        if order[0] == transport.rank:
            if order[1] > 0:
                raise ValueError("told to raise")
            os.kill(os.getpid(), signal.SIGKILL)
        if order[0] < 0:
            return
        await transport.reduce(np.full(5, transport.rank))


@pytest.mark.parametrize("preload", [(), ("numpy",)], ids=["spawned", "forked"])
def test_a_world_recovers_from_killed_children(preload: tuple[str, ...]) -> None:
    """S-LIFE-03: three times, to worlds of the same size, that leave nothing behind; the old transport stays spent."""
    async def lead() -> None:
        world = processes.World(3, add_up, preload=preload)
        async with world as transport:
            open_files = []
            for rank in (2, 1, 2):
                with pytest.raises(PeerFailed, match=f"rank {rank} was killed by SIGKILL"):
                    await transport.broadcast(np.array([rank, 0]))
                    await transport.barrier()
                old, transport = transport, await transport.recover()
                assert (transport.rank, transport.size, transport.lost) == (0, 3, (rank,))
                with pytest.raises(Disconnected):
                    await old.barrier()
                out = np.zeros(5, np.int64)
                await transport.broadcast(np.array([0, 0]))
                await transport.reduce(np.zeros(5, np.int64), out)
                assert (out == 3).all()
                open_files.append(len(os.listdir("/proc/self/fd")))
            assert open_files[2] == open_files[1] == open_files[0]
            await transport.broadcast(np.array([-1, 0]))

    asyncio.run(lead())


async def notice_a_loss(transport: Transport, in_a_group: bool) -> None:
    """Rank 1 is killed; rank 2 notices it by itself, and raises."""
    await wait_for_word(transport)
    if transport.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

    async def talk() -> None:
        while True:
            await transport.send(1, b"")
            await asyncio.sleep(0)

    if in_a_group:
        async with asyncio.TaskGroup() as group:
            group.create_task(talk())
    await talk()


@pytest.mark.parametrize("in_a_group", [False, True])
def test_a_child_that_noticed_the_loss_of_another_is_not_to_blame(in_a_group: bool) -> None:
    """S-LIFE-03: rank 0, which is busy, hears of it first; the world recovers all the same."""
    async def lead() -> None:
        async with processes.World(3, notice_a_loss, (in_a_group,)) as transport:
            pids = await pids_of_children(transport)
            for rank in (2, 1):
                await transport.send(rank, b"go on")
            os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)  # and nothing is read meanwhile
            with pytest.raises(PeerFailed, match="rank 1 was killed by SIGKILL"):
                await transport.recv()
            transport = await transport.recover()
            assert transport.lost == (1,)

    asyncio.run(lead())


async def find_itself_cut_off(transport: Transport, how: str) -> None:
    """Raise Disconnected although all others are there; it may have left before, or not end then."""
    await wait_for_word(transport)
    if how == "leaves":
        await transport.close()
    if how == "stays":
        threading.Thread(target=threading.Event().wait).start()
    raise Disconnected("a matter of its own")


@pytest.mark.parametrize("how", ["ends", "leaves", "stays"])
def test_a_child_that_is_cut_off_by_itself_is_to_blame(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_KILL_AFTER", 0.5)

    async def lead() -> None:
        async with processes.World(3, find_itself_cut_off, (how,)) as transport:
            await pids_of_children(transport)
            await transport.send(2, b"go on")
            async with asyncio.timeout(60):
                with pytest.raises(PeerFailed, match="a matter of its own") as caught:
                    await transport.recv()
            assert (caught.value.rank, caught.value.exitcode) == (2, 1)
            with pytest.raises(PeerFailed, match="a matter of its own"):
                await transport.recover()

    with pytest.raises(PeerFailed, match="a matter of its own"):
        asyncio.run(lead())


def test_a_child_that_raised_would_do_so_again() -> None:
    async def lead() -> None:
        async with processes.World(2, add_up) as transport:
            with pytest.raises(PeerFailed, match="told to raise"):
                await transport.broadcast(np.array([1, 1]))
                await transport.barrier()
            with pytest.raises(PeerFailed, match="told to raise"):
                await transport.recover()

    with pytest.raises(PeerFailed):
        asyncio.run(lead())


def test_only_rank_0_of_processes_recovers() -> None:
    async def lead() -> None:
        async with processes.World(1, add_up) as transport:
            assert not transport.recoverable
            with pytest.raises(Disconnected, match="does not outlive"):
                await transport.recover()

    asyncio.run(lead())
