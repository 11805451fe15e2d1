"""The published data sets of the catalogue, read from the files that their publishers distribute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from federation.data.dataset import is_count
from federation.data.formats import tff
from federation.data.formats.cifar import CIFAR10, CIFAR100, Kind, read_cifar
from federation.data.formats.idx import read_idx_set
from federation.data.formats.leaf import read_leaf
from federation.data.formats.raw import Content
from federation.data.provider import DataProvider, Request
from federation.data.sources.catalogue import CATALOGUE
from federation.data.sources.files import files_in
from federation.errors import DataError

#: EMNIST's splits -> classes, and the label of the first one.
_EMNIST = {"balanced": (47, 0), "byclass": (62, 0), "bymerge": (47, 0), "digits": (10, 0), "letters": (26, 1),
           "mnist": (10, 0)}


def mnist(request: Request) -> DataProvider:
    """MNIST: 60,000 and 10,000 images of digits, 28 x 28, ten classes (LeCun et al. 1998)."""
    return _idx(request, "{part}-{kind}-ubyte", ("train", "t10k"), ("MNIST/raw",), 10)


def fashion_mnist(request: Request) -> DataProvider:
    """Fashion-MNIST: 60,000 and 10,000 images of clothes, 28 x 28, ten classes (Xiao et al. 2017)."""
    return _idx(request, "{part}-{kind}-ubyte", ("train", "t10k"), ("FashionMNIST/raw",), 10)


def emnist(request: Request, *,
           split: Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"] = "balanced") -> DataProvider:
    """EMNIST: images of digits and letters, 28 x 28, 10 to 62 classes by `split` (Cohen et al. 2017)."""
    if split not in _EMNIST:
        raise DataError(f"emnist: split: {split!r} is not one of {', '.join(_EMNIST)}")
    num_classes, first = _EMNIST[split]
    return _idx(request, f"emnist-{split}-{{part}}-{{kind}}-ubyte", ("train", "test"), ("EMNIST/raw", "gzip"), num_classes,
                first_label=first, transposed=True)


def cifar10(request: Request) -> DataProvider:
    """CIFAR-10: 50,000 and 10,000 colour images, 3 x 32 x 32, ten classes (Krizhevsky 2009)."""
    return _cifar(request, CIFAR10, ("cifar-10-batches-bin", "cifar-10-batches-py"),
                  ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"))


def cifar100(request: Request) -> DataProvider:
    """CIFAR-100: 50,000 and 10,000 colour images, 3 x 32 x 32, 100 classes, 20 superclasses as the column coarse_label."""
    return _cifar(request, CIFAR100, ("cifar-100-binary", "cifar-100-python"),
                  ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"))


def femnist(request: Request) -> DataProvider:
    """LEAF's FEMNIST: EMNIST by writer, 28 x 28, 62 classes, the writer as the column user (Caldas et al. 2018)."""
    return _leaf(request, num_classes=62, image_shape=(28, 28))


def shakespeare(request: Request) -> DataProvider:
    """LEAF's Shakespeare: 80 characters and the next one, of 80, the role as the column user (Caldas et al. 2018)."""
    return _leaf(request)


def federated_emnist(request: Request, *, max_users: int | None = None) -> DataProvider:
    """TensorFlow Federated's EMNIST by writer: 28 x 28, 62 classes, 3,400 users. `max_users`: the first ones by name."""
    return _tff(request, "fed_emnist", {"max_users": max_users},
                lambda train, test: tff.read_images(train, test, field="pixels", num_classes=62, max_users=max_users))


def federated_cifar100(request: Request, *, max_users: int | None = None) -> DataProvider:
    """TensorFlow Federated's CIFAR-100: 3 x 32 x 32, 100 classes, 500 users to train and 100 others to test."""
    return _tff(request, "fed_cifar100", {"max_users": max_users},
                lambda train, test: tff.read_images(train, test, field="image", num_classes=100, max_users=max_users))


def federated_shakespeare(request: Request, *, max_users: int | None = None, length: int = 80,
                          stride: int = 1) -> DataProvider:
    """TensorFlow Federated's Shakespeare: `length` characters and the next one, of 90, 715 users.

    A sample ends every `stride` characters.
    """
    read = partial(tff.read_shakespeare, length=length, stride=stride, max_users=max_users)
    return _tff(request, "shakespeare", {"max_users": max_users, "length": length, "stride": stride}, read)


