"""Shared memory without names, and the queues beside it."""

from __future__ import annotations

import asyncio
import errno
import gc
import mmap
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from node_comm.arrays import describe
from node_comm.errors import CommError, Disconnected, Unavailable
from node_comm.queues import MAX_FRAME, Queues
from node_comm.segments import NAMELESS, Mappings, Place, Segment, SegmentPool, offsets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")


@pytest.mark.parametrize("nameless", [NAMELESS, False])
def test_segment_is_seen_by_others_until_it_is_closed(nameless: bool) -> None:
    segment = Segment(0, 1, 1_000, nameless)
    segment.memory[:5] = b"hello"
    assert segment.location(0).read(5) == b"hello"
    assert segment.location(1).read(4) == b"ello"
    with segment.location(0).map() as seen:
        seen[0] = ord("j")
        assert segment.memory[:5] == b"jello"
        segment.close()
        segment.close()
        assert seen[:5] == b"jello"  # what is mapped stays valid
    assert not Path(segment.path).exists()
    with pytest.raises(Disconnected, match="rank 0 is gone"):
        segment.location(0).map()


def test_location_that_means_another_file_by_now() -> None:
    """A descriptor's number may be used again; the size tells."""
    segment = Segment(3, 1, 1_000)
    location = segment.location(0)
    segment.close()
    other = Segment(3, 2, 5_000)
    assert other.path == location.path
    with pytest.raises(Disconnected, match="rank 3 is gone"):
        location.map()
    other.close()
    with socket.socket() as own:
        assert f"/proc/{os.getpid()}/fd/{own.fileno()}" == location.path
        with pytest.raises(Disconnected, match="rank 3 is gone"):
            location.map()


@pytest.mark.parametrize("nameless", [NAMELESS, False])
def test_memory_that_the_system_refuses(nameless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it."""
    def refuse(descriptor: int, nbytes: int) -> mmap.mmap:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("node_comm.segments.mmap.mmap", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Unavailable, match=r"rank 3 gets no shared memory of 4096 bytes: .*Cannot allocate memory.*ulimit"):
        Segment(3, 1, 4096, nameless)
    assert os.listdir("/proc/self/fd") == before


UNREAPED = """
import ctypes, os, signal
import msgspec
from node_comm.errors import CommError
from node_comm.segments import Location, Segment

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
prctl = ctypes.CDLL(None).prctl
if os.geteuid() == 0:  # who may open everything
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    prctl(PR_SET_DUMPABLE, 1)  # as an ordinary user's processes are
told, tell = os.pipe()

def start(dumpable):
    child = os.fork()
    if child == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, dumpable)
        segment = Segment(1, 1, 4096)
        os.write(tell, msgspec.msgpack.encode(segment.location(0)))
        signal.pause()
    return child, msgspec.msgpack.decode(os.read(told, 4096), type=Location)

def report(location):
    try:
        location.map()
        print("mapped")
    except CommError as error:
        print(type(error).__name__, error)

guarded, location = start(0)
report(location)
os.kill(guarded, signal.SIGKILL)
child, location = start(1)
report(location)
os.kill(child, signal.SIGKILL)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
report(location)
os.waitpid(child, 0)
report(location)
"""


def test_memory_of_a_process_that_is_not_reaped_yet_is_gone() -> None:
    """Until then what it had open is root's; one that lives, but may not be looked into, is told from it."""
    lines = subprocess.run([sys.executable, "-c", UNREAPED], check=True, text=True, stdout=subprocess.PIPE,
                           cwd=Path(__file__).parents[2]).stdout.splitlines()
    gone = "Disconnected the memory of rank 1 is gone: its process has ended or left"
    assert lines[0].startswith("Unavailable ")
    assert "must run as one user" in lines[0]
    assert lines[1:] == ["mapped", gone, gone]


def test_pool_uses_segments_again_and_keeps_few() -> None:
    retired: list[int] = []
    pool = SegmentPool(0, 2, lambda segment: retired.append(segment.number))
    first = pool.lend(5_000)
    assert first.nbytes == 8_192
    pool.give_back(first)
    assert pool.lend(8_192) is first
    others = [pool.lend(nbytes) for nbytes in (0, 1, 100_000)]
    assert len({first.number, *(segment.number for segment in others)}) == 4
    for segment in (first, *others):
        pool.give_back(segment)
    assert retired == [first.number, others[0].number]  # those unused longest
    before = len(os.listdir("/proc/self/fd"))
    pool.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before - 2


def test_allocated_array_lives_as_long_as_a_view() -> None:
    retired: list[int] = []
    pool = SegmentPool(0, 2, lambda segment: retired.append(segment.number))
    array = pool.allocate((4, 5), np.dtype("f8"))
    part = array[2:, 1:]
    place = pool.find(array[2:])
    assert place is not None
    assert place[1] == 80
    assert pool.find(part) is None  # not C-ordered
    assert pool.find(np.zeros(3)) is None
    del array, place
    pool.find(np.zeros(1))
    assert retired == []
    part[:] = 3
    del part
    pool.find(np.zeros(1))
    assert retired == [1]


def test_mappings_are_kept_until_forgotten() -> None:
    pool, mappings = SegmentPool(5, 2, lambda segment: None), Mappings()
    array = np.arange(10)
    segment = pool.lend(array.nbytes)
    pool.view(segment.location(0), describe(array))[:] = array
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert mappings.view(segment.location(0), describe(array)).tolist() == array.tolist()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    mappings.forget(5, segment.number)
    assert len(os.listdir("/proc/self/fd")) == before
    pool.close()


