"""Every place that samples come from, by the name of the data set (`data.dataset` in a configuration).

- `digits`, `synthetic`, `synthetic_regression`: built in, see `generated`.
- `mnist`, `cifar10`, `femnist` and others: published sets, from their publishers' files, see `published`.
- the path of a file, by how its name ends, a folder of `.npy` files, its name ending with /, and `leaf:FOLDER`, see `files`.
- `sklearn:NAME`, `openml:NAME`, `hf:NAME`, `torchvision:NAME`: sets of other libraries, see `libraries`.
- `package.module:factory`: a function of your own, see `factory`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from federation.data.provider import DataProvider, Request
from federation.data.sources.factory import factory
from federation.data.sources.files import SUFFIXES, leaf
from federation.data.sources.generated import GENERATED, generated
from federation.data.sources.libraries import LIBRARIES, library
from federation.data.sources.published import PUBLISHED


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
    if name in PUBLISHED:
        return _with_settings(PUBLISHED[name])
    prefix, colon, rest = name.partition(":")
    if colon and prefix in (*LIBRARIES, "leaf"):
        return _with_settings(leaf if prefix == "leaf" else library) if rest else None
    for suffix, open_file in SUFFIXES.items():
        if name.lower().endswith(suffix):
            return _with_settings(open_file)
    if ":" in name:
        return Source(factory, None)
    return None


def known() -> str:
    """All kinds of names, for messages."""
    suffixes = ", ".join(suffix for suffix in SUFFIXES if suffix != "/")
    return (f"{', '.join((*GENERATED, *PUBLISHED))}; the path of a {suffixes} file, or of a folder of .npy files (ending "
            f"with /), or leaf:FOLDER; {', '.join(f'{prefix}:NAME' for prefix in LIBRARIES)}; and package.module:factory")


def refusal(name: str) -> str:
    """What is wrong with a name that no source knows, and which ones there are."""
    near = difflib.get_close_matches(name.lower(), (*GENERATED, *PUBLISHED), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"there is no data set {name!r}: {hint}Known are {known()}"


def _with_settings(opener: Callable[..., DataProvider]) -> Source:
    return Source(lambda request, settings: opener(request, **settings), opener)
