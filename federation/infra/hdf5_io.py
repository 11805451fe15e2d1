"""How checkpoints use h5py: it writes through a file of ours, and reads only what lies in the file itself."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from federation.errors import CheckpointError

_CHUNK = 4 << 20  # small writes are gathered: a thread that lets go of the interpreter waits 5 ms to get it back


def load_h5py() -> Any:
    """The module h5py, imported on first use. CheckpointError, naming the package, where that fails."""
    try:
        return importlib.import_module("h5py")
    except Exception as error:  # a package without its library raises whatever it likes
        raise CheckpointError(
            f"checkpoints need the package h5py, which cannot be imported ({type(error).__name__}: {error}). "
            "Install it with pip install h5py."
        ) from error


class Output:
    """The file that HDF5 writes through. HDF5 never learns of a failed write, which `check` and `finish` raise.

    Told that a disk is full, HDF5 2.0 crashes the process now and then while it closes the file. This way it takes
    no file locks either, which many file systems do not have, and other threads run while bytes go to the disk.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._at = 0
        self._pending = bytearray()  # ends at self._at
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first failure so far."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Bring everything to the disk. Raises OSError for whatever failed since the beginning."""
        self._drain()
        self.check()
        os.fsync(self._descriptor)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    # What h5py asks of a file object.

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END or offset != self._at:
            self._drain()
            self._at = offset + (os.fstat(self._descriptor).st_size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        if len(content) < _CHUNK:
            self._pending += content
        else:
            self._drain()
            self._put(content, self._at)
        self._at += len(content)
        if len(self._pending) >= _CHUNK:
            self._drain()
        return len(content)

    def readinto(self, buffer: Any) -> int:
        self._drain()
        target = memoryview(buffer).cast("B")
        data = os.pread(self._descriptor, len(target), self._at)
        target[: len(data)] = data
        return len(data)

    def read(self, size: int) -> bytes:
        self._drain()
        return os.pread(self._descriptor, size, self._at)

    def truncate(self, size: int) -> int:
        self._drain()
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        pass

    def _drain(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            self._put(memoryview(pending), self._at - len(pending))

    def _put(self, content: memoryview, at: int) -> None:
        try:
            while self._error is None and content:
                written = os.pwrite(self._descriptor, content, at)
                content, at = content[written:], at + written
        except OSError as error:
            self._error = error


class Datasets:
    """The datasets of an open `file` of `size` bytes, each sure to lie in it, in one piece, and to be no larger."""

    def __init__(self, file: Any, size: int) -> None:
        self._h5py = load_h5py()
        self._size = size
        self._groups: dict[tuple[str, ...], Any] = {(): file}

    def __getitem__(self, path: tuple[str, ...]) -> Any:
        dataset = self._follow(path)
        creation = dataset.id.get_create_plist()
        plain = creation.get_layout() in (self._h5py.h5d.CONTIGUOUS, self._h5py.h5d.COMPACT)
        if not plain or creation.get_nfilters() or creation.get_external_count():
            raise CheckpointError(f"{'/'.join(path)} is stored in a way that checkpoints do not use")
        if dataset.size * dataset.dtype.itemsize > self._size:
            raise CheckpointError(f"{'/'.join(path)} claims to be larger than the file")
        return dataset

    def _follow(self, path: tuple[str, ...]) -> Any:
        *parents, link = path
        group = self._groups.get(tuple(parents))
        if group is None:
            group = self._groups[tuple(parents)] = self._follow(tuple(parents))
        if group.id.links.get_info(link.encode()).type != self._h5py.h5l.TYPE_HARD:
            raise CheckpointError(f"{'/'.join(path)} is a link to somewhere else")
        return group[link]
