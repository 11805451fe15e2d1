"""How fast weights move: one broadcast and one reduction a round."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import WorldFacts, size_of
from federation.doctor.finding import Finding, ok, warning

#: Bytes a second: no faster than this, MPI uses a management network, not the cluster's.
SLOW = 1e8


def check_network(facts: WorldFacts) -> Iterator[Finding]:
    """The rate of each collective; a warning for one that is no faster than gigabit Ethernet."""
    for speed in facts.speeds:
        rate = speed.nbytes / max(speed.seconds, 1e-9)
        message = f"{size_of(rate)}/s in pieces of {size_of(speed.nbytes)}"
        if facts.model is not None:
            # The exact reduction moves 8 bytes where a weight has 4.
            moved = facts.model * (2 if speed.operation == "reduce" else 1)
            message += f"; {moved / rate:.2g} s of a round for this model"
        if rate < SLOW:
            yield warning(speed.operation, message, "let MPI use the fast network: an MPI library built with UCX or "
                          "libfabric, or mpirun --mca btl_tcp_if_include INTERFACE")
        else:
            yield ok(speed.operation, message)
