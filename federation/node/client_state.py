"""The private state of clients, on the rank where each of them lives at present."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from federation.core.weights import Layout, Weights
from federation.errors import FederationError
from federation.node.protocol import ClientState
from node_comm.errors import ProtocolError
from node_comm.node import Incoming, Node, together


class ClientStates:
    """What each client of this rank keeps between its turns, by client and name; O(clients that keep something).

    A round is a transaction: what `fit` returns is proposed, and becomes the client's state with the next broadcast.
    """

    def __init__(self) -> None:
        self._current: dict[str, Weights] = {}
        self._proposed: dict[str, Weights] = {}
        self._arrived = asyncio.Event()

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._current

    def of(self, client_id: str) -> dict[str, np.ndarray]:
        """The client's arrays by name, read-only; empty for one that has kept nothing."""
        state = self._current.get(client_id)
        return {} if state is None else dict(state.read_only().items())

    def whole(self, client_id: str, proposed: bool = False) -> Weights:
        """The client's state, or what it proposes to keep, as one buffer; borrowed."""
        return (self._proposed if proposed else self._current)[client_id]

    def put(self, client_id: str, state: Weights) -> None:
        """Take over a client with its state; the buffer is this object's from now on."""
        self._current[client_id] = state
        self._arrived.set()

    def clear(self) -> None:
        """No client lives here."""
        self._current.clear()
        self._proposed.clear()

    def propose(self, client_id: str, state: Mapping[str, Any]) -> None:
        """Remember what the client wants to keep (copied)."""
        self._proposed[client_id] = Weights.of(state)

    def commit(self, only: Sequence[str] | None = None) -> list[str]:
        """Make what was proposed the clients' state (of those in `only`, if given); returns whose."""
        changed = [client_id for client_id in self._proposed if only is None or client_id in only]
        self._current.update({client_id: self._proposed[client_id] for client_id in changed})
        self._proposed.clear()
        return changed

    def forget_proposals(self) -> None:
        """A round begins, or begins anew: what was proposed before is void."""
        self._proposed.clear()

    async def send(self, node: Node, give: Mapping[str, int]) -> None:
        """Send clients to other ranks, by client; each lives here no more once it is sent."""
        async def part(client_id: str, rank: int) -> None:
            state = self._current[client_id]
            await node.send(rank, ClientState(client_id=client_id, layout=state.layout.to_dict()), state.buffer)
            self._current.pop(client_id, None)

        await together(*(part(client_id, rank) for client_id, rank in give.items()))

    async def wait_for(self, node: Node, take: Sequence[str]) -> None:
        """Wait until the clients of `take` have come; somebody else reads this node's messages."""
        while any(client_id not in self._current for client_id in take):
            self._arrived.clear()
            await node.attend(self._arrived.wait())

    def receive(self, incoming: Incoming, message: ClientState) -> None:
        """A client has come from another rank."""
        self.put(message.client_id, unpacked(message, incoming.buffer))


def unpacked(message: ClientState, buffer: np.ndarray | None) -> Weights:
    """What a client keeps, from a message and the array beside it (copied). Raises ProtocolError where they do not agree."""
    given = np.empty(0, np.uint8) if buffer is None else buffer
    try:
        layout = Layout.from_dict(message.layout)
    except (FederationError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"{message.client_id} has a state of no layout ({error})") from error
    if given.dtype != np.uint8 or given.shape != (layout.nbytes,):
        raise ProtocolError(f"{message.client_id} has a state of {layout.nbytes} bytes, and {given.nbytes} have come")
    state = Weights.zeros(layout)
    np.copyto(state.buffer, given)
    return state
