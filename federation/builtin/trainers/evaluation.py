"""What is measured of the global weights between rounds."""

from __future__ import annotations

from collections.abc import Sequence

from federation.config import TrainerConfig
from federation.node.proxy import ClientProxy
from federation.node.server import ServerNode


def is_due(config: TrainerConfig, round: int) -> bool:
    """Whether round `round` ends with an evaluation."""
    return config.evaluate != "none" and (round == config.max_rounds or round % config.eval_every == 0)


async def evaluate(server: ServerNode, config: TrainerConfig, round: int, clients: Sequence[ClientProxy]) -> dict[str, float]:
    """Metrics of the weights of the last broadcast, if `round` is due: of the server's test set, and of `clients`.

    Those of clients begin with `client_`, and where clients have models of their own, those of these with `personal_`.
    """
    if not is_due(config, round):
        return {}
    data = server.host.data
    shards = len(data.test_shards()) if data is not None and config.evaluate in ("server", "both") else 0
    found = await server.evaluate(round, shards, clients if config.evaluate in ("clients", "both") else ())
    return {**found.shards.means(),
            **{f"client_{key}": value for key, value in found.clients.means().items()},
            **{f"personal_{key}": value for key, value in found.personal.means().items()}}
