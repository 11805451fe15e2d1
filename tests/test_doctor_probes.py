"""What is found out of a host, a folder, a library and a world: on this machine, and on made-up ones."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from federation.config import load_config_from_dict
from federation.doctor.facts import ClockFacts, RankFacts, RunFacts
from federation.doctor.probes import folder, host, library, world
from federation.doctor.probes.rank import planned_workers, rank_facts
from federation.doctor.probes.run import Assembled, describe, put_together
from node_comm import memory

MB = 1 << 20


# the host


def test_this_host() -> None:
    assert host.cores() == sorted(os.sched_getaffinity(0))
    held = host.resident()
    ballast = np.frombuffer(mmap.mmap(-1, 50 * MB), np.uint8)  # not from the heap, which may hold as much that nobody uses
    ballast[:] = 1
    after = host.resident()
    assert held is not None
    assert after is not None
    assert 40 * MB < after - held < 60 * MB + ballast.size // 10
    found = host.room(Path("/"))
    assert found is not None
    assert 0 <= found.left <= found.size
    assert host.room(Path("/nowhere")) is None


def test_the_processors_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    assert host.processor(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    (tmp_path / "cpuinfo").write_text("CPU implementer\t: 0x41\n")
    assert host.processor(tmp_path / "cpuinfo") == os.uname().machine


def system(folder: Path, membership: str, groups: dict[str, dict[str, str]]) -> int | None:
    """`memory_left` of a made-up system with 1000 kB available."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal:  5000 kB\nMemAvailable:  1000 kB\n")
    (folder / "proc/self/cgroup").write_text(membership)
    for path, files in groups.items():
        (folder / "cgroup" / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / "cgroup" / path / name).write_text(text)
    return host.memory_left(folder / "proc", folder / "cgroup")


def group2(limit: str, used: int, cache: int = 0) -> dict[str, str]:
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": f"anon 5\ninactive_file {cache}\n"}


def group1(limit: int, used: int, cache: int = 0) -> dict[str, str]:
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n",
            "memory.stat": f"inactive_file 0\ntotal_inactive_file {cache}\n"}


@pytest.mark.parametrize(("membership", "groups", "left"), [
    ("", {}, 1000 * 1024),
    ("0::/\n", {"": group2("max", 10)}, 1000 * 1024),
    ("0::/\n", {"": group2("600000", 200000, 50000)}, 450000),  # a container, which sees its own group as the top
    ("0::/job/step\n", {"job": group2("500000", 100000), "job/step": group2("max", 90000)}, 400000),  # the parent's counts
    ("0::/job/step\n", {"job": group2("900000", 1), "job/step": group2("300000", 299999)}, 1),
    ("0::/job\n", {"job": group2("300000", 300100)}, 0),
    ("0::/of/the/host\n", {"": group2("250000", 0)}, 250000),  # a path that is not visible in the container
    ("4:memory:/slurm\n0::/\n", {"memory/slurm": group1(700000, 300000, 100000)}, 500000),
    ("5:cpu,cpuacct:/x\n4:memory:/x\n", {"memory": group1(2**63 - 4096, 5), "memory/x": group1(2**63 - 4096, 5)}, 1000 * 1024),
    ("4:memory:/x\n", {"memory/x": {"memory.limit_in_bytes": "many"}}, 1000 * 1024),
])
def test_memory_within_control_groups(tmp_path: Path, membership: str, groups: dict[str, dict[str, str]], left: int) -> None:
    assert system(tmp_path, membership, groups) == left


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert host.memory_left(tmp_path, tmp_path) is None
    assert host.resident(tmp_path / "status") is None


def test_gpus_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert host.gpus() is None


# the folder


def test_a_folder_that_can_be_written(tmp_path: Path) -> None:
    with folder.trial_file(tmp_path) as (trial, reason):
        facts = folder.try_folder(tmp_path, trial, reason)
        assert trial.stat().st_size == folder.TRIAL
    assert (facts.problem, facts.flock, facts.hdf5) == ("", "", "")
    assert facts.size is not None
    assert list(tmp_path.iterdir()) == []


def test_the_folder_above_one_that_is_not_there(tmp_path: Path) -> None:
    assert folder.existing(tmp_path / "a/b/c") == tmp_path
    assert not (tmp_path / "a").exists()


