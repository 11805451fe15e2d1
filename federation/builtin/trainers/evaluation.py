"""What is measured of the global weights between rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from federation.config import TrainerConfig
from federation.data.manager import Part
from federation.node.proxy import ClientProxy
from federation.node.server import ServerNode

PARTS: tuple[Part, ...] = get_args(Part)


def is_due(config: TrainerConfig, round: int) -> bool:
    """Whether round `round` ends with an evaluation."""
    return config.evaluate != "none" and (round == config.max_rounds or round % config.eval_every == 0)


async def evaluate(server: ServerNode, config: TrainerConfig, round: int, clients: Sequence[ClientProxy]) -> dict[str, float]:
    """Metrics of the weights of the last broadcast, if `round` is due: of the server's samples, and of `clients`.

    Those of clients begin with `client_`, and where clients have models of their own, those of these with `personal_`.
    After that comes `validation_` for those on validation samples, where there are any; test samples have no word.
    """
    if not is_due(config, round):
        return {}
    data = server.host.data
    on_server, on_clients = config.evaluate in ("server", "both"), config.evaluate in ("clients", "both")
    metrics: dict[str, float] = {}
    for part in PARTS:
        if part == "validation" and not (data and data.has_validation):
            continue
        shards = len(data.shards(part)) if data is not None and on_server else 0
        found = await server.evaluate(round, shards, clients if on_clients else (), part)
        word = "" if part == "test" else f"{part}_"
        for prefix, means in (("", found.shards), ("client_", found.clients), ("personal_", found.personal)):
            metrics |= {f"{prefix}{word}{key}": value for key, value in means.means().items()}
    return metrics
