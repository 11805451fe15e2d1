"""Arrays that are converted once and memory-mapped by every process after that.

The ranks of a node then share one copy, that of the operating system's page cache. An entry is a folder of `.npy`
files and a `manifest.json`, written aside and moved into place when it is whole: whoever is killed while writing leaves
nothing that could be taken for data.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federation.errors import DataError

logger = logging.getLogger(__name__)

#: Counts up when entries of before must not be used any more.
FORMAT = 1

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Stored:
    """An entry: its arrays, memory-mapped and read-only, and the facts that were stored with them."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


class ArrayCache:
    """Entries in `folder`, which is made where it does not exist. Any number of processes and jobs may share it.

    On file systems without flock, two processes that meet may both do the work; the first to finish wins, and both
    read the same files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, key: Mapping[str, Any],
            make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]) -> Stored:
        """The entry of `key` (JSON values that say all that it depends on), made by `make` where there is none.

        `name` is what a person sees; `make` returns the arrays and the facts (JSON values). Raises DataError for a
        folder that cannot be written, a disk that is full, and an entry that somebody has damaged.
        """
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        entry = self.folder / f"{_plain(name)}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        if not (entry / _MANIFEST).is_file():
            with self._lock(entry) as is_locked:
                if not (entry / _MANIFEST).is_file():
                    arrays, facts = make()
                    with self._writing(entry):
                        if is_locked:
                            self._sweep(entry)
                        self._write(entry, arrays, facts)
        return _open(entry)

    def _write(self, entry: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        aside = self.folder / f".{entry.name}.{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            for name, array in arrays.items():
                _write_array(aside / f"{name}.npy", np.ascontiguousarray(array))
            sizes = {name: (aside / f"{name}.npy").stat().st_size for name in arrays}
            with open(aside / _MANIFEST, "w", encoding="utf-8") as file:
                json.dump({"sizes": sizes, "facts": dict(facts)}, file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.rename(aside, entry)
            except OSError as error:
                if not (entry / _MANIFEST).is_file():  # else another process was first: its entry is the same
                    if entry.is_dir():
                        raise DataError(f"{_damage(entry)} (there is no {_MANIFEST} in it)") from error
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # gone already when all went well

    def _sweep(self, entry: Path) -> None:
        """Remove what killed writers of `entry` left; only the holder of its lock may."""
        for left in self.folder.glob(f".{entry.name}.*"):
            if left.is_dir():
                shutil.rmtree(left)

    @contextmanager
    def _lock(self, entry: Path) -> Iterator[bool]:
        """Wait for the lock of `entry`; yields whether this file system has locks at all."""
        with self._writing(entry):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / f".{entry.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that writes %s", entry)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                logger.debug("%s: no flock on this file system (%s)", self.folder, error)
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    @contextmanager
    def _writing(self, entry: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"the data cache {self.folder} cannot be written ({type(error).__name__}: "
                            f"{error.strerror or error}; for {entry.name}): free space or set data.cache to another "
                            f"folder, or to 'off', which keeps a copy in every process") from error


def _write_array(path: Path, array: np.ndarray) -> None:
    """As numpy.save does, but for its tofile, which says of a full disk only that bytes are missing."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _open(entry: Path) -> Stored:
    """The arrays of a whole entry. What is no longer as it was written is refused: others may have it mapped."""
    damage = _damage(entry)
    try:
        manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        arrays: dict[str, np.ndarray] = {}
        for name, size in manifest["sizes"].items():
            path = entry / f"{name}.npy"
            if path.stat().st_size != size:
                raise DataError(f"{damage} ({path.name} has {path.stat().st_size} bytes; expected {size})")
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            arrays[name] = mapped.view(np.ndarray)
        return Stored(arrays, manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{damage} ({type(error).__name__}: {error})") from error


def _damage(entry: Path) -> str:
    return f"{entry} is damaged: delete that folder, and it is made again"


def cache_folder(setting: str | None) -> Path | None:
    """The folder that `data.cache` means: itself; None for "off"; and where it is None, the place for caches of this
    user's programs: $XDG_CACHE_HOME/federation, usually ~/.cache/federation. Raises DataError for a user without a home."""
    if setting is not None:
        return None if setting == "off" else Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "federation"
    except RuntimeError as error:
        raise DataError(f"data.cache: null is in the home folder, and this user has none ({error}): set HOME, or data.cache to a "
                        f"folder, or to 'off', which keeps a copy in every process") from error


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[-60:].lstrip(".") or "data"
