"""A partition that somebody has made, from a file."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import msgspec
import numpy as np

from federation.data.formats.arrays import read_npz
from federation.data.formats.damage import damage
from federation.data.partition import Partition
from federation.data.partitioners.apportion import check_count, offsets_of
from federation.errors import DataError


def file(labels: np.ndarray, num_clients: int, rng_seed: int, *, path: str) -> Partition:
    """Clients and their samples (indices into the training set, from 0), as a file says. Nothing is drawn.

    `.npz`: the arrays order and offsets of a Partition. `.json`: a list, or an object with the names "0", "1", ..., of
    lists of samples, one a client. `.csv`: the columns client and sample. Samples may be left out, but none may come
    twice, and each client needs one. A relative path is looked for in the current folder, one that
    begins with `~` in the home folder.

    Raises DataError, naming the file, for one that is missing, damaged, of another kind or for other data.
    """
    check_count("num_clients", num_clients)
    found = Path(os.path.expanduser(path))
    if found.suffix.lower() not in _READERS:
        raise DataError(f"path: {path!r} does not end in {', '.join(_READERS)}")
    if not found.is_file():
        raise DataError(f"path: {found.absolute()} does not exist; expected a partition")
    try:
        clients = _READERS[found.suffix.lower()](found)
    except OverflowError:
        raise DataError(f"{found} holds a number that is neither a client nor one of the samples 0 to {len(labels) - 1}") from None
    if len(clients) != num_clients:
        raise DataError(f"{found} has {len(clients)} clients; num_clients is {num_clients}")
    if empty := [client for client, samples in enumerate(clients) if len(samples) == 0]:
        raise DataError(f"{found}: client {empty[0]} has no samples ({len(empty)} clients have none)")
    order = np.concatenate(clients)
    if order.min() < 0 or order.max() >= len(labels):
        raise DataError(f"{found} names sample {order.min() if order.min() < 0 else order.max()}; the training set has 0 to "
                        f"{len(labels) - 1}")
    values, counts = np.unique(order, return_counts=True)
    if len(values) < len(order):
        first = int((counts > 1).argmax())
        raise DataError(f"{found} names sample {values[first]} {counts[first]} times; expected each once at most")
    return Partition(order, offsets_of(np.array([len(samples) for samples in clients])))


def _from_npz(path: Path) -> list[np.ndarray]:
    arrays = read_npz(path)
    if not {"order", "offsets"} <= set(arrays):
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected order and offsets")
    if any(array.dtype.kind not in "iu" for array in (arrays["order"], arrays["offsets"])):
        raise DataError(f"{path}: order and offsets must be whole numbers")
    try:
        partition = Partition(arrays["order"].astype(np.int64), arrays["offsets"].astype(np.int64))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return [partition.client(client) for client in range(partition.num_clients)]


def _from_json(path: Path) -> list[np.ndarray]:
    with damage(path, "JSON file"):
        content = path.read_bytes()
    try:
        clients = msgspec.json.decode(content, type=list[list[int]] | dict[str, list[int]])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a list of lists of samples, or an object of them") from error
    if isinstance(clients, dict):
        names = [str(client) for client in range(len(clients))]
        if set(names) != set(clients):
            strange = next(name for name in clients if name not in set(names))
            raise DataError(f"{path} has a client {strange!r}; expected the names \"0\" to \"{len(clients) - 1}\"")
        clients = [clients[name] for name in names]
    return [np.array(samples, np.int64) for samples in clients]


def _from_csv(path: Path) -> list[np.ndarray]:
    with damage(path, "CSV file"), open(path, newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if not {"client", "sample"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path} has the columns {', '.join(rows.fieldnames or ()) or 'none'}; expected client, sample")
        pairs = []
        for row in rows:
            try:
                pairs.append((int(row["client"]), int(row["sample"])))
            except (TypeError, ValueError):
                raise DataError(f"{path}, line {rows.line_num}: {row['client']!r}, {row['sample']!r} are not whole "
                                f"numbers") from None
    if not pairs:
        raise DataError(f"{path} has no rows; expected one for each sample")
    owner, samples = np.array(pairs, np.int64).T
    if owner.min() < 0 or owner.max() > len(pairs):
        raise DataError(f"{path} names client {owner.min() if owner.min() < 0 else owner.max()}; expected 0, 1, 2, ...")
    order = np.argsort(owner, kind="stable")
    return np.split(samples[order], np.cumsum(np.bincount(owner))[:-1])


_READERS = {".npz": _from_npz, ".json": _from_json, ".csv": _from_csv}
