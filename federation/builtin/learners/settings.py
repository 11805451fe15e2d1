"""Settings of learners: what a `config` overrides for one call, and which values can be."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from federation.core.problems import number_problem, whole_number_problem

#: What the engine adds to a `config`; `metrics` are the names of those that the aggregator needs.
CONTEXT = ("round", "client_id", "metrics")


@dataclass(frozen=True)
class FitSettings:
    """What `config` may override for one call of `fit`."""

    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    client_lr: float = 0.1

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        steps = [] if self.local_steps is None else whole_number_problem("local_steps", self.local_steps)
        return [*whole_number_problem("local_epochs", self.local_epochs), *steps,
                *whole_number_problem("batch_size", self.batch_size), *number_problem("client_lr", self.client_lr)]

    def overridden(self, config: Mapping[str, Any] | None) -> FitSettings:
        """These settings with those of `config`; passes given there replace steps that were set here.

        Raises ValueError for an unknown key and for a value that cannot be.
        """
        given = overrides(config, tuple(self.__dataclass_fields__))
        if not given:
            return self
        if "local_epochs" in given:
            given.setdefault("local_steps", None)
        settings = replace(self, **given)
        if problems := settings.problems():
            raise ValueError(f"config: {'; '.join(problems)}")
        return settings


def metrics_wanted(config: Mapping[str, Any] | None, known: Sequence[str], who: str) -> Collection[str]:
    """The metrics that the aggregator needs beside those that `fit` reports anyway.

    Raises ValueError, naming `who` and what it knows, for another than the `known` ones.
    """
    wanted: Collection[str] = (config or {}).get("metrics", ())
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"config: {who} cannot report the metrics {', '.join(map(str, unknown))} (it can: "
                         f"{', '.join(known)}); the aggregator that asks for them needs another learner")
    return wanted


def overrides(config: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """The settings that `config` gives, `epochs` under its other name, `local_epochs`.

    Raises ValueError for a key that is neither `known` nor the engine's, with the nearest one.
    """
    given = {name: value for name, value in (config or {}).items() if name not in CONTEXT}
    if "epochs" in given:
        epochs = given.pop("epochs")
        if given.setdefault("local_epochs", epochs) != epochs:
            raise ValueError(f"config: epochs={epochs!r} and local_epochs={given['local_epochs']!r} are two words for "
                             "one thing; give one of them")
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"config: unknown key {name!r}{f'; did you mean {near[0]}?' if near else ''} "
                             f"(known: epochs, {', '.join(known)}; other settings are the constructor's)")
    return given
