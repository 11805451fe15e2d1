"""What a run would do, in words: its configuration, its partition, and where clients would be placed."""

from __future__ import annotations

from collections.abc import Mapping

from federation.assemble import load_data
from federation.builtin.trainers.cohorts import Cohorts
from federation.config import Config, dump_config
from federation.infra.threads import available_cores
from federation.node.placement import place
from federation.node.proxy import ClientTable
from node_comm import launchers

SHOWN = 8  #: clients named for each rank


def describe(config: Config, mode: str, environ: Mapping[str, str]) -> str:
    """The report of `--dry_run`. Loads the data, since the partition depends on them. Raises DataError."""
    parts = [dump_config(config)]
    ranks = _ranks(config, mode, environ)
    parts.append(f"mode: {mode}, ranks that train: {ranks[0]} to {ranks[-1]}")
    if config.data.enabled:
        data = load_data(config)
        parts.append(f"partition {data.partition.sha256()}\n{data.partition.summary(data.dataset.y_train)}")
        cohort = Cohorts(config.trainer_config, config.seed).draw(ClientTable(data.sizes), 1).clients
        costs = {client.client_id: float(client.num_samples) for client in cohort}
        shares = place(costs, {}, ranks, config.trainer_config.placement)
        parts.append(f"round 1: {len(cohort)} of {config.num_clients} clients")
        parts += [f"  rank {rank}: {_listed(share)} ({sum(costs[client] for client in share):.0f} samples)"
                  for rank, share in shares.items()]
    return "\n".join(parts)


def _ranks(config: Config, mode: str, environ: Mapping[str, str]) -> list[int]:
    match mode:
        case "parallel":
            size = (config.num_workers or available_cores()) + 1
        case "mpi":
            size = launchers.launched_size(environ) or 1
        case _:
            size = 1
    return list(range(0 if size == 1 or config.trainer_config.server_hosts_clients else 1, size))


def _listed(share: list[str]) -> str:
    return ", ".join(share[:SHOWN]) + (f" and {len(share) - SHOWN} more" if len(share) > SHOWN else "") or "idle"
