"""A data set by its name: found, read or taken from the cache, and split."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.core.random import stream
from federation.data.cache import ArrayCache
from federation.data.dataset import Dataset
from federation.data.provider import DataProvider, Request
from federation.data.sources import find_source, refusal
from federation.errors import DataError

#: Parameters of sources that are not for users to set.
GIVEN = ("request", "seed")


def find_provider(name: str, *, root: str | None = None, seed: int = 0,
                  config: Mapping[str, Any] | None = None) -> DataProvider:
    """Where the samples of the data set `name` come from; `config` holds its settings.

    See `federation.data.sources` for the names. Files are looked for in `root`, the current folder by default. Raises
    DataError for an unknown name and for files that are missing.
    """
    source = find_source(name)
    if source is None:
        raise DataError(refusal(name))
    settings = dict(config or {})
    if source.signature is not None:
        _check_keys(settings, [key for key in inspect.signature(source.signature).parameters if key not in GIVEN], name)
    return source.open(Request(name, Path(root or "."), seed), settings)


def load_dataset(name: str, *, root: str | None = None, seed: int = 0, test_fraction: float = 0.2,
                 validation_fraction: float = 0.0, config: Mapping[str, Any] | None = None,
                 cache: Path | None = None) -> Dataset:
    """The data set `name`, see `find_provider`.

    Where it has no test set of its own, `test_fraction` of the samples become one, drawn by `seed`, each class giving
    its share; `validation_fraction` of the remaining ones become the validation set. `cache` is a folder in which what
    comes from files is stored once, for all processes to share; None: every process has its own copy.
    Raises DataError for what is unknown, missing, damaged or not as expected.
    """
    provider = find_provider(name, root=root, seed=seed, config=config)
    dataset, has_test = provider.dataset(None if cache is None else ArrayCache(cache))
    if not has_test:
        dataset = dataset.set_apart("test", test_fraction, stream(seed, "test_split"))
    if len(dataset.y_validation) == 0:  # type: ignore[arg-type]
        dataset = dataset.set_apart("validation", validation_fraction, stream(seed, "validation_split"))
    return dataset


def _check_keys(settings: Mapping[str, Any], known: list[str], name: str) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            allowed = ", ".join(known) or "none"
            raise DataError(f"{name} has no setting {key!r}{hint} (dataset_config; known: {allowed})")
