"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the python and the binary version, unpacked or in their archives."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any, ClassVar

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content, Samples
from federation.data.formats.unpacked import unpacked
from federation.errors import DataError

_SHAPE = (3, 32, 32)
_PIXELS = 3072
_LARGEST = 1 << 28  # bytes of one batch; the publisher's have at most 154 MB


@dataclass(frozen=True)
class Kind:
    """What tells the two data sets apart. In a binary batch, `labels` bytes precede each image, the class last."""

    num_classes: int
    labels: int
    binary: Mapping[str, tuple[str, ...]]
    python: Mapping[str, tuple[str, ...]]
    key: str
    columns: Mapping[str, str]


CIFAR10 = Kind(10, 1, {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)},
               {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)}, "labels", {})
CIFAR100 = Kind(100, 2, {"train": ("train.bin",), "test": ("test.bin",)}, {"train": ("train",), "test": ("test",)},
                "fine_labels", {"coarse_label": "coarse_labels"})


def read_cifar(path: Path, kind: Kind) -> Content:
    """The data set in `path`, a folder of batches or the publisher's archive (.tar.gz), python or binary version.

    x uint8[n, 3, 32, 32], y int64[n]; CIFAR-100 has the column "coarse_label" (20 superclasses). The python version
    consists of pickles, which are read by an unpickler that makes arrays, bytes, text, numbers, lists and dicts and
    refuses all else. Raises DataError.
    """
    if path.is_dir():
        return _content(lambda name: _from_folder(path, name), {entry.name for entry in path.iterdir()}, path, kind)
    if not path.is_file():
        raise DataError(f"{path.absolute()} does not exist; expected CIFAR's batches, in a folder or as a .tar.gz archive")
    with damage(path, "archive of CIFAR"), unpacked(path) as (file, _), tarfile.open(fileobj=file, mode="r:") as tar:
        members = {PurePosixPath(member.name).name: member for member in tar.getmembers() if member.isfile()}
        file.seek(0, io.SEEK_END)  # where gzip's checksum is
        return _content(lambda name: _from_archive(tar, members[name], path), set(members), path, kind)


def _content(read: Callable[[str], bytes], names: set[str], path: Path, kind: Kind) -> Content:
    versions = ((kind.binary, _binary), (kind.python, _python))
    for files, parse in versions:
        wanted = {name for part in files.values() for name in part}
        if wanted <= names:
            parts = {part: _joined([parse(read(name), f"{path}: {name}", kind) for name in batches])
                     for part, batches in files.items()}
            return Content(parts["train"], parts["test"], kind.num_classes, 1 / 255)
    either = ", or ".join(" ".join(name for part in files.values() for name in part) for files, _ in versions)
    raise DataError(f"{path} holds {', '.join(sorted(names)[:20]) or 'nothing'}; expected {either}")


def _from_folder(folder: Path, name: str) -> bytes:
    path = folder / name
    with damage(path, "batch"), open(path, "rb") as file:
        return _bounded(file, path, name)


