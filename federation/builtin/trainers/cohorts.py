"""Who takes part in a round: the clients drawn, and by the virtual clock those of them that are in time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import final

from federation.config import LatencyConfig, TrainerConfig
from federation.data.availability import AvailableSampler, DayAndNight, read_trace
from federation.data.latency import Latency
from federation.data.sampling import SAMPLERS, Pool, Sampler, cohort_size_of, over_selected
from federation.errors import FederationError, RoundError
from federation.node.proxy import ClientProxy, ClientTable


@dataclass(frozen=True)
class Cohort:
    """The clients of a round that are to train, in table order.

    late: clients that were drawn as well, and are known to be too late. virtual_seconds: what the round takes by the
    virtual clock; None without a latency model. deadline: seconds by the real clock after which no further client is
    begun; None: no limit.
    """

    clients: Sequence[ClientProxy]
    late: int = 0
    virtual_seconds: float | None = None
    deadline: float | None = None


@final
class Cohorts:
    """Draws the cohorts that `config` describes: each a function of the seed, the round and the clients alone.

    Raises DataError for a trace of availability that cannot be read.
    """

    def __init__(self, config: TrainerConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._sampler = sampler_of(config)
        self._latency = latency_of(config.latency)
        self._ahead: tuple[int, Pool, Cohort] | None = None

    def prepare(self, table: ClientTable, round: int) -> None:
        """Draw the cohort of `round` ahead, while others work: `draw` returns it, unless clients have come or gone by then.

        What is wrong with it is raised by `draw`, in its round.
        """
        with suppress(FederationError):
            self._ahead = round, table.pool, self._drawn(table, round)

    def draw(self, table: ClientTable, round: int) -> Cohort:
        """The cohort of `round`.

        With `over_select`, more clients are drawn; by the virtual clock, the first `cohort_size` to finish count (of
        those that finish together, the first in the table), as far as they meet the deadline. The round closes as soon
        as all that it waits for have finished, or at the deadline. Raises RoundError, with numbers, where fewer than
        `min_clients` can be drawn or are in time.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == round and ahead[1] is table.pool:
            return ahead[2]
        return self._drawn(table, round)

    def _drawn(self, table: ClientTable, round: int) -> Cohort:
        config = self._config
        cohort_size = config.cohort_size or cohort_size_of(config.fraction or 1.0, len(table))
        if config.fraction is not None and cohort_size < config.min_clients:  # many are gone: else the configuration is refused
            raise RoundError(f"round {round}: {config.fraction:g} of {len(table)} clients is {cohort_size}, and min_clients is "
                             f"{config.min_clients}; the global weights stay as they were")
        count = cohort_size
        if config.over_select:
            count = max(count, min(over_selected(cohort_size, config.over_select), len(table)))
        drawn = table.draw(self._sampler, self._seed, round, count)
        if len(drawn) < config.min_clients:
            raise RoundError(f"round {round}: {len(drawn)} of {len(table)} clients {self._are_there}, "
                             f"and min_clients is {config.min_clients}; the global weights stay as they were")
        if config.clock == "real":
            return Cohort(drawn, deadline=config.deadline)
        if self._latency is None:
            return Cohort(drawn)
        return self._in_time(drawn, round, cohort_size, self._latency)

    def _in_time(self, drawn: Sequence[ClientProxy], round: int, cohort_size: int, latency: Latency) -> Cohort:
        deadline = self._config.deadline
        seconds = [latency.seconds(self._seed, client.client_id, round, client.num_samples) for client in drawn]
        first = sorted(range(len(drawn)), key=seconds.__getitem__)[:cohort_size]  # stable: ties by index
        counting = sorted(index for index in first if deadline is None or seconds[index] <= deadline)
        if len(counting) < self._config.min_clients:
            raise RoundError(f"round {round}: {len(counting)} of the {len(drawn)} clients drawn are done by the "
                             f"deadline, {deadline:g} s, and min_clients is {self._config.min_clients}; the first would be "
                             f"done after {seconds[first[0]]:.4g} s")
        closes = max(seconds[index] for index in counting) if len(counting) == len(first) else deadline
        return Cohort([drawn[index] for index in counting], len(drawn) - len(counting), closes)

    @property
    def _are_there(self) -> str:
        return "are available and have samples" if self._config.sampling == "availability" else "have samples"


def sampler_of(config: TrainerConfig) -> Sampler:
    """The sampler that `config` names. Raises DataError for a trace of availability that cannot be read."""
    if config.sampling != "availability":
        return SAMPLERS[config.sampling]
    given = config.availability
    if given.trace is not None:
        return AvailableSampler(read_trace(given.trace, given.period), given.round_length)
    model = DayAndNight(given.period or 24.0, given.share, given.peak, given.spread)
    return AvailableSampler(model, given.round_length)


def latency_of(config: LatencyConfig) -> Latency | None:
    """The model that `config` describes; None for none."""
    if config.kind is None:
        return None
    return Latency(config.kind, config.work_seconds, config.sample_seconds, config.spread, config.client_spread)
