"""One checkpoint as an HDF5 file, which h5py, h5dump and HDFView open.

    /model/<name>         the global model, one dataset an array
    /server/<key>...      the server's state (momentum and such): arrays and numbers, nested as given
    /clients/<id>/...     the private state of clients
    /metrics/<key>        the record of the round
    /layout               the model's names in their order, for people
    /structure            JSON: keys, order, types and dtypes of all the above; what `read` goes by
    attributes            format_version, round, metric, config_digest, run_id, versions (JSON), sha256

A name that HDF5 cannot take as it is (with "/", or empty) is percent-encoded. bfloat16 is stored as uint16, other
ml_dtypes likewise; the true dtype is in /structure. `sha256` is over everything else. Reading runs no code from the
file, follows no link to another file and takes no filter or external storage.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from federation.core.weights import Weights
from federation.errors import CheckpointError, FederationError
from federation.infra.hdf5_io import Datasets, Output, load_h5py
from federation.infra.state_tree import Leaf, flatten, leaf_digest, rebuild

FORMAT_VERSION = 1

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PARTS = ("model", "server", "clients", "metrics")
# What HDF5, h5py and NumPy raise on a file that is not what it seems.
_DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError, MemoryError)


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after `round`.

    `server`, `clients` and `metrics` hold arrays, Weights, NumPy scalars, int, float, bool, str, bytes and None,
    nested in dicts (keys: str or int), lists and tuples; all come back as they were, dtypes and order included.
    `metric` ranks checkpoints, higher is better. `versions` are those of the libraries that wrote the file.
    """

    round: int
    weights: Weights
    server: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict)
    config_digest: str = ""
    run_id: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metric: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def write(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Write `snapshot` to `path`, replacing a file there only once the new one is complete and on the disk.

    The file is built under a temporary name in the same folder. Raises CheckpointError, and leaves `path` as it was,
    when the state holds something that cannot be stored or the file cannot be written.
    """
    target = Path(path)
    h5py = load_h5py()
    structure, leaves = flatten(
        {"model": snapshot.weights, "server": snapshot.server, "clients": snapshot.clients, "metrics": snapshot.metrics}
    )
    temporary = target.with_name(temporary_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Output(temporary) as output:
            # From 1.10 on, the format has checksums over its own tables.
            with h5py.File(output, "w", libver=("v110", "v110")) as file:
                _fill(file, snapshot, structure, leaves, output)
            output.finish()
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # a file system that has become read-only refuses this as well
            pass
        if isinstance(error, _DAMAGE):
            raise CheckpointError(
                f"cannot write the checkpoint {target}: {_reason(error)}. Earlier checkpoints are as they were. Check "
                "the folder's free space, quota and permissions."
            ) from error
        raise


def read(path: str | os.PathLike[str]) -> Snapshot:
    """The checkpoint at `path`, verified against its digest. Its arrays are new, writeable and the caller's.

    Raises CheckpointError, with the path and the reason, for a file that is missing, damaged or something else.
    """
    target = Path(path)
    try:
        with open(target, "rb") as raw:
            start = raw.read(len(_SIGNATURE))
            size = os.fstat(raw.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {target}: {error.strerror or error}") from error
    if start != _SIGNATURE:
        raise _damaged(target, _foreign(start, size))
    h5py = load_h5py()
    try:
        with h5py.File(target, "r", locking=False) as file:
            return _parse(file, size)
    except RecursionError as error:
        raise _damaged(target, "it is nested too deeply") from error
    except FederationError as error:
        raise _damaged(target, str(error)) from error
    except _DAMAGE as error:
        raise _damaged(target, _reason(error)) from error


def read_metric(path: Path) -> float | None:
    """The metric that ranks the checkpoint at `path`, without reading or verifying the rest; None where it has none."""
    try:
        with load_h5py().File(path, "r", locking=False) as file:
            metric = float(file.attrs["metric"])
    except _DAMAGE:  # damaged or foreign: it ranks nowhere, and `read` will say so
        return None
    return None if np.isnan(metric) else metric


def temporary_name(name: str) -> str:
    """The name of the file `name` while this process writes it."""
    return f".{name}.{socket.gethostname()}.{os.getpid()}.tmp"


def _attributes(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "round": snapshot.round,
        "metric": float("nan") if snapshot.metric is None else float(snapshot.metric),
        "config_digest": snapshot.config_digest,
        "run_id": snapshot.run_id,
        "versions": json.dumps(dict(snapshot.versions or _versions()), sort_keys=True),
    }


def _fill(file: Any, snapshot: Snapshot, structure: str, leaves: list[Leaf], output: Output) -> None:
    attributes = _attributes(snapshot)
    for name, value in attributes.items():
        _set_attribute(file, name, value)
    for part in _PARTS:
        file.create_group(part)
    groups: dict[tuple[str, ...], Any] = {}
    for leaf in leaves:
        *parents, link = leaf.path
        group = groups.get(tuple(parents))
        if group is None:
            group = groups[tuple(parents)] = file.require_group("/".join(parents))
        group.create_dataset(link, data=leaf.stored, track_times=False)
        output.check()
    names = [name.encode("utf-8", "backslashreplace") for name in snapshot.weights.names]
    file.create_dataset("layout", data=np.array(names, _text_type(max(map(len, names), default=0))), track_times=False)
    file.create_dataset("structure", data=np.bytes_(structure), track_times=False)
    _set_attribute(file, "sha256", leaf_digest(json.dumps(attributes, sort_keys=True), structure, leaves))


def _parse(file: Any, size: int) -> Snapshot:
    missing = {"format_version", "sha256"} - set(file.attrs)
    if missing:
        raise CheckpointError("it is an HDF5 file, but not a checkpoint of this package")
    version = int(file.attrs["format_version"])
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"its format version is {version}, and this release reads {FORMAT_VERSION}: use the release that wrote it"
        )
    attributes = {
        "format_version": version,
        "round": int(file.attrs["round"]),
        "metric": float(file.attrs["metric"]),
        **{name: file.attrs[name].decode() for name in ("config_digest", "run_id", "versions")},
    }
    datasets = Datasets(file, size)
    structure = bytes(datasets["structure",][()]).decode()
    leaves: list[Leaf] = []

    def fetch(path: tuple[str, ...], out: np.ndarray) -> None:
        dataset = datasets[path]
        if dataset.dtype != out.dtype or dataset.shape != out.shape:
            found, wanted = f"{dataset.dtype} {dataset.shape}", f"{out.dtype} {out.shape}"
            raise CheckpointError(f"{'/'.join(path)} is {found}, and {wanted} is on record")
        if out.size:
            dataset.read_direct(out)
        leaves.append(Leaf(path, out))

    contents = rebuild(structure, fetch)
    if leaf_digest(json.dumps(attributes, sort_keys=True), structure, leaves) != file.attrs["sha256"].decode():
        raise CheckpointError("its contents do not match its SHA-256")
    metric = attributes["metric"]
    return Snapshot(
        round=attributes["round"],
        weights=contents["model"],
        server=contents["server"],
        clients=contents["clients"],
        config_digest=attributes["config_digest"],
        run_id=attributes["run_id"],
        metrics=contents["metrics"],
        metric=None if np.isnan(metric) else metric,
        versions=json.loads(attributes["versions"]),
    )


def _set_attribute(file: Any, name: str, value: Any) -> None:
    if isinstance(value, str):
        text = value.encode()
        # Of fixed length: HDF5 keeps text of variable length in a heap that has no checksum.
        file.attrs.create(name, np.bytes_(text), dtype=_text_type(len(text)))
    else:
        file.attrs[name] = value


def _text_type(length: int) -> Any:
    return load_h5py().string_dtype("utf-8", max(1, length))


def _versions() -> dict[str, str]:
    """Versions of what took part in making the weights, as far as it is in memory."""
    h5py = load_h5py()
    versions = {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version}
    for name in ("federation", "numpy", "h5py", "torch", "sklearn"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            versions[name] = str(version)
    return versions


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _foreign(start: bytes, size: int) -> str:
    if size == 0:
        return "it is empty"
    if start.startswith((b"PK", b"\x80")):
        return "it is a pickle or an archive, as torch.save writes them; it was not loaded, as that could run its code"
    return "it is not an HDF5 file"


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is damaged or no checkpoint: {reason}. Resume from an earlier round, or with "
        "--resume auto, which takes the newest whole one."
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.EAGAIN, 524):
        return f"{os.strerror(error.errno)}; set HDF5_USE_FILE_LOCKING=FALSE, as this file system has no locks"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # HDF5 tells the same in ten lines, which stay with the cause
    return f"{type(error).__name__}: {error}"
