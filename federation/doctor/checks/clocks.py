"""Clocks of hosts that disagree."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import WorldFacts
from federation.doctor.finding import Finding, ok, warning

#: Seconds by which clocks may differ: beyond, log lines and files of different hosts are in no order.
TOLERANCE = 1.0


def check_clocks(facts: WorldFacts) -> Iterator[Finding]:
    """A warning for each host whose clock is off from rank 0's by more than the tolerance, whatever the uncertainty."""
    off = [clock for clock in facts.clocks if abs(clock.ahead) - clock.uncertainty > TOLERANCE]
    for clock in off:
        yield warning("clocks", f"that of {clock.host} is {abs(clock.ahead):.1f} s {'ahead of' if clock.ahead > 0 else 'behind'} "
                      f"rank 0's on {facts.ranks[0].host}; results do not depend on it, but times in logs and files do, and "
                      "certificates may be refused", "have the host's time service (chrony, ntpd) looked after")
    if facts.clocks and not off:
        widest = max(facts.clocks, key=lambda clock: abs(clock.ahead))
        yield ok("clocks", f"{len(facts.clocks) + 1} hosts agree to within {abs(widest.ahead) + widest.uncertainty:.3f} s")
