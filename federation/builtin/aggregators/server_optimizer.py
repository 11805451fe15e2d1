"""What the aggregators have in common that treat the mean update as a gradient."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np

from federation.core.aggregator import WEIGHTINGS, MeanAggregator, RoundStats, Weighting
from federation.core.problems import choice_problem
from federation.core.schedule import Schedule
from federation.core.weights import Layout, Weights, rounded
from federation.errors import ConfigError

#: Elements that are worked on at a time, so that intermediate values stay in the cache.
BLOCK = 1 << 15


class ServerSettings(TypedDict, total=False):
    """The settings of every ServerOptimizer; `lr_*` are those of a Schedule of `server_lr` over rounds."""

    server_lr: float
    weighting: Weighting
    lr_schedule: Literal["constant", "step", "cosine"]
    lr_rounds: int | None
    lr_warmup_rounds: int
    lr_step_rounds: int | None
    lr_gamma: float
    lr_floor: float


class ServerOptimizer(MeanAggregator):
    """x += what `move` makes of the mean difference (Reddi et al. 2021, "Adaptive federated optimization", Algorithm 1).

    Only parameters are moved so; buffers and integers take the mean. Computed as float64, element by element, and
    rounded once to the model's dtype; `memory` is kept in float32 (float64 for a float64 array), begins at zero, and is
    the state that survives a restart.
    """

    #: Names of the vectors, each as long as the parameters, that are kept from round to round.
    memory: ClassVar[tuple[str, ...]] = ()
    #: See MeanAggregator: of those that all have, only `weighting` has to do with what an update counts.
    server_settings: ClassVar = frozenset(ServerSettings.__annotations__) - {"weighting"}

    def __init__(self, *, server_lr: float = 1.0, weighting: Weighting = "samples",
                 lr_schedule: Literal["constant", "step", "cosine"] = "constant", lr_rounds: int | None = None,
                 lr_warmup_rounds: int = 0, lr_step_rounds: int | None = None, lr_gamma: float = 0.1,
                 lr_floor: float = 0.0) -> None:
        self.server_lr = server_lr
        self.weighting = weighting
        self.schedule = Schedule(lr_schedule, lr_rounds, lr_warmup_rounds, lr_step_rounds, lr_gamma, lr_floor)
        check_settings([*self.schedule.problems(), *choice_problem("weighting", weighting, WEIGHTINGS)],
                       server_lr=(server_lr, 0, math.inf))
        self._memory: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.memory}

    @abstractmethod
    def move(self, difference: np.ndarray, server_lr: float, *memory: np.ndarray) -> np.ndarray:
        """What to add to the start, float64[n], for the mean's difference from it, float64[n].

        `memory` are float64[n] each, in the order of the class's `memory`; what is written into them is kept.
        """

    def step(self, start: Weights, mean: Weights, stats: RoundStats) -> None:
        """Move from the start by what the rule makes of the mean."""
        self._prepare(start.layout)
        server_lr = self.server_lr * self.schedule.factor(max(1, stats.round))
        for index in start.layout.parameters:
            name = start.layout.names[index]
            kept = [self._memory[slot][name] for slot in self.memory]
            target, begun = mean[index].reshape(-1), start[index].reshape(-1)
            for first in range(0, len(target), BLOCK):
                part = slice(first, first + BLOCK)
                here = begun[part].astype(np.float64)
                wide = [vector[part].astype(np.float64) for vector in kept]
                moved = self.move(target[part].astype(np.float64) - here, server_lr, *wide)
                target[part] = rounded(here + moved, target.dtype)
                for vector, values in zip(kept, wide, strict=True):
                    vector[part] = values

    def state(self) -> dict[str, Any]:
        """The memory, by vector and parameter."""
        return {slot: dict(arrays) for slot, arrays in self._memory.items() if arrays}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take on what `state` returned."""
        if unknown := set(state).difference(self.memory):
            raise ValueError(f"{type(self).__name__} keeps {', '.join(self.memory) or 'nothing'}, but was given "
                             f"{', '.join(sorted(unknown))}")
        for slot in self.memory:
            self._memory[slot] = {name: np.array(array) for name, array in state.get(slot, {}).items()}

    def _prepare(self, layout: Layout) -> None:
        sizes = {layout.names[index]: math.prod(layout.shapes[index]) for index in layout.parameters}
        wide = {layout.names[index] for index in layout.parameters if layout.dtypes[index] == np.float64}
        for slot, arrays in self._memory.items():
            if not arrays:
                arrays.update({name: np.zeros(size, np.float64 if name in wide else np.float32)
                               for name, size in sizes.items()})
            elif {name: array.size for name, array in arrays.items()} != sizes:
                raise ValueError(f"{type(self).__name__}: {slot} belongs to another model: it has "
                                 f"{', '.join(arrays)}, the model has {', '.join(sizes)}")


def check_settings(problems: Sequence[str] = (), **numbers: tuple[float, float, float]) -> None:
    """Raise ConfigError for `problems`, and for each value (the first of three) that is not above the second and below
    the third; -0.0 as the second lets 0 through."""
    found = list(problems)
    for name, (value, above, below) in numbers.items():
        lets_equal = above == 0 and math.copysign(1, above) < 0
        if not (above < value < below or (lets_equal and value == above)):
            found.append(f"{name}={value!r} is not a number {'of at least' if lets_equal else 'above'} {abs(above):g}"
                         + (f" and {'at most' if below > round(below) else 'below'} {below:g}" if below < math.inf else ""))
    if found:
        raise ConfigError([f"aggregator_config: {problem}" for problem in found])
