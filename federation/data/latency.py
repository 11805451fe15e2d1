"""How long clients take in a simulation: seconds that are a function of (seed, client, piece of work) alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np

from federation.core.random import stream_seed
from federation.data.draws import exp_of, log_of
from federation.errors import ConfigError

LatencyKind = Literal["constant", "uniform", "exponential", "lognormal"]
MAX_SECONDS = 1e9  # about 30 years
MAX_SIGMA = 10.0


@final
@dataclass(frozen=True)
class Latency:
    """A model of the seconds that a client takes for a piece of work: one training, from its start to its report.

    The work of a client with n samples has the nominal duration D = `work_seconds` + `sample_seconds` * n. The client
    takes D * s * x, where s, its slowness, is drawn once for each client, and x once for each piece of work:

    - `kind`: the distribution of x. constant: 1. uniform: on [1 - `spread`, 1 + `spread`]. exponential: with mean 1.
      lognormal: exp(`spread` * z), z standard normal, so that the median is 1.
    - `client_spread`: s is exp(`client_spread` * z), with median 1; 0 makes all clients equally fast.

    Seconds are above 0, finite, and the same bits on every platform. Raises ConfigError, with all that is wrong, for a
    kind or a number that cannot be: `work_seconds` and `sample_seconds` from 0 to 1e9, not both 0; `spread` from 0 to
    1 where uniform, to 10 where lognormal, and 0 where the kind has none; `client_spread` from 0 to 10.
    """

    kind: LatencyKind = "constant"
    work_seconds: float = 1.0
    sample_seconds: float = 0.0
    spread: float = 0.0
    client_spread: float = 0.0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError(problems)

    def seconds(self, seed: int, client_id: str, number: int, num_samples: int) -> float:
        """Seconds that client `client_id` takes for its piece of work `number`.

        number: the round where rounds are synchronous, else the count of what the client was given before; at least 0.
        num_samples: the client's training samples. Raises ValueError for a number below 0.
        """
        if number < 0 or num_samples < 0:
            raise ValueError(f"piece of work {number} of {client_id}, {num_samples} samples: neither may be negative")
        nominal = self.work_seconds + self.sample_seconds * num_samples
        # A client without samples has nothing to do; a tiny duration keeps events in order where work is free.
        return float(max(nominal, 1e-9) * self.slowness(seed, client_id) * self._variate(seed, client_id, number))

    def slowness(self, seed: int, client_id: str) -> float:
        """The factor by which client `client_id` is slower than the median client, for all that it does."""
        if self.client_spread == 0:
            return 1.0
        return exp_of(self.client_spread * _normal(seed, "slowness", 0, client_id))

    def _variate(self, seed: int, client_id: str, number: int) -> float:
        if self.kind == "constant" or (self.kind != "exponential" and self.spread == 0):
            return 1.0
        if self.kind == "lognormal":
            return exp_of(self.spread * _normal(seed, "latency", number, client_id))
        u = _uniform(seed, "latency", number, client_id)
        return -log_of(u) if self.kind == "exponential" else 1.0 + self.spread * (2.0 * u - 1.0)

    def _problems(self) -> list[str]:
        if self.kind not in get_args(LatencyKind):
            return [f"latency: kind {self.kind!r} is not known; allowed are {', '.join(get_args(LatencyKind))}"]
        most = {"uniform": 1.0, "lognormal": MAX_SIGMA}.get(self.kind, 0.0)
        limits = {"work_seconds": MAX_SECONDS, "sample_seconds": MAX_SECONDS, "spread": most,
                  "client_spread": MAX_SIGMA}
        problems = [f"latency: {name} {getattr(self, name)!r} is not a number from 0 to {limit:g}"
                    for name, limit in limits.items() if not _is_within(getattr(self, name), limit)]
        if problems and most == 0 and _is_within(self.spread, MAX_SIGMA) and self.spread:
            problems = [text for text in problems if not text.startswith("latency: spread")]
            problems.append(f"latency: {self.kind} has no spread, and spread is {self.spread!r}; leave it out, or set "
                            "kind: uniform or lognormal")
        if not problems and self.work_seconds == self.sample_seconds == 0:
            problems.append("latency: work_seconds and sample_seconds are both 0, so that nothing would take any time; "
                            "set one of them")
        return problems


def _is_within(value: object, most: float) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= most  # type: ignore[arg-type, operator]


# A server asks for thousands of single variates while its ranks wait. So they are made of the 63 bits of a stream's
# seed: a generator, and arrays of one element, would take ten times as long.

def _uniform(seed: int, purpose: str, number: int, client_id: str) -> float:
    """A variate in the open interval (0, 1), of 52 bits."""
    return ((stream_seed(seed, purpose, number, client_id) >> 11) + 0.5) * 2.0**-52


def _normal(seed: int, purpose: str, number: int, client_id: str) -> float:
    """A standard normal variate (Marsaglia's polar method)."""
    attempt, square = 0, 1.0
    while square >= 1.0:
        a, b = (2.0 * _uniform(seed, f"{purpose} {attempt} {axis}", number, client_id) - 1.0 for axis in "ab")
        attempt, square = attempt + 1, a * a + b * b
    return a * math.sqrt(-2.0 * log_of(square) / square)