def stackoverflow(request: Request, *, max_users: int | None = None, vocabulary_size: int = 10_000,
                  length: int = 20, stride: int = 1) -> DataProvider:
    """TensorFlow Federated's Stack Overflow: `length` words and the next one, 342,477 users.

    A sample ends every `stride` words; with 1 there are more than 10^9, so take `max_users`. Words are the most frequent of
    the file stackoverflow.word_count where that is there, else of the training sentences of the users that are read.
    """
    found = _find(request, ("stackoverflow.word_count",))
    words = [path for path in found if path.is_file()]

    def read(train: Path, test: Path) -> Content:
        vocabulary = tff.read_word_count(words[0], vocabulary_size) if words \
            else tff.frequent_words(train, vocabulary_size, max_users)
        return tff.read_stackoverflow(train, test, vocabulary=vocabulary, length=length, stride=stride, max_users=max_users)

    facts = {"max_users": max_users, "vocabulary_size": vocabulary_size, "length": length, "stride": stride}
    return _tff(request, "stackoverflow", facts, read, words[:1])


#: Name in a configuration (`data.dataset`) -> what opens it; those of CATALOGUE.
PUBLISHED: Mapping[str, Callable[..., DataProvider]] = MappingProxyType({
    function.__name__: function for function in (
        mnist, fashion_mnist, emnist, cifar10, cifar100, femnist, shakespeare, federated_emnist, federated_cifar100,
        federated_shakespeare, stackoverflow)})


def _idx(request: Request, pattern: str, parts: tuple[str, str], folders: tuple[str, ...], num_classes: int, *,
         first_label: int = 0, transposed: bool = False) -> DataProvider:
    files = tuple(_existing(request, (name, f"{name}.gz"), folders)
                  for part in parts for name in (pattern.format(part=part, kind=kind)
                                                 for kind in ("images-idx3", "labels-idx1")))
    read = partial(read_idx_set, *files, num_classes=num_classes, first_label=first_label, transposed=transposed)
    return DataProvider(request.name, read, files, {"reader": "idx"})


def _cifar(request: Request, kind: Kind, folders: tuple[str, ...], archives: tuple[str, ...]) -> DataProvider:
    path = _existing(request, (*folders, *archives))
    files = files_in(path, "*") if path.is_dir() else (path,)
    return DataProvider(request.name, partial(read_cifar, path, kind), files, {"reader": "cifar"})


def _leaf(request: Request, *, num_classes: int | None = None, image_shape: tuple[int, ...] | None = None) -> DataProvider:
    train = _existing(request, ("train",), ("data",))
    read = partial(read_leaf, train.parent, num_classes=num_classes, image_shape=image_shape)
    return DataProvider(request.name, read, files_in(train.parent, "*/*.json"), {"reader": "leaf"})


def _tff(request: Request, stem: str, facts: Mapping[str, object], read: Callable[[Path, Path], Content],
         others: Sequence[Path] = ()) -> DataProvider:
    for setting, value in facts.items():  # all of them counts
        if value is not None and not is_count(value):
            raise DataError(f"{request.name}: {setting}: {value!r} is not a whole number of at least 1")
    train, test = (_existing(request, (f"{stem}_{part}.h5",), ("datasets",)) for part in ("train", "test"))
    return DataProvider(request.name, lambda: read(train, test), (train, test, *others), {"reader": "tff", **facts})


def _find(request: Request, names: tuple[str, ...], folders: tuple[str, ...] = ()) -> list[Path]:
    """All places where a file of the data set may be: its own folder in data.root, `folders` there, and data.root."""
    own = request.root / CATALOGUE[request.name].folder
    places = (own, *(own / folder for folder in folders), *(request.root / folder for folder in folders), request.root)
    return [place / name for place in places for name in names]


def _existing(request: Request, names: tuple[str, ...], folders: tuple[str, ...] = ()) -> Path:
    """The first place where the file, or the folder, is. Raises DataError with the way to get it."""
    for path in _find(request, names, folders):
        if path.exists():
            return path
    entry = CATALOGUE[request.name]
    own = (request.root / entry.folder).absolute()
    how = entry.advice.format(folder=own) if entry.advice else (
        f"on a machine with network, run python -m federation.data fetch {request.name} --root {request.root}, or copy the "
        f"publisher's files there")
    raise DataError(f"{request.name}: neither {' nor '.join(names)} is in {own}; {how}")
