"""Which rank trains which client of a cohort. Placement never changes results, only how long a round takes."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Literal

from federation.errors import FederationError
from federation.node.protocol import FitReport
from federation.node.proxy import ClientProxy

Policy = Literal["balanced", "last_rank"]


#: Ranks whose clients took what was expected of them, within this part, will do so again.
SURPRISE = 0.1


class Costs:
    """What a client's training costs, in seconds: measured where it was, else from its number of samples."""

    def __init__(self) -> None:
        self._surprise: float | None = None
        self._measured: dict[str, float] = {}
        self._seconds = 0.0
        self._samples = 0

    def observe(self, client_id: str, num_samples: int, seconds: float) -> None:
        """Remember how long `client_id` took, halving the weight of what was known before."""
        known = self._measured.get(client_id, seconds)
        self._measured[client_id] = 0.5 * (known + seconds)
        self._seconds += seconds
        self._samples += num_samples

    def compare(self, expected: Mapping[int, float], taken: Mapping[int, float]) -> None:
        """A round is over, in which ranks were `expected` to train for so long (by `of`, before it), and have `taken` so long."""
        ratios = [taken[rank] / seconds for rank, seconds in expected.items() if seconds > 0 and taken[rank] > 0]
        self._surprise = max(ratios) / min(ratios) - 1 if ratios and min(ratios) > 0 else None

    @property
    def are_doubtful(self) -> bool:
        """Whether they are seconds, and may be wrong for some ranks more than for others, as they were in the last round."""
        return self._seconds > 0 and (self._surprise is None or self._surprise > SURPRISE)

    def of(self, client_id: str, num_samples: int) -> float:
        """The expected seconds of `client_id`; before anything was measured, its samples."""
        if client_id in self._measured:
            return self._measured[client_id]
        return num_samples * (self._seconds / self._samples if self._samples else 1.0)


class Placement:
    """Gives each client to a rank, and learns from reports what clients cost."""

    def __init__(self, policy: Policy = "balanced") -> None:
        self.policy: Policy = policy
        self.costs = Costs()

    @property
    def is_doubtful(self) -> bool:
        """Whether some ranks may take longer than others where the policy wants all to take the same."""
        return self.policy == "balanced" and self.costs.are_doubtful

    def shares(self, clients: Sequence[ClientProxy], ranks: Sequence[int],
               preferred: Mapping[str, int]) -> dict[int, list[str]]:
        """Which of `ranks` does which of these clients; `preferred` as in `place`."""
        homes = {client.client_id: client.rank for client in clients if client.rank is not None}
        return place(self.seconds_of(clients), homes, ranks, self.policy, preferred)

    def seconds_of(self, clients: Sequence[ClientProxy]) -> dict[str, float]:
        """What these clients are expected to take."""
        return {client.client_id: self.costs.of(client.client_id, client.num_samples) for client in clients}

    def observe(self, reports: Mapping[int, FitReport]) -> None:
        """A round is over: learn from what ranks report."""
        expected = {rank: sum(self.costs.of(outcome.client_id, outcome.num_samples) for outcome in report.outcomes)
                    for rank, report in reports.items()}
        self.costs.compare(expected, {rank: sum(outcome.seconds for outcome in report.outcomes)
                                      for rank, report in reports.items()})
        for report in reports.values():
            for outcome in report.outcomes:
                self.costs.observe(outcome.client_id, outcome.num_samples, outcome.seconds)


def place(costs: Mapping[str, float], homes: Mapping[str, int], ranks: Sequence[int], policy: Policy = "balanced",
          preferred: Mapping[str, int] | None = None) -> dict[int, list[str]]:
    """Share the clients of `costs` among `ranks`: longest first, each onto the least loaded rank (Graham 1969).

    A client in `homes` goes to its own rank whatever the load. One in `preferred`, whose state is on that rank already,
    goes there as long as the rank stays within an equal share of the whole cost. Every rank has an entry, empty where it idles.
    Raises FederationError for a client in `homes` whose rank is not there.
    The policy `last_rank` is the worst case, for tests: all clients on the last rank, shortest first.
    """
    shares: dict[int, list[str]] = {rank: [] for rank in ranks}
    load = dict.fromkeys(ranks, 0.0)
    free = []
    for client_id, cost in costs.items():
        if client_id in homes:
            if homes[client_id] not in shares:
                raise FederationError(f"{client_id} is not connected any more: get_connected_clients says who is")
            shares[homes[client_id]].append(client_id)
            load[homes[client_id]] += cost
        else:
            free.append(client_id)
    free.sort(key=lambda client_id: (-costs[client_id], client_id))
    if policy == "last_rank":
        shares[ranks[-1]].extend(reversed(free))
        return shares
    if preferred:
        share = sum(costs.values()) / len(ranks)
        moving = []
        for client_id in free:
            rank = preferred.get(client_id, -1)
            if rank in load and load[rank] + costs[client_id] <= share:
                shares[rank].append(client_id)
                load[rank] += costs[client_id]
            else:
                moving.append(client_id)
        free = moving
    heap = [(seconds, rank) for rank, seconds in load.items()]
    heapq.heapify(heap)
    for client_id in free:
        seconds, rank = heap[0]
        shares[rank].append(client_id)
        heapq.heapreplace(heap, (seconds + costs[client_id], rank))
    return shares
