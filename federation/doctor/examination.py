"""Everything that is looked at, in order, by all ranks together."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from federation.config import Config
from federation.doctor.facts import FolderFacts, MPIFacts, WorldFacts
from federation.doctor.probes import folder as folders
from federation.doctor.probes import world
from federation.doctor.probes.rank import planned_workers, rank_facts
from federation.doctor.probes.run import describe, put_together
from federation.infra.threads import apply_threads, available_cores, resolve_threads
from node_comm import Transport, launchers

#: Seconds that ranks have to answer each other; then they do not reach each other.
PATIENCE = 60.0
#: Bytes moved to measure collectives: a model's, within these limits, so that a small one does not measure latency alone.
SMALLEST, LARGEST = 16 << 20, 64 << 20


async def examine_world(transport: Transport, config: Config, mode: str, given: bool, mpi: MPIFacts,
                        environ: Mapping[str, str]) -> WorldFacts | None:
    """The facts of the world of `transport`; None on ranks other than 0. Every rank calls this with the same arguments.

    config: the configuration, or where it is not `given` the default one, of which little is looked at then.
    mode: serial, parallel or mpi. mpi: what is known of the library at this rank.
    """
    workers = (config.num_workers or available_cores()) if mode == "parallel" else launchers.local_size(environ) or 1
    threads = resolve_threads(config.threads, workers, environ, available_cores())
    apply_threads(threads)
    assembled = put_together(config if given else None)
    await transport.barrier()  # so that what all ranks hold is in memory when what is left is looked at
    own = rank_facts(transport.rank, transport.size, config, assembled, threads, environ)
    with within(PATIENCE):
        ranks = await world.gather(transport, own)
        folder = await _examine_folder(transport, config, given)
        clocks = await world.compare_clocks(transport, ranks)
        model = max((rank.model or 0 for rank in ranks), default=0)
    speeds = []
    if transport.size > 1:
        with within(PATIENCE):
            speeds = await world.measure(transport, min(max(model, SMALLEST), LARGEST))
    if transport.rank:
        return None
    if mode == "parallel":
        ranks = planned_workers(own, workers, config)
    return WorldFacts(ranks=ranks, run=describe(config, mode, given), mpi=mpi, folder=folder, clocks=clocks, speeds=speeds)


async def _examine_folder(transport: Transport, config: Config, given: bool) -> FolderFacts | None:
    """The folder that rank 0 would write to, tried by it, and its lock by all. None on the other ranks."""
    if transport.rank:
        await world.visit_lock(transport, None)
        return None
    path = folders.existing(Path(config.output_dir if given else "."))
    with folders.trial_file(path) as (trial, reason):
        facts = folders.try_folder(path, trial, reason)
        unseen, unlocked = await world.visit_lock(transport, None if facts.problem or facts.flock else trial)
    return msgspec.structs.replace(facts, not_seen_by=unseen, not_locked_out=unlocked)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End the process, with status 1 and a line on stderr that says where it was, if what follows takes longer.

    For what may wait for ever, inside MPI as well, where neither a signal nor another thread of Python is heard.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
