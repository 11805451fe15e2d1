"""Which ranks are on which host, and the cores that they may use."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import RankFacts, WorldFacts, numbers, ranks_of
from federation.doctor.finding import Finding, ok, warning

SHOWN = 8  #: hosts that are described one by one


def check_placement(facts: WorldFacts) -> Iterator[Finding]:
    """Ranks for each host, with their cores; a warning where hosts of one job carry very different numbers of ranks."""
    hosts = facts.hosts
    for host, ranks in list(hosts.items())[:SHOWN]:
        yield ok("placement", f"{host}: {ranks_of(ranks)}, {_binding(ranks)} of {ranks[0].host_cores} cores")
    if len(hosts) > SHOWN:
        yield ok("placement", f"and {len(hosts) - SHOWN} more hosts with {sum(map(len, hosts.values()))} ranks in all")
    counts = {host: len(ranks) for host, ranks in hosts.items()}
    if len(counts) > 1 and max(counts.values()) > 2 * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        yield warning("placement", f"{most} has {counts[most]} ranks and {least} has {counts[least]}",
                      "spread them: sbatch --ntasks-per-node=N, or mpirun --map-by ppr:N:node")


def _binding(ranks: list[RankFacts]) -> str:
    """Ranks' cores, each set once."""
    sets = {tuple(sorted(rank.cores)) for rank in ranks}
    if len(sets) == 1:
        return f"each on {numbers(next(iter(sets)))}"
    sizes = sorted({len(cores) for cores in sets})
    width = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"bound to {width} each, {numbers(core for cores in sets for core in cores)} in all"