def test_the_folder_above_one_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the one to report: what lies in it cannot even be asked for."""
    def refuse(path: Path, **options: bool) -> os.stat_result:
        if tmp_path in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert folder.existing(tmp_path / "a/b") == tmp_path


@pytest.mark.parametrize("where", ["file", "/proc"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    path = Path(where)
    if where == "file":
        path = tmp_path / where
        path.touch()
    with folder.trial_file(path) as (trial, reason):
        facts = folder.try_folder(path, trial, reason)
    assert facts.problem
    assert facts.flock == ""


def test_a_quota_that_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file can be made, and its content cannot be written: said, and no file is left."""
    def write(descriptor: int, content: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with folder.trial_file(tmp_path) as (trial, reason):
            facts = folder.try_folder(tmp_path, trial, reason)
    assert "quota" in facts.problem.lower()
    assert list(tmp_path.iterdir()) == []


def test_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trial").touch()
    assert folder.try_flock(tmp_path / "trial") == ""
    with folder.locked(tmp_path / "trial"):
        assert folder.visit(tmp_path / "trial") == "locked out"
    assert folder.visit(tmp_path / "trial") == "gets the lock"
    assert folder.visit(tmp_path / "elsewhere") == "does not see it"
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert folder.try_flock(tmp_path / "trial") == "two at once get an exclusive lock"

    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    assert folder.try_flock(tmp_path / "trial") == os.strerror(errno.ENOLCK)
    with folder.locked(tmp_path / "trial"):
        pass


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    """The longest mount point wins, the last of equals; a space is written as \\040."""
    mounts = tmp_path / "mounts"
    mounts.write_text("x / ext4 rw 0 0\nx /a nfs4 rw 0 0\nx /a lustre rw 0 0\nx /ab xfs rw 0 0\nx /a\\040b tmpfs rw 0 0\n")
    kinds = {path: folder.file_system(Path(path), mounts) for path in ("/", "/a/c", "/a", "/abc", "/ab/c", "/a b/c")}
    assert kinds == {"/": "ext4", "/a/c": "lustre", "/a": "lustre", "/abc": "ext4", "/ab/c": "xfs", "/a b/c": "tmpfs"}
    assert folder.file_system(Path("/"), tmp_path / "none") == ""


# the library


def test_the_library_is_asked_in_another_process() -> None:
    pytest.importorskip("mpi4py")
    code = "import sys; from federation.doctor.probes.library import unstarted_mpi; facts = unstarted_mpi({}); " \
           "print(facts.library); print('mpi4py.MPI' in sys.modules, facts.thread_level)"
    first, *_, last = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "MPI" in first
    assert last == "False None"


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_ASK", "raise RuntimeError('cannot load MPI library')")
    assert "cannot load MPI library" in library.unstarted_mpi({}).refusal
    monkeypatch.setattr(library, "_ASK", "import os; os.abort()")
    assert "exit status -6" in library.unstarted_mpi({}).refusal
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "mpi4py is not installed" in library.unstarted_mpi({}).refusal


# the run


def test_the_size_of_the_model_is_known_from_the_data() -> None:
    config = load_config_from_dict({"components": {"model": "model.numpy.linear"}, "num_clients": 4,
                                    "trainer_config": {"fraction": 0.5}})
    assembled = put_together(config)
    assert assembled.problem == ""
    assert assembled.model is not None
    assert 4 * (64 * 10 + 10) <= assembled.model < 4 * (64 * 10 + 10) + 128  # digits: 64 pixels, 10 labels; padded
    assert assembled.setup["configuration"] == config.digest()
    assert describe(config, "mpi", True) == RunFacts(mode="mpi", cohort=2)
    facts = rank_facts(0, 3, config, assembled, 1, {"OMPI_COMM_WORLD_LOCAL_RANK": "2"})
    assert (facts.trains, facts.local_rank, facts.model) == (False, 2, assembled.model)


def test_what_cannot_be_put_together_is_a_fact(tmp_path: Path) -> None:
    config = load_config_from_dict({"data": {"dataset": str(tmp_path / "none.npz")}})
    assert "none.npz" in put_together(config).problem


def test_any_error_of_a_component_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank waits for the facts of this one, whatever a user's code raises."""
    def fail(config: object) -> None:
        raise ZeroDivisionError("in a plugin")

    monkeypatch.setattr("federation.doctor.probes.run.assemble", fail)
    assert put_together(load_config_from_dict({})).problem == "ZeroDivisionError: in a plugin"


def test_workers_of_mode_parallel() -> None:
    config = load_config_from_dict({"mode": "parallel"})
    first = rank_facts(0, 1, config, Assembled(None, "", {}), 1, {})
    ranks = planned_workers(first, 3, config)
    assert [(rank.rank, rank.trains, rank.started) for rank in ranks] == [
        (0, False, True), (1, True, False), (2, True, False), (3, True, False)]


# the world, in one process


def facts(number: int, name: str) -> RankFacts:
    return RankFacts(rank=number, host=name, cores=[number], usable_cores=1, host_cores=9, problem="ä" * number)


def test_gathering_and_sharing() -> None:
    async def main() -> None:
        transports = memory.world(3)
        gathered = await asyncio.gather(*(world.gather(each, facts(each.rank, "h")) for each in transports))
        assert gathered == [[facts(0, "h"), facts(1, "h"), facts(2, "h")], [], []]
        assert await asyncio.gather(*(world.share(each, 7 + each.rank) for each in transports)) == [7, 7, 7]
        texts = await asyncio.gather(*(world.share_text(each, "" if each.rank else "ö/x") for each in transports))
        assert texts == ["ö/x"] * 3

    asyncio.run(main())


def test_a_clock_that_is_ahead() -> None:
    """Ranks 0 and 1 on host a, 2 and 3 on b, whose clock is 40 s ahead: one comparison, with b's first rank."""
    asked: list[int] = []

    class Elsewhere:
        """`send` of rank 2, whose clock is another."""

        def __init__(self, transport: memory.MemoryTransport) -> None:
            self._transport = transport
            self.rank, self.size = transport.rank, transport.size

        async def send(self, dest: int, header: bytes, buffer: np.ndarray | None = None) -> None:
            asked.append(self.rank)
            assert buffer is not None
            await self._transport.send(dest, header, buffer + 40.0)

        async def recv(self, source: int) -> object:
            return await self._transport.recv(source)

    async def main() -> list[list[ClockFacts]]:
        transports = memory.world(4)
        ranks = [facts(0, "a"), facts(1, "a"), facts(2, "b"), facts(3, "b")]
        seen = [Elsewhere(each) if each.rank >= 2 else each for each in transports]
        return await asyncio.gather(*(world.compare_clocks(each, ranks if each.rank == 0 else []) for each in seen))  # type: ignore[arg-type]

    (clock,), *others = asyncio.run(main())
    assert others == [[], [], []]
    assert clock.host == "b"
    assert set(asked) == {2}
    assert abs(clock.ahead - 40) <= clock.uncertainty + 0.001


def test_visiting_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(path: Path | None) -> list[tuple[list[int], list[int]]]:
        return await asyncio.gather(*(world.visit_lock(each, path if each.rank == 0 else None) for each in memory.world(3)))

    (tmp_path / "trial").touch()
    assert asyncio.run(main(tmp_path / "trial")) == [([], [])] * 3
    assert asyncio.run(main(None)) == [([], [])] * 3
    answers = iter(["does not see it", "gets the lock"])  # ranks 1 and 2, which are asked in this order here
    monkeypatch.setattr(world, "visit", lambda path: next(answers))
    assert asyncio.run(main(tmp_path / "trial"))[0] == ([1], [2])


def test_measuring_collectives() -> None:
    async def main() -> list[list[world.SpeedFacts]]:
        return await asyncio.gather(*(world.measure(each, 1 << 16, 0.01) for each in memory.world(2)))

    for found in asyncio.run(main()):
        assert [(speed.operation, speed.nbytes) for speed in found] == [("broadcast", 1 << 16), ("reduce", 1 << 16)]
        assert all(speed.seconds > 0 for speed in found)


def test_waiting_for_ever_ends(tmp_path: Path) -> None:
    """S-LIFE-08: a process that hangs in a call outside of Python is ended, and says where it was."""
    program = """
        import ctypes
        from federation.doctor.examination import within
        with within(30.0):
            pass
        def stuck_in_a_collective():
            ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock
        with within(0.3):
            stuck_in_a_collective()
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "stuck_in_a_collective" in ended.stderr
