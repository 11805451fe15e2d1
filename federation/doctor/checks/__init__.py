"""All checks, in the order in which they are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from federation.doctor.checks.clocks import check_clocks
from federation.doctor.checks.configuration import check_configuration
from federation.doctor.checks.folder import check_disk_space, check_folder, check_locks
from federation.doctor.checks.gpus import check_gpus
from federation.doctor.checks.memory import check_memory, check_shared_memory
from federation.doctor.checks.mpi import check_lost_ranks, check_mpi
from federation.doctor.checks.network import check_network
from federation.doctor.checks.placement import check_placement
from federation.doctor.checks.threads import check_threads
from federation.doctor.checks.versions import check_processors, check_versions
from federation.doctor.facts import WorldFacts
from federation.doctor.finding import Finding

Check = Callable[[WorldFacts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    check_mpi, check_lost_ranks, check_placement, check_threads, check_gpus, check_configuration, check_versions,
    check_processors, check_memory, check_shared_memory, check_folder, check_locks, check_disk_space, check_clocks,
    check_network)


def examine(facts: WorldFacts) -> list[Finding]:
    """What all checks find."""
    return [finding for check in CHECKS for finding in check(facts)]
