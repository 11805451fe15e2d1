"""The HDF5 files of TensorFlow Federated: a group `examples`, in it a group for each client, in that a dataset a field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content
from federation.data.formats.sequences import all_windows
from federation.data.formats.users import UserSamples, by_user
from federation.errors import DataError

#: The 86 characters of TFF's Shakespeare; a character's number is its place in them plus 1. 0 is padding; 87, 88 and 89
#: are a character that is none of these, the beginning and the end of a snippet (Reddi et al. 2021, appendix C.3).
SHAKESPEARE_LETTERS = ("dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r")

Fields = Mapping[str, np.ndarray]


def read_images(train: Path, test: Path, *, field: str, num_classes: int, max_users: int | None = None) -> Content:
    """Images and labels, as federated EMNIST (`field` "pixels") and CIFAR-100 ("image", channels last) have them.

    x float32[n, height, width] or uint8[n, channels, height, width] as stored, y int64[n], the columns "user" and, where
    the file has it, "coarse_label". `max_users` takes the first ones by name. Raises DataError.
    """
    def samples(fields: Fields, name: str) -> UserSamples:
        x, y = _field(fields, field, name), _field(fields, "label", name)
        if x.ndim not in (3, 4) or x.dtype not in (np.uint8, np.float32) or y.dtype.kind not in "iu" or y.ndim != 1:
            raise DataError(f"{name}: {field} is {x.dtype}{list(x.shape)} and label {y.dtype}{list(y.shape)}; expected "
                            f"images, uint8 or float32 [n, height, width(, channels)], and whole numbers [n]")
        kept = {"coarse_label": fields["coarse_label"].astype(np.int64)} if "coarse_label" in fields else {}
        return (np.ascontiguousarray(np.moveaxis(x, 3, 1)) if x.ndim == 4 else x), y.astype(np.int64), kept

    content = _content(train, test, samples, max_users, num_classes)
    scale = 1 / 255 if content.train.x.dtype == np.uint8 else 1.0
    return Content(content.train, content.test, num_classes, scale)


def read_shakespeare(train: Path, test: Path, *, length: int = 80, max_users: int | None = None) -> Content:
    """Snippets of text as samples of `length` character numbers, labelled with the next one; 90 classes.

    A snippet is cut by `sequences.windows`, with a mark at its beginning and its end. Raises DataError.
    """
    codes = {letter: code for code, letter in enumerate(SHAKESPEARE_LETTERS, 1)}
    unknown, begin, end = (len(codes) + extra for extra in (1, 2, 3))

    def samples(fields: Fields, name: str) -> UserSamples:
        texts = _texts(fields, "snippets", name)
        return (*all_windows(([begin, *(codes.get(letter, unknown) for letter in text), end] for text in texts), length), {})

    return _content(train, test, samples, max_users, end + 1)


def read_stackoverflow(train: Path, test: Path, *, vocabulary: list[str], length: int = 20,
                       max_users: int | None = None) -> Content:
    """Sentences as samples of `length` word numbers, labelled with the next one.

    Words of `vocabulary` are numbered from 1; 0 is padding; after the last come any other word, and the beginning and
    the end of a sentence, so there are len(vocabulary) + 4 classes (Reddi et al. 2021, appendix C.4). Raises DataError.
    """
    codes = {word: code for code, word in enumerate(vocabulary, 1)}
    unknown, begin, end = (len(codes) + extra for extra in (1, 2, 3))

    def samples(fields: Fields, name: str) -> UserSamples:
        sentences = (text.split() for text in _texts(fields, "tokens", name))
        return (*all_windows(([begin, *(codes.get(word, unknown) for word in words), end] for words in sentences),
                             length), {})

    return _content(train, test, samples, max_users, end + 1)


def frequent_words(train: Path, size: int, max_users: int | None = None) -> list[str]:
    """The `size` most frequent words of the training sentences; of equally frequent ones the first by name."""
    counts: Counter[str] = Counter()
    for user, fields in _clients(train, max_users):
        for text in _texts(fields, "tokens", f"{train}: client {user!r}"):
            counts.update(text.split())
    return [word for word, _ in sorted(counts.items(), key=lambda found: (-found[1], found[0]))[:size]]


def read_word_count(path: Path, size: int) -> list[str]:
    """The `size` most frequent words of TFF's file stackoverflow.word_count: a word and its count a line."""
    found: list[tuple[int, str]] = []
    with damage(path, "list of words"), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            word, _, count = line.strip().rpartition(" ")
            if not word or not count.isdigit():
                raise DataError(f"{path}, line {number}: {line.strip()!r} is no word with its count")
            found.append((-int(count), word))
    return [word for _, word in sorted(found)[:size]]


def _content(train: Path, test: Path, samples: Callable[[Fields, str], UserSamples], max_users: int | None,
             num_classes: int) -> Content:
    def part(path: Path) -> Iterator[tuple[str, UserSamples]]:
        for user, fields in _clients(path, max_users):
            yield user, samples(fields, f"{path}: client {user!r}")

    return by_user(part(train), part(test), str(train), num_classes=num_classes)


def _clients(path: Path, max_users: int | None) -> Iterator[tuple[str, Fields]]:
    """Each client's name and fields, by name."""
    with _opened(path) as examples:
        for user in sorted(examples)[:max_users]:
            with damage(path, f"client {user!r} of the HDF5 file"):
                group = examples[user]
                if not hasattr(group, "items"):
                    raise DataError(f"{path}: examples/{user} is a dataset; expected a group for each client")
                fields = {name: np.asarray(node[()]) for name, node in group.items() if hasattr(node, "dtype")}
            yield user, fields


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    if not path.is_file():
        raise DataError(f"{path.absolute()} does not exist; expected an HDF5 file of TensorFlow Federated")
    with damage(path, "HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with damage(path, "HDF5 file"):
            examples = file.get("examples")
            if not isinstance(examples, h5py.Group):
                raise DataError(f"{path} holds {', '.join(list(file)[:10]) or 'nothing'}; expected the group examples, with "
                                f"a group for each client in it")
        yield examples


def _field(fields: Fields, key: str, name: str) -> np.ndarray:
    if key not in fields:
        raise DataError(f"{name} has the fields {', '.join(fields) or 'none'}; expected {key}")
    return fields[key]


def _texts(fields: Fields, key: str, name: str) -> list[str]:
    values = _field(fields, key, name)
    if values.ndim != 1 or not all(isinstance(value, bytes) for value in values.tolist()):
        raise DataError(f"{name}: {key} is {values.dtype}{list(values.shape)}; expected texts")
    try:
        return [value.decode("utf-8") for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {key} is not UTF-8 ({error})") from error
