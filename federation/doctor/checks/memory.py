"""Memory: for models on each host, and the shared memory that MPI takes."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import RankFacts, WorldFacts, ranks_of, size_of
from federation.doctor.finding import Finding, ok, problem, warning

#: The memory of a rank that trains, in models: the model, its gradients, the global weights, the update, and an exact
#: sum of twice their size. Measured, as the peak of a 25 M parameter MLP on the CPU: 5.2.
TRAINING = 6
#: That of rank 0: the model, the weights before and after a round, its own and the ranks' sum, what the server's optimiser
#: keeps, and the copies of all that a checkpoint is written from. Measured: 8.0 with FedAvg, 12.0 with FedAdam.
SERVING = 12
#: The share of what is left that may be planned for.
SAFE = 0.8
#: What each of Open MPI's processes on a host maps in /dev/shm (measured with Open MPI 5.0.11).
SEGMENT = 16 << 20


def check_memory(facts: WorldFacts) -> Iterator[Finding]:
    """The model's copies on each host against what the host, or the container, has left."""
    if facts.model is None:
        left = min((rank.memory_left for rank in facts.ranks if rank.memory_left is not None), default=None)
        yield ok("memory", "what is left is not known here" if left is None else f"{size_of(left)} left on the fullest host")
        return
    rows = _rows(facts)
    tightest = (0.0, "")
    for host, ranks in facts.hosts.items():
        left = min((rank.memory_left for rank in ranks if rank.memory_left is not None), default=None)
        if left is None:
            continue
        need = sum(_copies(rank, rows) for rank in ranks) * facts.model + _unstarted(ranks)
        message = (f"{host}: {ranks_of(ranks)} will need about {size_of(need)} for models of {size_of(facts.model)}, and "
                   f"{size_of(left)} are left")
        remedy = ("start fewer ranks on a host, or ask for more memory (sbatch --mem=..., or --mem-per-cpu=...)"
                  + ("; an aggregator that needs a mean only keeps no update of each client" if rows else ""))
        if need > left:
            yield problem("memory", message, remedy)
        elif need > SAFE * left:
            yield warning("memory", message, remedy)
        tightest = max(tightest, (need / max(left, 1), message))
    if 0 < tightest[0] <= SAFE:
        yield ok("memory", f"{tightest[1]}; data, and what clients keep, come on top")


def check_shared_memory(facts: WorldFacts) -> Iterator[Finding]:
    """/dev/shm against what Open MPI maps there; other modes use memory that no mount limits."""
    sizes = [rank for rank in facts.ranks if rank.shared_memory is not None and rank.shared_memory_left is not None]
    if not sizes:
        return
    found = 0
    for host, ranks in facts.hosts.items():
        if len(ranks) < 2 or facts.run.mode != "mpi" or ranks[0].shared_memory_left is None:
            continue
        # Where MPI has been started, its segments are there already, but hardly filled.
        need, left = len(ranks) * SEGMENT, min(rank.shared_memory_left or 0 for rank in ranks)
        if need > left:
            found += 1
            yield warning("/dev/shm", f"{host}: {size_of(left)} of {size_of(ranks[0].shared_memory or 0)} are left, and Open "
                          f"MPI's {len(ranks)} ranks there may fill {size_of(need)}; a full one ends ranks with SIGBUS",
                          "docker run --shm-size=1g (or --ipc=host), apptainer without --contain; or slower, without "
                          "shared memory: mpirun --mca btl ^sm")
    if not found:
        tightest = min(sizes, key=lambda rank: rank.shared_memory_left or 0)
        yield ok("/dev/shm", f"{size_of(tightest.shared_memory_left or 0)} of {size_of(tightest.shared_memory or 0)} left on "
                             f"{tightest.host}")


def _rows(facts: WorldFacts) -> int:
    """Updates that a training rank keeps until the end of a round."""
    trainers = sum(rank.trains for rank in facts.ranks)
    return 0 if facts.run.needs == "mean" or not trainers else -(-facts.run.cohort // trainers)


def _copies(rank: RankFacts, rows: int) -> int:
    return (SERVING if rank.rank == 0 else 0) + (TRAINING + rows if rank.trains else 0)


def _unstarted(ranks: list[RankFacts]) -> int:
    """What processes will take that are not there yet: worker processes of mode parallel, as large as this one."""
    return sum(rank.resident or 0 for rank in ranks if not rank.started)
