"""What has to be the same on every rank for the same bits."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import RankFacts, WorldFacts, ranks_of
from federation.doctor.finding import Finding, ok, problem, warning


def check_versions(facts: WorldFacts) -> Iterator[Finding]:
    """A problem for each library, and for the configuration, that differs: the server refuses such ranks."""
    differing = 0
    for name in dict.fromkeys(name for rank in facts.ranks for name in rank.setup):
        groups = _groups(facts.ranks, [rank.setup.get(name, "not installed") for rank in facts.ranks])
        if len(groups) > 1:
            differing += 1
            remedy = ("let all ranks read the same file" if name == "configuration"
                      else "use one environment on all hosts, on a file system that they share or in a container")
            yield problem("versions", f"{name} differs between ranks: {_described(groups)}", remedy)
    if not differing:
        shown = ", ".join(f"{name} {version}" for name, version in facts.ranks[0].setup.items() if name != "configuration")
        yield ok("versions", shown if len(facts.ranks) == 1 else f"the same on all ranks: {shown}")


def check_processors(facts: WorldFacts) -> Iterator[Finding]:
    """A warning where processors are of several kinds: a BLAS may round differently on each."""
    groups = _groups(facts.ranks, [rank.processor for rank in facts.ranks])
    if len(groups) > 1:
        yield warning("processors", f"of several kinds: {_described(groups)}; results may differ in the last bits from those "
                      "of another placement", "ask for one kind (sbatch --constraint=...) where results are to be repeated")
    else:
        yield ok("processors", facts.ranks[0].processor or "not known")
    # Kernels give the same bits in every variant, so they may differ.
    variants = _groups(facts.ranks, [rank.kernels for rank in facts.ranks])
    yield ok("kernels", _described(variants) if len(variants) > 1 else facts.ranks[0].kernels or "not known")


def _groups(ranks: list[RankFacts], values: list[str]) -> dict[str, list[RankFacts]]:
    """The ranks with each value, of those given in the ranks' order."""
    groups: dict[str, list[RankFacts]] = {}
    for rank, value in zip(ranks, values, strict=True):
        groups.setdefault(value, []).append(rank)
    return groups


def _described(groups: dict[str, list[RankFacts]]) -> str:
    return "; ".join(f"{value} on {ranks_of(ranks)}" for value, ranks in groups.items())
