"""What the doctor knows: plain values, which travel between ranks as JSON.

Sizes are in bytes, times in seconds. None stands for what could not be found out here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all facts."""


class RankFacts(Facts, frozen=True, kw_only=True):
    """One rank: its process, and the host that it is on."""

    rank: int
    host: str
    #: The rank's number among those on its host, as the launcher tells it.
    local_rank: int | None = None
    #: Whether it is to train clients; rank 0 may only serve.
    trains: bool = True
    #: False for a worker process that a run would start, and the doctor does not.
    started: bool = True

    #: The cores that this process may run on, and how many of them its container lets it use at a time.
    cores: list[int]
    usable_cores: int
    host_cores: int
    #: Compute threads that a run would use in this process.
    threads: int = 1
    processor: str = ""

    #: GPUs that torch finds; None without torch. `visible_gpus` is CUDA_VISIBLE_DEVICES.
    gpus: int | None = None
    visible_gpus: str | None = None

    #: What this process holds, and what its host, or container, has left.
    resident: int | None = None
    memory_left: int | None = None
    shared_memory: int | None = None
    shared_memory_left: int | None = None

    #: What must be the same on every rank: the configuration's digest, and versions.
    setup: dict[str, str] = {}
    #: What the kernels use of this processor.
    kernels: str = ""
    #: The bytes of one model, where the configuration could be put together here, else why it could not.
    model: int | None = None
    problem: str = ""


class RunFacts(Facts, frozen=True, kw_only=True):
    """What the configuration asks for."""

    mode: str = "serial"
    #: Whether a configuration was given; without one, nothing is known of models, cohorts and devices.
    given: bool = True
    needs: str = "mean"
    cohort: int = 1
    #: `learner_config.device`.
    device: str = "cpu"
    #: Checkpoints that stay.
    keep: int = 3


class MPIFacts(Facts, frozen=True, kw_only=True):
    """The MPI library, and how it was started. `refusal` is why it cannot be used; `launched` what a launcher claims."""

    library: str = ""
    refusal: str = ""
    launched: int | None = None
    #: None where MPI was not started.
    thread_level: str | None = None
    offers_ulfm: bool | None = None
    wants_ulfm: bool = False


class FolderFacts(Facts, frozen=True, kw_only=True):
    """The folder that a run would write to, or the one above it that exists.

    `problem`: why no file can be written there. `flock`, `hdf5`: why such a lock cannot be had, empty where it can.
    `not_seen_by`, `not_locked_out`: ranks that do not find a file of rank 0 there, and that get a lock which rank 0 has.
    """

    path: str
    file_system: str = ""
    problem: str = ""
    flock: str = ""
    hdf5: str = ""
    size: int | None = None
    left: int | None = None
    files_left: int | None = None
    not_seen_by: list[int] = []
    not_locked_out: list[int] = []


class ClockFacts(Facts, frozen=True, kw_only=True):
    """The clock of a host: `ahead` of rank 0's, to within `uncertainty`."""

    host: str
    ahead: float
    uncertainty: float


class SpeedFacts(Facts, frozen=True, kw_only=True):
    """A collective over all ranks: seconds that one of `nbytes` takes, on average."""

    operation: str
    nbytes: int
    seconds: float


class WorldFacts(Facts, frozen=True, kw_only=True):
    """All that the checks go by."""

    ranks: list[RankFacts]
    run: RunFacts = RunFacts()
    mpi: MPIFacts = MPIFacts()
    folder: FolderFacts | None = None
    clocks: list[ClockFacts] = []
    speeds: list[SpeedFacts] = []

    @property
    def hosts(self) -> dict[str, list[RankFacts]]:
        """The ranks of each host, hosts in the order of their first rank."""
        hosts: dict[str, list[RankFacts]] = {}
        for rank in self.ranks:
            hosts.setdefault(rank.host, []).append(rank)
        return hosts

    @property
    def model(self) -> int | None:
        """The bytes of one model, where any rank knows."""
        return max((rank.model for rank in self.ranks if rank.model is not None), default=None)


def numbers(values: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3 and 7."""
    spans: list[list[int]] = []
    for value in sorted(set(values)):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def ranks_of(ranks: Iterable[RankFacts]) -> str:
    """`rank 3`, or `ranks 0-3, 7`."""
    found = sorted({rank.rank for rank in ranks})
    return f"rank{'s' if len(found) > 1 else ''} {numbers(found)}"


def size_of(nbytes: float) -> str:
    """`1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 100 else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
