"""What a program may say about a node that it makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from federation.errors import FederationError


@dataclass(frozen=True)
class NodeSettings:
    """`node_id`, `transport: {mode: memory|mpi}`, and `threads` (compute threads of the process)."""

    node_id: str
    mode: Any = "memory"
    threads: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, node_id: str) -> NodeSettings:
        """Read `config`, with `node_id` as the default name. Raises FederationError for an unknown key."""
        given = dict(config or {})
        settings = cls(str(given.pop("node_id", node_id)), dict(given.pop("transport", None) or {}).get("mode", "memory"),
                       int(given.pop("threads", 1)))
        if given:
            raise FederationError(f"settings of a node: unknown {sorted(given)}; known: node_id, threads, transport")
        return settings
