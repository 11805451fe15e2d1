"""What the server knows of clients that keep state: where each lives, and copies for the checkpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from federation.core.weights import Weights
from federation.node.client_state import ClientStates
from federation.node.orders import expect
from federation.node.protocol import Move, Moved
from node_comm.node import Node, together

#: A copy of what a client keeps, by (client, rank, whether what it proposes to keep is meant); None where it is lost.
Fetch = Callable[[str, int, bool], Awaitable[Weights | None]]


class StateKeeper:
    """Moves clients between ranks with what they keep, and collects it. O(clients that keep something).

    `here` are the states on the server's own rank. A client may train anywhere; where placement puts it, its state goes
    before. Nothing is known, and nothing is sent, of clients that keep nothing.
    """

    def __init__(self, here: ClientStates) -> None:
        self.homes: dict[str, int] = {}  # the rank where each client lives that keeps state
        self._here = here
        self._copies: dict[str, Weights] = {}  # of those that live elsewhere, as of the last `collect`
        self._changed: set[str] = set()  # whose copy is old, or missing
        self._proposed: dict[str, int] = {}  # where clients want to keep new state, once the round commits
        self._staged: dict[str, Weights] = {}  # copies of that, of those that live elsewhere

    def propose(self, ranks: Mapping[str, int]) -> None:
        """These clients have trained on these ranks, and keep something if the round commits; others do not."""
        self._proposed = dict(ranks)
        self._staged = {}

    def forget_proposals(self) -> None:
        """The round is done again: what was proposed in it is void."""
        self._here.forget_proposals()  # `lose` puts there what was fetched of it
        self.propose({})

    def commit(self) -> None:
        """The round counts."""
        self._here.commit()
        self.homes |= self._proposed
        self._changed.update(self._proposed)
        self._copies |= self._staged
        self._changed.difference_update(self._staged)
        self._proposed, self._staged = {}, {}

    @property
    def proposed(self) -> list[str]:
        """The clients that will keep something new if the round commits."""
        return sorted(self._proposed)

    def lose(self, rank: int) -> list[str]:
        """`rank` is gone, and will not be asked again: its clients live here now, as of the last copy, or as they will be where
        that has been fetched; returns those of whom there is no copy, who begin anew."""
        forgotten = []
        for client_id in [client_id for client_id, home in self.homes.items() if home == rank]:
            copy = self._copies.get(client_id)
            if copy is None or client_id in self._changed:
                del self.homes[client_id]
                self._copies.pop(client_id, None)
                self._changed.discard(client_id)
                forgotten.append(client_id)
            else:
                self._here.put(client_id, copy)
                self.homes[client_id] = 0
        for client_id in [client_id for client_id, home in self._proposed.items() if home == rank]:
            del self._proposed[client_id]
            if client_id in self._staged:
                self._here.propose(client_id, dict(self._staged[client_id].items()))
                self._proposed[client_id] = 0
        return [client_id for client_id in forgotten if client_id not in self._proposed]

    def note(self, client_id: str, rank: int) -> None:
        """This client keeps something new on `rank`, outside of any round."""
        self.homes[client_id] = rank
        self._changed.add(client_id)

    def moves(self, shares: Mapping[int, Sequence[str]]) -> bool:
        """Whether `bring` would have anything to do."""
        return any(self.homes.get(client_id, rank) != rank for rank, share in shares.items() for client_id in share)

    async def bring(self, node: Node, shares: Mapping[int, Sequence[str]]) -> None:
        """Have the clients moved that are wanted on another rank than theirs: one message a client, rank to rank."""
        give: dict[int, dict[str, int]] = {}
        take: dict[int, list[str]] = {}
        for rank, share in shares.items():
            for client_id in share:
                home = self.homes.get(client_id, rank)
                if home != rank:
                    give.setdefault(home, {})[client_id] = rank
                    take.setdefault(rank, []).append(client_id)
                    self.homes[client_id] = rank
        if not give:
            return

        async def move(rank: int) -> None:
            answer, _ = await node.request(rank, Move(give=give.get(rank, {}), take=take.get(rank, [])))
            expect(answer, Moved)

        try:
            await together(*(move(rank) for rank in sorted({*give, *take} - {0})), self._here.send(node, give.get(0, {})),
                           self._here.wait_for(node, take.get(0, [])))
        except BaseException:
            still_here = [client_id for client_id in give.get(0, {}) if client_id in self._here]
            self.homes |= dict.fromkeys(still_here, 0)
            self._changed.update(set(still_here) - self._copies.keys())  # `lose` may have forgotten it meanwhile
            raise

    async def collect(self, fetch: Fetch, coming: bool = False) -> dict[str, Weights]:
        """What every client keeps, as of the last commit, by client; borrowed. With `coming`, as it will be once the round
        commits that has been trained.

        One call of `fetch` for each client that has changed since it was fetched the last time, and lives on another rank;
        None where it lives nowhere any more.
        """
        for client_id in sorted(self._changed | (self._proposed.keys() if coming else set())):
            is_coming = coming and client_id in self._proposed  # a rank may be lost while another one's clients are fetched
            home = (self._proposed if is_coming else self.homes).get(client_id, 0)
            if home and client_id not in self._staged:
                state = await fetch(client_id, home, is_coming)
                if state is None:
                    self.homes.pop(client_id, None)
                elif not is_coming:
                    self._copies[client_id] = state
                    self._changed.discard(client_id)
                elif client_id in self._proposed:
                    self._staged[client_id] = state
        proposed = self._proposed if coming else {}
        homes = self.homes | proposed
        here = {client_id: self._here.whole(client_id, client_id in proposed) for client_id, rank in homes.items() if rank == 0}
        return {client_id: here[client_id] if client_id in here else self._copy(client_id, client_id in proposed)
                for client_id in sorted(homes)}

    def _copy(self, client_id: str, coming: bool) -> Weights:
        return self._staged[client_id] if coming else self._copies[client_id]

    def whole(self) -> dict[str, Weights] | None:
        """What every client keeps, where all that keep something live here; None where a rank must be asked."""
        if any(self.homes.values()):
            return None
        return {client_id: self._here.whole(client_id) for client_id in sorted(self.homes)}

    def adopt(self, states: Mapping[str, Weights]) -> None:
        """Take on what `collect` returned in an earlier life, and nothing else; clients move on from here when they are
        wanted."""
        self._here.clear()
        self._copies.clear()
        self._changed.clear()
        self._proposed.clear()
        self._staged.clear()
        self.homes.clear()
        for client_id, state in states.items():
            self._here.put(client_id, state)
            self.homes[client_id] = 0
            self._copies[client_id] = state
