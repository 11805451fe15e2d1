"""Every place that samples come from, by the name of the data set (`data.dataset` in a configuration).

- `digits`, `synthetic`, `synthetic_regression`: built in, see `generated`.
- the path of a file, by how its name ends, see `files`.
- `package.module:factory`: a function of your own, see `factory`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from federation.data.provider import DataProvider, Request
from federation.data.sources.factory import factory
from federation.data.sources.files import SUFFIXES
from federation.data.sources.generated import GENERATED, generated


@dataclass(frozen=True)
class Source:
    """What opens a data set. Its settings are the keyword parameters of `signature`; None: any, checked by the user's
    own function."""

    open: Callable[[Request, Mapping[str, Any]], DataProvider]
    signature: Callable[..., Any] | None


def find_source(name: str) -> Source | None:
    """What opens the data set `name`; None where no source knows such a name. Nothing is looked for on disk."""
    if name in GENERATED:
        return Source(generated, GENERATED[name])
    for suffix, open_file in SUFFIXES.items():
        if name.lower().endswith(suffix):
            return _with_settings(open_file)
    if ":" in name:
        return Source(factory, None)
    return None


def known() -> str:
    """All kinds of names, for messages."""
    return f"{', '.join(sorted(GENERATED))}, the path of a {', '.join(SUFFIXES)} file, and package.module:factory"


def refusal(name: str) -> str:
    """What is wrong with a name that no source knows, and which ones there are."""
    near = difflib.get_close_matches(name.lower(), GENERATED, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"there is no data set {name!r}: {hint}Known are {known()}"


def _with_settings(opener: Callable[..., DataProvider]) -> Source:
    return Source(lambda request, settings: opener(request, **settings), opener)
