"""Whether every rank can put the configured run together: its components, its data."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import RankFacts, WorldFacts, ranks_of, size_of
from federation.doctor.finding import Finding, ok, problem


def check_configuration(facts: WorldFacts) -> Iterator[Finding]:
    """A problem for each reason why ranks cannot; ranks with the same reason count as one."""
    if not facts.run.given:
        yield ok("configuration", "none given: --config FILE checks its data, its model and its folder as well")
        return
    reasons: dict[str, list[RankFacts]] = {}
    for rank in facts.ranks:
        if rank.problem:
            reasons.setdefault(rank.problem, []).append(rank)
    for reason, ranks in reasons.items():
        hosts = sorted({rank.host for rank in ranks})
        where = "" if len(facts.ranks) == 1 else f"{ranks_of(ranks)} on {', '.join(hosts[:4])}: "
        yield problem("configuration", where + reason, "see `python -m federation.launch --config FILE --dry_run`, there")
    if not reasons and facts.model is not None:
        yield ok("configuration", f"mode {facts.run.mode}; data and components are there, the model has {size_of(facts.model)}")
