"""A data set by its name: found, read or taken from the cache, and split."""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from federation.core.random import stream
from federation.data.cache import ArrayCache
from federation.data.dataset import Dataset
from federation.data.partition import Partition
from federation.data.partitioner import PARTITIONERS
from federation.data.partitioners.apportion import offsets_of
from federation.data.provider import DataProvider, Request
from federation.data.sources import find_source, refusal
from federation.errors import DataError

#: Parameters of sources that are not for users to set.
GIVEN = ("request", "seed")
#: Training samples from which on a partition is stored: below, making it costs less than finding it.
STORED_FROM = 1 << 20


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
        _check_settings(settings, inspect.signature(source.signature).parameters, name)
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
    if len(dataset.samples("validation")[1]) == 0:
        dataset = dataset.set_apart("validation", validation_fraction, stream(seed, "validation_split"))
    return dataset


def load_partition(name: str, dataset: Dataset, num_clients: int, *, seed: int = 0,
                   config: Mapping[str, Any] | None = None, cache: Path | None = None) -> Partition:
    """The partition of the training samples by the partitioner `name` of PARTITIONERS, with its settings `config`.

    Large ones are stored in `cache`, so that the processes of a machine share one: 8 bytes a sample each otherwise.
    Raises DataError for what is not possible.
    """
    partitioner, settings = PARTITIONERS[name], dict(config or {})
    needs_columns = "columns" in inspect.signature(partitioner).parameters
    columns = dataset.columns if needs_columns else {}

    def make() -> Partition:
        given = {"columns": columns} if needs_columns else {}
        return partitioner(dataset.y_train, num_clients, seed, **given, **settings)

    if cache is None or len(dataset.y_train) < STORED_FROM or name == "file":  # a file may have changed
        return make()
    key = {"partitioner": name, "settings": settings, "num_clients": num_clients, "seed": seed,
           "labels": _sha256(dataset.y_train), "columns": {key: _sha256(column) for key, column in columns.items()}}

    def arrays() -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        partition = make()
        return {"order": partition.order, "offsets": partition.offsets}, {}

    stored = ArrayCache(cache).get(f"partition-{name}", key, arrays).arrays
    return Partition(stored["order"], stored["offsets"])


def clients_test_samples(dataset: Dataset, partition: Partition, column: str) -> Partition | None:
    """Test samples for the clients of a partition by `column`: each has those of the users whose training samples it has.

    None where the data set does not know that column of its test samples. Users without a client are left out. The
    samples of a client are in the order of the test set.
    """
    users = dataset.test_columns.get(column)
    if users is None or len(users) == 0:
        return None
    owners = np.repeat(np.arange(partition.num_clients), partition.sizes)
    trained = dataset.columns[column][partition.order]
    known, first = np.unique(trained, return_index=True)
    at = np.minimum(np.searchsorted(known, users), len(known) - 1)
    samples = np.flatnonzero(known[at] == users)
    clients = owners[first][at[samples]]
    order = samples[np.argsort(clients, kind="stable")]
    return Partition(order, offsets_of(np.bincount(clients, minlength=partition.num_clients)))


def column_of(name: str, config: Mapping[str, Any]) -> str | None:
    """The column that the partitioner `name`, with its settings `config`, goes by; None for one that goes by none."""
    parameter = inspect.signature(PARTITIONERS[name]).parameters.get("column")
    return None if parameter is None else str(config.get("column", parameter.default))


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


def _check_settings(settings: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], name: str) -> None:
    known = [key for key in parameters if key not in GIVEN]
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in settings:
            raise DataError(f"{name} needs the setting {key} (dataset_config; known: {', '.join(known)})")
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            allowed = ", ".join(known) or "none"
            raise DataError(f"{name} has no setting {key!r}{hint} (dataset_config; known: {allowed})")
