"""The HDF5 files of TensorFlow Federated: a group `examples`, in it a group for each client, in that a dataset a field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.hdf5 import members, opened, read_dataset
from federation.data.formats.raw import Content
from federation.data.formats.sequences import all_windows
from federation.data.formats.users import UserSamples, by_user
from federation.errors import DataError

#: The 86 characters of TFF's Shakespeare; a character's number is its place in them plus 1. 0 is padding; 87, 88 and 89
#: are a character that is none of these, the beginning and the end of a snippet (Reddi et al. 2021, appendix C.3).
SHAKESPEARE_LETTERS = ("dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r")

def read_images(train: Path, test: Path, *, field: str, num_classes: int, max_users: int | None = None) -> Content:
    """Images and labels, as federated EMNIST (`field` "pixels") and CIFAR-100 ("image", channels last) have them.

    x float32[n, height, width] or uint8[n, channels, height, width] as stored, y int64[n], the columns "user" and, where
    the file has it, "coarse_label". `max_users` takes the first ones by name. Raises DataError.
    """
    def samples(client: _Client) -> UserSamples:
        x, y = client.field(field), client.field("label")
        kept = {"coarse_label": client.field("coarse_label")} if client.has("coarse_label") else {}
        if x.ndim not in (3, 4) or x.dtype not in (np.uint8, np.float32) or y.dtype.kind not in "iu" or y.ndim != 1:
            raise DataError(f"{client.name}: {field} is {x.dtype}{list(x.shape)} and label {y.dtype}{list(y.shape)}; expected "
                            f"images, uint8 or float32 [n, height, width(, channels)], and whole numbers [n]")
        for key, column in kept.items():
            if column.shape != y.shape or column.dtype.kind not in "iu":
                raise DataError(f"{client.name}: {key} is {column.dtype}{list(column.shape)}; expected whole numbers "
                                f"{list(y.shape)}")
        return (np.ascontiguousarray(np.moveaxis(x, 3, 1)) if x.ndim == 4 else x), y.astype(np.int64), \
            {key: column.astype(np.int64) for key, column in kept.items()}

    content = _content(train, test, samples, max_users, num_classes)
    scale = 1 / 255 if content.train.x.dtype == np.uint8 else 1.0
    return Content(content.train, content.test, num_classes, scale)


def read_shakespeare(train: Path, test: Path, *, length: int = 80, stride: int | None = None,
                     max_users: int | None = None) -> Content:
    """Snippets of text as samples of `length` character numbers, uint8, labelled with the next one; 90 classes.

    A snippet is cut by `sequences.windows`, with a mark at its beginning and its end; `stride` is `length` by default,
    and each character takes length / stride bytes. Raises DataError.
    """
    codes = {letter: code for code, letter in enumerate(SHAKESPEARE_LETTERS, 1)}
    unknown, begin, end = (len(codes) + extra for extra in (1, 2, 3))

    def samples(client: _Client) -> UserSamples:
        texts = ([begin, *(codes.get(letter, unknown) for letter in text), end] for text in _texts(client, "snippets"))
        return (*all_windows(texts, length, stride or length, end + 1), {})

    return _content(train, test, samples, max_users, end + 1)


def read_stackoverflow(train: Path, test: Path, *, vocabulary: list[str], length: int = 20,
                       stride: int | None = None, max_users: int | None = None) -> Content:
    """Sentences as samples of `length` word numbers, uint16, labelled with the next one, cut as snippets are.

    Words of `vocabulary` are numbered from 1; 0 is padding; after the last come any other word, and the beginning and
    the end of a sentence, so there are len(vocabulary) + 4 classes (Reddi et al. 2021, appendix C.4). Raises DataError.
    """
    codes = {word: code for code, word in enumerate(vocabulary, 1)}
    unknown, begin, end = (len(codes) + extra for extra in (1, 2, 3))

    def samples(client: _Client) -> UserSamples:
        sentences = ([begin, *(codes.get(word, unknown) for word in text.split()), end] for text in _texts(client, "tokens"))
        return (*all_windows(sentences, length, stride or length, end + 1), {})

    return _content(train, test, samples, max_users, end + 1)


def frequent_words(train: Path, size: int, max_users: int | None = None) -> list[str]:
    """The `size` most frequent words of the training sentences; of equally frequent ones the first by name."""
    counts: Counter[str] = Counter()
    for client in _clients(train, max_users):
        for text in _texts(client, "tokens"):
            counts.update(text.split())
    return [word for word, _ in sorted(counts.items(), key=lambda found: (-found[1], found[0]))[:size]]


def read_word_count(path: Path, size: int) -> list[str]:
    """The `size` most frequent words of TFF's file stackoverflow.word_count: a word and its count a line.

    Of equally frequent ones the first in the file. Raises DataError.
    """
    found: list[tuple[int, str]] = []
    with damage(path, "list of words"), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            word, count, *more = (*line.split(), "", "")[:3]
            if more != [""] or not count.isdecimal():
                raise DataError(f"{path}, line {number}: {line.strip()[:80]!r} is no word with its count")
            found.append((-int(count), word))
    if not found:
        raise DataError(f"{path} holds no words; copy or download the file again")
    found.sort(key=itemgetter(0))
    return [word for _, word in found[:size]]


def _content(train: Path, test: Path, samples: Callable[[_Client], UserSamples], max_users: int | None,
             num_classes: int) -> Content:
    def part(path: Path) -> Iterator[tuple[str, UserSamples]]:
        for client in _clients(path, max_users):
            yield client.user, samples(client)

    return by_user(part(train), part(test), str(train), num_classes=num_classes)


@dataclass(frozen=True)
class _Client:
    """A client's group in an open file; a field is read when it is asked for, and the others never."""

    path: Path
    user: str
    group: Any

    @property
    def name(self) -> str:
        return f"{self.path}: client {self.user!r}"

    def has(self, key: str) -> bool:
        with damage(self.path, f"client {self.user!r} of the HDF5 file"):
            return key in self.group

    def field(self, key: str) -> np.ndarray:
        if not self.has(key):
            found = ", ".join(members(self.group, self.path)[:10]) or "none"
            raise DataError(f"{self.name} has the fields {found}; expected {key}")
        return read_dataset(self.group, key, self.path, f"{key} of client {self.user!r}")


def _clients(path: Path, max_users: int | None) -> Iterator[_Client]:
    """The clients of a file, by name."""
    import h5py

    with opened(path) as file:
        with damage(path, "HDF5 file"):
            examples = file.get("examples")
            if not isinstance(examples, h5py.Group):
                raise DataError(f"{path} holds {', '.join(members(file, path)[:10]) or 'nothing'}; expected TensorFlow Federated's "
                                f"group examples, with a group for each client in it")
        for user in sorted(members(examples, path))[:max_users]:
            with damage(path, f"client {user!r} of the HDF5 file"):
                group = examples[user]
            if not isinstance(group, h5py.Group):
                raise DataError(f"{path}: examples/{user} is a dataset; expected a group for each client")
            yield _Client(path, user, group)


def _texts(client: _Client, key: str) -> list[str]:
    values = client.field(key)
    if values.ndim != 1 or not all(isinstance(value, bytes) for value in values.tolist()):
        raise DataError(f"{client.name}: {key} is {values.dtype}{list(values.shape)}; expected texts")
    try:
        return [value.decode("utf-8") for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{client.name}: {key} is not UTF-8 ({error})") from error