def _from_archive(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "an ordinary file"
    with file:
        return _bounded(file, path, member.name)


def _bounded(file: IO[bytes], path: Path, name: str) -> bytes:
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{path}: {name} is larger than {_LARGEST} bytes; expected a batch of CIFAR")
    return content


def _binary(content: bytes, name: str, kind: Kind) -> Samples:
    record = kind.labels + _PIXELS
    if len(content) % record or not content:
        raise DataError(f"{name} has {len(content)} bytes; expected records of {record} bytes: copy or download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = records[:, : kind.labels].astype(np.int64)
    columns = {column: labels[:, at] for at, column in enumerate(kind.columns)}
    return _samples(records[:, kind.labels :], labels[:, -1], columns, name, kind)


def _python(content: bytes, name: str, kind: Kind) -> Samples:
    batch = _unpickled(content, name)
    found = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()
             if isinstance(key, bytes | str)} if isinstance(batch, dict) else {}
    wanted = ("data", kind.key, *kind.columns.values())
    missing = [key for key in wanted if key not in found]
    if missing:
        what = f"a dict of {', '.join(sorted(found)[:10]) or 'nothing'}" if isinstance(batch, dict) else type(batch).__name__
        raise DataError(f"{name} holds {what}; expected a dict with {', '.join(wanted)}")
    x = found["data"].array if isinstance(found["data"], _PickledArray) else None
    if x is None or x.ndim != 2 or x.shape[1] != _PIXELS:
        what = type(found["data"]).__name__ if x is None else f"uint8{[*x.shape]}"
        raise DataError(f"{name}: data is {what}; expected uint8[n, {_PIXELS}]")
    columns = {column: _labels(found[key], name, key) for column, key in kind.columns.items()}
    return _samples(x, _labels(found[kind.key], name, kind.key), columns, name, kind)


def _labels(values: object, name: str, key: str) -> np.ndarray:
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 1 << 31 for value in values):
        raise DataError(f"{name}: {key} is no list of whole numbers below 2^31")
    return np.array(values, np.int64)


def _samples(x: np.ndarray, y: np.ndarray, columns: Mapping[str, np.ndarray], name: str, kind: Kind) -> Samples:
    for what, values in (("labels", y), *columns.items()):
        if len(values) != len(x):
            raise DataError(f"{name} holds {len(x)} images, but {len(values)} {what}")
    if len(y) and not 0 <= y.min() <= y.max() < kind.num_classes:
        raise DataError(f"{name} holds labels {y.min()} to {y.max()}; expected 0 to {kind.num_classes - 1}")
    return Samples(x.reshape(-1, *_SHAPE), y, columns)


def _joined(batches: list[Samples]) -> Samples:
    columns = {key: np.concatenate([batch.columns[key] for batch in batches]) for key in batches[0].columns}
    return Samples(np.concatenate([batch.x for batch in batches]), np.concatenate([batch.y for batch in batches]), columns)


class _ArraysOnly(pickle._Unpickler):
    """Makes Python's own containers and stand-ins for arrays of bytes, and refuses to look up anything else.

    Not even NumPy's own objects are made: their state, which a file could choose, reaches into memory. The unpickler is
    the one written in Python, as the other makes room for as many objects as eight bytes of a file say.
    """

    dispatch: ClassVar[dict[int, Any]] = {code: load for code, load in pickle._Unpickler.dispatch.items()
                                          if code not in pickle.BYTEARRAY8}  # the same: it is given room before it is read

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"it asks for {module}.{name}, which a batch of CIFAR has no use for; nothing of it was "
                            f"executed") from None


class _Bytes:
    """Stands for the dtype of bytes."""

    def __init__(self, code: object, *flags: object) -> None:
        if code not in ("u1", b"u1", "|u1", b"|u1"):
            raise DataError(f"it holds an array of type {code!r}; expected bytes (u1)")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes have none of."""


class _PickledArray:
    """Stands for an array, until its state arrives."""

    def __init__(self, *arguments: object) -> None:
        self.array: np.ndarray = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Bytes) or not isinstance(content, bytes):
            raise DataError("it holds an array that is not one of bytes")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _Encoder:
    """Stands for `_codecs.encode`, with which Python 3 pickles bytes in the protocol of Python 2."""

    __slots__ = ()  # a pickle may set attributes of whatever it is given

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise DataError(f"it asks for the encoding {encoding!r}; expected latin1")
        return text.encode("latin-1")

    def __setstate__(self, state: object) -> None:
        raise DataError("it sets the state of a function")


_ALLOWED: Mapping[tuple[str, str], Any] = MappingProxyType({
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct
    ("numpy", "dtype"): _Bytes,
    ("_codecs", "encode"): _Encoder(),
})


def _unpickled(content: bytes, name: str) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{name}: the batch cannot be read, it is damaged or incomplete ({type(error).__name__}: {error}); "
                        f"copy or download it again") from error