def test_a_place_says_which_segments_there_still_are() -> None:
    """So that nobody keeps memory mapped that its owner has let go of, where no message says so."""
    pool, mappings = SegmentPool(5, 2, lambda segment: None), Mappings()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        array = pool.allocate((10,), np.dtype(np.int64))
        array[:] = number
        found = pool.find(array)
        assert found is not None
        place = Place(found[0].location(found[1]), describe(array), pool.numbers).encode()
        seen = mappings.read(Place.decode(place))
        assert seen.tolist() == [number] * 10
        del array
        assert seen.tolist() == [number] * 10  # for as long as somebody has it
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the last segment's own, and the mapping of it
    pool.close()
    mappings.close()
    with pytest.raises(CommError, match="no place"):
        Place.decode(b"nonsense")


def test_offsets_are_aligned() -> None:
    assert offsets([1, 0, 64, 65, 8]) == ([0, 64, 64, 128, 256], 320)


def test_frames_of_many_writers_arrive_whole() -> None:
    """No lock guards the queue; frames up to the limit do not mix, longer ones take the way round, in order."""
    lengths = [0, 1, 100, MAX_FRAME - 1, MAX_FRAME]

    async def write(letter: int, writer: Connection) -> None:
        own = multiprocessing.Pipe(duplex=False)
        queues = Queues(1, own[0], [writer, own[1]])
        for number in range(200):
            queues.put(0, bytes([letter]) * lengths[number % 5])
        queues.close()

    async def main() -> None:
        inbox, outbox = queues_of_two_ranks()
        seen: list[bytes] = []
        inbox.start(seen.append, pytest.fail)
        outbox.start(seen.append, pytest.fail)
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, write(letter, another_writer(outbox)))
                               for letter in range(65, 70)))
        while len(seen) < 1_000:
            await asyncio.sleep(0.001)
        for letter in range(65, 70):
            assert sorted(len(frame) for frame in seen if frame[:1] == bytes([letter])) == sorted(
                length for length in lengths for _ in range(40) if length)
        assert all(len(set(frame)) <= 1 for frame in seen)
        seen.clear()
        long = [os.urandom(MAX_FRAME + extra) for extra in (1, 2, 70_000, 1_000_000)]
        for frame in long:
            outbox.put(0, frame)
            outbox.put(0, b"after")
        await outbox.drain()
        while len(seen) < 8:
            await asyncio.sleep(0.001)
        assert seen == [frame for one in long for frame in (one, b"after")]
        inbox.close()
        for frame in (b"nobody reads this", long[-1]):
            with pytest.raises(Disconnected, match="rank 0 has ended"):
                outbox.put(0, frame)
        await outbox.drain()
        outbox.close()

    asyncio.run(main())


def test_a_long_frame_that_cannot_be_mapped_is_told_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader hears why, and its writer does not wait for ever."""
    def refuse(descriptor: int, nbytes: int) -> mmap.mmap:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async def main() -> None:
        inbox, outbox = queues_of_two_ranks()
        failure: asyncio.Future[CommError] = asyncio.get_running_loop().create_future()
        outbox.start(pytest.fail, pytest.fail)
        outbox.put(0, bytes(MAX_FRAME + 1))
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr("node_comm.segments.mmap.mmap", refuse)
            inbox.start(pytest.fail, failure.set_result)
            async with asyncio.timeout(20):
                error = await failure
                await outbox.drain()
        assert isinstance(error, Unavailable)
        assert "the memory of rank 1 (4092 bytes) cannot be mapped: [Errno 12]" in str(error)
        assert "ulimit" in str(error)
        assert len(os.listdir("/proc/self/fd")) == before - 2  # the segment, and its mapping
        inbox.close()
        outbox.close()

    asyncio.run(main())


def test_a_full_pipe_holds_nobody_up() -> None:
    """Nobody reads while they are put; they arrive all the same, in order, long ones among them."""
    frames = [bytes([number % 256]) * (MAX_FRAME + 1 if number % 50 == 49 else 1_000) for number in range(500)]

    async def main() -> None:
        inbox, outbox = queues_of_two_ranks()
        seen: list[bytes] = []
        for frame in frames:
            outbox.put(0, frame)
        inbox.start(seen.append, pytest.fail)
        outbox.start(seen.append, pytest.fail)
        await outbox.drain()
        while len(seen) < 500:
            await asyncio.sleep(0.001)
        assert seen == frames
        inbox.close()
        outbox.close()

    asyncio.run(main())


def test_two_who_close_with_frames_for_each_other_do_not_wait() -> None:
    both_are_full = threading.Barrier(2)

    async def put_and_close(queues: Queues, dest: int) -> None:
        for _ in range(500):
            queues.put(dest, bytes(1_000))
        both_are_full.wait()
        queues.close()

    threads = [threading.Thread(target=asyncio.run, args=(put_and_close(queues, 1 - rank),), daemon=True)
               for rank, queues in enumerate(queues_of_two_ranks())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_frames_kept_for_a_rank_that_ends_are_dropped() -> None:
    async def main() -> None:
        inbox, outbox = queues_of_two_ranks()
        outbox.start(pytest.fail, pytest.fail)
        for _ in range(500):
            outbox.put(0, bytes(1_000))
        inbox.close()
        outbox.close()

    asyncio.run(main())


def another_writer(queues: Queues) -> Connection:
    """A further descriptor of rank 0's inbox."""
    return Connection(os.dup(queues._writers[0].fileno()), readable=False)


def queues_of_two_ranks() -> tuple[Queues, Queues]:
    """Both ends in this process, each with descriptors of its own."""
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    ends = [Queues(rank, pipes[rank][0], [Connection(os.dup(writer.fileno()), readable=False) for _, writer in pipes])
            for rank in range(2)]
    for _, writer in pipes:
        writer.close()
    return ends[0], ends[1]
