"""What is measured of the global weights between rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import get_args

from federation.config import TrainerConfig
from federation.data.manager import Part
from federation.node.proxy import ClientProxy
from federation.node.round import Evaluated
from federation.node.server import ServerNode
from node_comm.node import give_up

PARTS: tuple[Part, ...] = get_args(Part)


def is_due(config: TrainerConfig, round: int) -> bool:
    """Whether round `round` ends with an evaluation."""
    return config.evaluate != "none" and (round == config.max_rounds or round % config.eval_every == 0)


async def evaluate(server: ServerNode, config: TrainerConfig, round: int, clients: Sequence[ClientProxy]) -> dict[str, float]:
    """Metrics of the weights of the last broadcast, if `round` is due: of the server's samples, and of `clients`.

    Those of clients begin with `client_`, and where clients have models of their own, those of these with `personal_`.
    After that comes `validation_` for those on validation samples, where there are any; test samples have no word.
    """
    return await (await begin_evaluation(server, config, round, clients))


async def begin_evaluation(server: ServerNode, config: TrainerConfig, round: int,
                           clients: Sequence[ClientProxy]) -> asyncio.Task[dict[str, float]]:
    """Order what `evaluate` needs, and return once the orders are out; await the task for the metrics."""
    under_way: dict[Part, asyncio.Task[Evaluated]] = {}
    data = server.host.data
    on_server, on_clients = config.evaluate in ("server", "both"), config.evaluate in ("clients", "both")
    try:
        for part in PARTS if is_due(config, round) else ():
            if part == "validation" and not (data and data.has_validation):
                continue
            shards = len(data.shards(part)) if data is not None and on_server else 0
            under_way[part] = await server.begin_evaluation(round, shards, clients if on_clients else (), part)
    except BaseException:
        await give_up(*under_way.values())
        raise
    return asyncio.create_task(_metrics(under_way))


async def _metrics(under_way: Mapping[Part, asyncio.Task[Evaluated]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    try:
        for part, evaluating in under_way.items():
            found = await evaluating
            word = "" if part == "test" else f"{part}_"
            for prefix, means in (("", found.shards), ("client_", found.clients), ("personal_", found.personal)):
                metrics |= {f"{prefix}{word}{key}": value for key, value in means.means().items()}
    finally:
        await give_up(*under_way.values())
    return metrics
