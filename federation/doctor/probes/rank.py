"""All facts of one rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import msgspec

from federation import kernels
from federation.config import Config
from federation.doctor.facts import RankFacts
from federation.doctor.probes import host
from federation.doctor.probes.run import Assembled
from federation.infra.threads import available_cores
from node_comm import launchers


def rank_facts(rank: int, size: int, config: Config, assembled: Assembled, threads: int,
               environ: Mapping[str, str]) -> RankFacts:
    """The facts of this process, which is `rank` of `size` and holds the parts of the run in memory already."""
    shared = host.room(host.SHARED_MEMORY)
    return RankFacts(
        rank=rank, host=socket.gethostname(), local_rank=launchers.local_rank(environ),
        trains=rank > 0 or size == 1 or config.trainer_config.server_hosts_clients,
        cores=host.cores(), usable_cores=available_cores(), host_cores=os.cpu_count() or 1, threads=threads,
        processor=host.processor(), gpus=host.gpus(), visible_gpus=host.visible_gpus(environ),
        resident=host.resident(), memory_left=host.memory_left(), shared_memory=shared and shared.size,
        shared_memory_left=shared and shared.left, setup=assembled.setup,
        kernels=kernels.variant(), model=assembled.model, problem=assembled.problem)


def planned_workers(first: RankFacts, workers: int, config: Config) -> list[RankFacts]:
    """The ranks of a run in mode parallel: `first`, which is here, and the workers that it would start, on its cores."""
    serves = msgspec.structs.replace(first, trains=config.trainer_config.server_hosts_clients)
    return [serves, *(msgspec.structs.replace(first, rank=rank, trains=True, started=False)
                      for rank in range(1, workers + 1))]
