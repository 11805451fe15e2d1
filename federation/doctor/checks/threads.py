"""Compute threads against the cores that they may run on."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import RankFacts, WorldFacts, numbers, ranks_of
from federation.doctor.finding import Finding, ok, warning


def check_threads(facts: WorldFacts) -> Iterator[Finding]:
    """A warning for each host on which some set of cores is given more threads than it has cores."""
    hosts = facts.hosts
    crowded = 0
    for host, ranks in hosts.items():
        worst = _most_crowded([rank for rank in ranks if rank.trains])
        if worst is None:
            continue
        crowded += 1
        threads, room, where, whose = worst
        yield warning("threads", f"{host}: {threads} compute threads of {ranks_of(whose)} share {room} cores ({where})",
                      "start fewer ranks, lower `threads`, or give each rank cores of its own: sbatch --cpus-per-task=N, "
                      "srun --cpu-bind=cores, mpirun --map-by slot:PE=N --bind-to core")
    if not crowded:
        counts = sorted({rank.threads for rank in facts.ranks})
        width = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        yield ok("threads", f"{width} for each rank, with a core for each")


def _most_crowded(ranks: list[RankFacts]) -> tuple[int, int, str, list[RankFacts]] | None:
    """Threads, cores, which cores, and whose threads, where the ratio is worst; None where every thread has a core.

    Ranks whose cores all lie in a set share it (Hall's condition), for each set that a rank is bound to, and all.
    """
    if not ranks:
        return None
    everything = frozenset(core for rank in ranks for core in rank.cores)
    # A quota is on the whole container, so it limits all of its ranks together.
    quota = min((rank.usable_cores for rank in ranks if rank.usable_cores < len(rank.cores)), default=len(everything))
    found = []
    for cores in {everything, *(frozenset(rank.cores) for rank in ranks)}:
        whose = [rank for rank in ranks if cores.issuperset(rank.cores)]
        threads, room = sum(rank.threads for rank in whose), min(len(cores), quota)
        if threads > room:
            where = numbers(cores) if room == len(cores) else f"of {numbers(cores)}, by the container's quota"
            found.append((threads / room, len(whose), (threads, room, where, whose)))
    return max(found, key=lambda item: item[:2])[2] if found else None
