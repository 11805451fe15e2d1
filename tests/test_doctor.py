"""From facts to findings: made-up worlds, one for each thing that can be wrong, and one where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from federation.doctor.checks import CHECKS, examine
from federation.doctor.checks.threads import check_threads
from federation.doctor.facts import (
    ClockFacts,
    FolderFacts,
    MPIFacts,
    RankFacts,
    RunFacts,
    SpeedFacts,
    WorldFacts,
    numbers,
    ranks_of,
    size_of,
)
from federation.doctor.finding import Finding, exit_status
from federation.doctor.report import as_json, as_lines

GB = 10**9


def rank(number: int = 0, **facts: Any) -> RankFacts:
    """One of the ranks of a healthy host `a` of 64 cores, bound to two cores of its own."""
    return RankFacts(**({
        "rank": number, "host": "a", "local_rank": number, "trains": number > 0, "cores": [2 * number, 2 * number + 1],
        "usable_cores": 2, "host_cores": 64, "processor": "P", "gpus": 0, "resident": GB // 4, "memory_left": 64 * GB,
        "shared_memory": 32 * GB, "shared_memory_left": 32 * GB, "setup": {"configuration": "0a", "numpy": "2.4.0"},
        "kernels": "avx2", "model": 100_000_000} | facts))


def world(count: int = 4, each: Callable[[int], dict[str, Any]] = lambda number: {}, **facts: Any) -> WorldFacts:
    """A healthy world of `count` ranks, of which `each` says what is special."""
    return WorldFacts(**({
        "ranks": [rank(number, **each(number)) for number in range(count)], "run": RunFacts(mode="mpi"),
        "mpi": MPIFacts(library="Open MPI v5.0.11, package: x", launched=count, thread_level="multiple", offers_ulfm=True),
        "folder": FolderFacts(path="/scratch/run", file_system="lustre", size=900 * GB, left=500 * GB, files_left=10**6),
        "speeds": [SpeedFacts(operation="broadcast", nbytes=GB // 10, seconds=0.01),
                   SpeedFacts(operation="reduce", nbytes=GB // 10, seconds=0.02)]} | facts))


def bad(facts: WorldFacts) -> list[Finding]:
    """All but the findings that are fine; each says what to do."""
    found = [finding for finding in examine(facts) if finding.level != "ok"]
    assert all(finding.remedy for finding in found)
    return found


def only(facts: WorldFacts, subject: str, level: str, *words: str) -> None:
    """The one thing that is found amiss."""
    found = bad(facts)
    assert [(finding.subject, finding.level) for finding in found] == [(subject, level)], found
    for word in words:
        assert word in found[0].message + found[0].remedy
    assert exit_status(examine(facts)) == (level == "problem")


def test_nothing_is_wrong_with_a_healthy_world() -> None:
    facts = world()
    assert bad(facts) == []
    assert exit_status(examine(facts)) == 0
    subjects = [finding.subject for finding in examine(facts)]
    for subject in ("MPI", "lost ranks", "placement", "threads", "GPUs", "configuration", "versions", "processors", "kernels",
                    "memory", "/dev/shm", "output folder", "file locks", "disk space", "broadcast", "reduce"):
        assert subject in subjects


def test_facts_survive_the_way_to_rank_0() -> None:
    facts = world(3, mpi=MPIFacts(), clocks=[ClockFacts(host="b", ahead=-0.1, uncertainty=1e-4)])
    assert msgspec.json.decode(msgspec.json.encode(facts), type=WorldFacts) == facts


# threads and cores


def test_eight_ranks_on_two_cores() -> None:
    """S-HPC-06: more compute threads than cores is a warning that names host, threads and cores."""
    facts = world(8, lambda n: {"cores": [0, 1], "host_cores": 2, "trains": True})
    only(facts, "threads", "warning", "a:", "8 compute threads of ranks 0-7", "2 cores (0-1)")


def test_a_rank_that_only_serves_needs_no_core() -> None:
    """`mpirun -n 9` on 8 cores: rank 0 sleeps while eight train."""
    shared = {"cores": list(range(8)), "usable_cores": 8, "host_cores": 8}
    assert bad(world(9, lambda n: shared)) == []
    only(world(10, lambda n: shared), "threads", "warning", "9 compute threads", "8 cores")


def test_two_ranks_bound_to_one_core_beside_idle_ones() -> None:
    facts = world(4, lambda n: {"cores": {1: [0], 2: [0], 3: [1, 2, 3]}.get(n, [7])})
    only(facts, "threads", "warning", "2 compute threads of ranks 1-2 share 1 cores (0)")


def test_more_threads_than_the_rank_is_bound_to() -> None:
    only(world(4, lambda n: {"threads": 3 if n == 2 else 1}), "threads", "warning", "3 compute threads of rank 2 share 2 cores")


def test_a_quota_limits_all_ranks_of_a_container_together() -> None:
    facts = world(4, lambda n: {"cores": list(range(64)), "usable_cores": 2})
    only(facts, "threads", "warning", "3 compute threads", "2 cores", "quota")


@pytest.mark.parametrize("seed", range(30))
def test_threads_against_brute_force(seed: int) -> None:
    """A warning if and only if some set of ranks has more threads than the union of their cores, for nested bindings."""
    import itertools
    import random

    draw = random.Random(seed)
    blocks = [[0], [1], [0, 1], [2, 3], [0, 1, 2, 3]]
    ranks = [rank(n, trains=True, cores=draw.choice(blocks), usable_cores=4, threads=draw.choice([1, 1, 2]))
             for n in range(draw.randint(1, 4))]
    ranks = [msgspec.structs.replace(each, usable_cores=len(each.cores)) for each in ranks]
    crowded = any(sum(each.threads for each in some) > len({core for each in some for core in each.cores})
                  for size in range(1, len(ranks) + 1) for some in itertools.combinations(ranks, size))
    found = [finding.level for finding in check_threads(WorldFacts(ranks=ranks))]
    assert found == (["warning"] if crowded else ["ok"])


def test_unevenly_spread_ranks() -> None:
    facts = world(6, lambda n: {"host": "b" if n == 5 else "a"})
    only(facts, "placement", "warning", "a has 5 ranks and b has 1")


def test_many_hosts_take_few_lines() -> None:
    facts = world(200, lambda n: {"host": f"h{n // 2}", "cores": [n % 2], "usable_cores": 1})
    assert sum(finding.subject == "placement" for finding in examine(facts)) <= 10


# MPI


def test_many_worlds_of_one() -> None:
    """S-HPC-01: srun without a matching PMI is a problem, in the words of the refusal."""
    facts = world(1, mpi=MPIFacts(refusal="srun started 4 or more processes, but ...", launched=4))
    only(facts, "MPI", "problem", "srun started 4")


def test_without_mpi4py_other_modes_work() -> None:
    """S-PKG-01: missing mpi4py is said, and is a problem only where MPI is asked for."""
    missing = MPIFacts(refusal="mpi4py is not installed")
    serial = world(1, lambda n: {"trains": True}, mpi=missing, run=RunFacts())
    assert bad(serial) == []
    assert "mpi4py is not installed" in examine(serial)[0].message
    only(world(1, mpi=missing), "MPI", "problem", "mpi4py is not installed", "mode mpi cannot run")


@pytest.mark.parametrize(("offers", "wants", "level"), [(True, True, "ok"), (True, False, "ok"), (False, False, "ok"),
                                                        (False, True, "warning")])
def test_lost_ranks(offers: bool, wants: bool, level: str) -> None:
    facts = world(mpi=MPIFacts(library="X", thread_level="multiple", launched=4, offers_ulfm=offers, wants_ulfm=wants))
    assert [finding.level for finding in examine(facts) if finding.subject == "lost ranks"] == [level]


# what must agree


def test_numpy_differs_on_one_rank() -> None:
    facts = world(4, lambda n: {"setup": {"configuration": "0a", "numpy": "1.26.4" if n == 3 else "2.4.0"}})
    only(facts, "versions", "problem", "numpy", "2.4.0 on ranks 0-2", "1.26.4 on rank 3")


def test_torch_is_missing_on_one_host() -> None:
    facts = world(3, lambda n: {"setup": {"numpy": "2"} if n == 1 else {"numpy": "2", "torch": "2.9"}})
    only(facts, "versions", "problem", "torch", "not installed on rank 1")


def test_two_configurations() -> None:
    only(world(2, lambda n: {"setup": {"configuration": f"{n}"}}), "versions", "problem", "configuration", "same file")


def test_two_kinds_of_processor() -> None:
    facts = world(4, lambda n: {"processor": "Q" if n > 1 else "P", "kernels": "avx512" if n > 1 else "avx2"})
    only(facts, "processors", "warning", "P on ranks 0-1", "Q on ranks 2-3")


def test_clocks_forty_seconds_apart() -> None:
    clocks = [ClockFacts(host="b", ahead=40.2, uncertainty=0.001), ClockFacts(host="c", ahead=-0.01, uncertainty=0.001)]
    only(world(clocks=clocks), "clocks", "warning", "b", "40.2 s ahead", "rank 0's on a")


def test_a_clock_that_is_not_known_well_is_not_blamed() -> None:
    assert bad(world(clocks=[ClockFacts(host="b", ahead=3.0, uncertainty=2.5)])) == []


# memory


def test_a_docker_containers_shared_memory() -> None:
    """64 MB of /dev/shm: enough for three ranks of Open MPI with 16 MiB each, not for five."""
    small = {"shared_memory": 64 << 20, "shared_memory_left": 60 << 20}
    assert bad(world(3, lambda n: small)) == []
    only(world(5, lambda n: small), "/dev/shm", "warning", "62.9 MB of 67.1 MB", "--shm-size")
    only(world(5, lambda n: small | {"shared_memory_left": 0}), "/dev/shm", "warning", "0 B")


def test_shared_memory_matters_to_mpi_alone() -> None:
    small = {"shared_memory": 64 << 20, "shared_memory_left": 1 << 20}
    assert bad(world(5, lambda n: small, run=RunFacts(mode="parallel"))) == []
    assert bad(world(4, lambda n: small | {"host": f"{n}", "local_rank": 0})) == []  # one a host: nobody to share with


def test_a_model_that_does_not_fit() -> None:
    """12 models for rank 0 and 6 for each that trains: with 3 such ranks, 30 models of 1 GB."""
    def held(left: float) -> WorldFacts:
        return world(4, lambda n: {"model": GB, "memory_left": int(left * GB)})

    only(held(29), "memory", "problem", "about 30 GB", "models of 1 GB", "29 GB are left")
    only(held(31), "memory", "warning", "31 GB are left")
    assert bad(held(38)) == []


def test_rows_take_memory_where_the_aggregator_wants_them() -> None:
    """Each of 3 training ranks keeps a third of 30 updates: 10 models more."""
    facts = world(4, lambda n: {"model": GB, "memory_left": 50 * GB}, run=RunFacts(mode="mpi", needs="matrix", cohort=30))
    only(facts, "memory", "problem", "about 60 GB", "mean only")


def test_each_host_is_weighed_by_itself() -> None:
    facts = world(4, lambda n: {"model": GB, "host": "ab"[n % 2], "memory_left": 20 * GB if n % 2 else 13 * GB})
    found = bad(facts)
    assert [finding.subject for finding in found] == ["memory"]
    assert found[0].message.startswith("a: ranks 0, 2 will need about 18 GB")


def test_workers_that_are_not_there_yet_count() -> None:
    """Mode parallel: 4 workers, each as large as this process, 2 GB, beside 12 + 4 * 6 models of 1 GB."""
    def worker(number: int) -> dict[str, Any]:
        return {"started": number == 0, "resident": 2 * GB, "model": GB, "memory_left": 43 * GB}

    only(world(5, worker, run=RunFacts(mode="parallel")), "memory", "problem", "about 44 GB")


# GPUs


def test_a_gpu_for_each_rank_that_trains() -> None:
    """S-HPC-05 of the acceptance cases, 4 GPUs on each of two hosts: rank 0 serves, 1-4 and 5-8 have one each."""
    def at(number: int) -> dict[str, Any]:
        return {"gpus": 4, "host": "a" if number < 5 else "b", "local_rank": number - 1 if number < 5 else number - 5,
                "trains": number > 0}

    assert bad(world(9, at, run=RunFacts(mode="mpi", device="cuda"))) == []


@pytest.mark.parametrize(("device", "each", "level", "word"), [
    ("cuda", lambda n: {"gpus": 0}, "problem", "no GPU"),
    ("cuda", lambda n: {"gpus": None}, "problem", "no GPU"),
    ("cuda", lambda n: {"gpus": 2 if n < 3 else 0, "local_rank": n % 2}, "problem", "rank 3"),
    ("auto", lambda n: {"gpus": 0}, None, ""),
    ("cpu", lambda n: {"gpus": 4}, "warning", "is cpu"),
    ("cuda:5", lambda n: {"gpus": 4}, "problem", "cuda:5"),
    ("cuda:0", lambda n: {"gpus": 4}, "warning", "3 ranks share GPU 0, and 3 of 4 GPUs are idle"),
    ("cuda", lambda n: {"gpus": 4, "local_rank": None}, "warning", "no launcher tells"),
    ("cuda", lambda n: {"gpus": 1}, "warning", "3 ranks share 1 GPUs"),
    ("auto", lambda n: {"gpus": 3}, None, ""),
    ("cuda", lambda n: {"gpus": 4}, "warning", "1 of 4 GPUs idle"),
    # Slurm shows each rank one GPU of its own, which the rank calls 0.
    ("cuda", lambda n: {"gpus": 1, "visible_gpus": str(n)}, None, ""),
    ("cuda", lambda n: {"gpus": 1, "visible_gpus": "2"}, "warning", "share"),
])
def test_gpus(device: str, each: Callable[[int], dict[str, Any]], level: str | None, word: str) -> None:
    """Four ranks on one host, of which three train."""
    facts = world(4, each, run=RunFacts(mode="mpi", device=device))
    if level is None:
        assert bad(facts) == []
    else:
        only(facts, "GPUs", level, word)


# the folder


@pytest.mark.parametrize(("folder", "subject", "level", "word"), [
    ({"problem": "a file cannot be written (Disk quota exceeded)"}, "output folder", "problem", "quota"),
    ({"flock": "Function not implemented"}, "file locks", "warning", "not implemented"),
    ({"not_locked_out": [2, 3]}, "file locks", "warning", "ranks 2-3"),
    ({"hdf5": "unable to lock file"}, "HDF5 locks", "warning", "HDF5_USE_FILE_LOCKING=FALSE"),
    ({"left": 499_000_000}, "disk space", "problem", "499 MB left"),
    ({"left": GB}, "disk space", "warning", "1.5 GB"),
    ({"files_left": 3}, "disk space", "problem", "3 more files"),
])
def test_folders(folder: dict[str, Any], subject: str, level: str, word: str) -> None:
    """A model of 100 MB, 3 checkpoints that stay, the best, and one being written: 500 MB at least, 1.5 GB at most."""
    facts = FolderFacts(**({"path": "/scratch/run", "left": 500 * GB, "files_left": 10**6} | folder))
    only(world(folder=facts), subject, level, word, "/scratch/run" if subject != "disk space" or "files_left" in folder else "")


def test_a_folder_that_other_hosts_do_not_see_is_no_fault() -> None:
    facts = world(folder=FolderFacts(path="/tmp/run", left=500 * GB, not_seen_by=[1, 2]))
    assert bad(facts) == []
    assert any("ranks 1-2 do not see /tmp/run" in finding.message for finding in examine(facts))


# configuration, network


def test_data_that_one_host_does_not_have() -> None:
    facts = world(4, lambda n: {"problem": "x.npz does not exist", "model": None, "host": "b"} if n > 1 else {})
    only(facts, "configuration", "problem", "ranks 2-3 on b: x.npz does not exist")


def test_without_a_configuration() -> None:
    facts = world(2, lambda n: {"model": None}, run=RunFacts(mode="mpi", given=False))
    assert bad(facts) == []
    assert any("none given" in finding.message for finding in examine(facts))


def test_a_network_like_gigabit_ethernet() -> None:
    """50 MB/s, for a model of 100 MB: 2 s a broadcast, 4 s a reduction of twice the bytes."""
    facts = world(speeds=[SpeedFacts(operation=name, nbytes=50_000_000, seconds=1.0) for name in ("broadcast", "reduce")])
    found = bad(facts)
    assert [(finding.subject, finding.level) for finding in found] == [("broadcast", "warning"), ("reduce", "warning")]
    assert "50 MB/s" in found[0].message
    assert "2 s" in found[0].message
    assert "4 s" in found[1].message


# words


def test_every_check_takes_a_world_of_which_nothing_is_known() -> None:
    facts = WorldFacts(ranks=[RankFacts(rank=0, host="a", cores=[0], usable_cores=1, host_cores=1)])
    for check in CHECKS:
        assert all(finding.level == "ok" for finding in check(facts)), check


def test_numbers_and_sizes() -> None:
    assert numbers([7, 0, 1, 2, 3, 3]) == "0-3, 7"
    assert numbers([]) == ""
    assert ranks_of([rank(4)]) == "rank 4"
    assert ranks_of([rank(2), rank(1)]) == "ranks 1-2"
    sizes = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 67_108_864: "67.1 MB", 123_456_789: "123 MB", 2 * 10**12: "2 TB"}
    assert {value: size_of(value) for value in sizes} == sizes


def test_the_report_as_lines_and_as_json() -> None:
    found = [Finding("MPI", "ok", "fine"), Finding("threads", "warning", "two\nlines", "fewer"),
             Finding("memory", "problem", "full", "more")]
    assert as_lines(found) == ["ok       MPI     fine", "warning  threads two\n                 lines",
                               "                 -> fewer", "problem  memory  full", "                 -> more",
                               "1 problem, 1 warning: a run would fail"]
    assert as_lines(found[:1])[-1] == "nothing found that would trouble a run"
    assert msgspec.json.decode(as_json(found), type=dict) == {
        "status": 1, "findings": [msgspec.structs.asdict(finding) for finding in found]}
