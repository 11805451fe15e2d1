"""LEAF's JSON files (Caldas et al. 2018, "LEAF: a benchmark for federated settings"), as its scripts write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content
from federation.data.formats.users import UserSamples, by_user
from federation.errors import DataError

#: The 80 characters of LEAF's Shakespeare; a character's number is its place in them.
SHAKESPEARE_LETTERS = ("\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}")
_LETTER_CODES = {letter: code for code, letter in enumerate(SHAKESPEARE_LETTERS)}
#: How a list of texts begins in JSON.
_TEXTS = re.compile(rb'\s*\[\s*"')


class _UserData(msgspec.Struct):
    x: msgspec.Raw
    y: msgspec.Raw


class _File(msgspec.Struct):
    users: list[str]
    num_samples: list[int]
    user_data: dict[str, _UserData]


def read_leaf(folder: Path, *, num_classes: int | None = None, image_shape: tuple[int, ...] | None = None) -> Content:
    """The data in `folder`: train/*.json and, if there is one, test/*.json.

    Samples of numbers become x float32[n, features], or [n, *image_shape]; their labels are whole numbers. Samples of
    text, all of one length, become character numbers (of SHAKESPEARE_LETTERS), uint8[n, length], labelled with the
    number of the next character, of 80 classes. The column "user" is the sorted order of the users' names.
    One file after the other is held in memory. Raises DataError.
    """
    parts = {part: sorted((folder / part).glob("*.json")) for part in ("train", "test")}
    if not parts["train"]:
        what = "is not there" if not folder.is_dir() else f"holds {_listed(folder)}"
        raise DataError(f"{folder.absolute()} {what}; expected the folder train with LEAF's .json files, and test")
    is_text: set[bool] = set()

    def pieces(files: list[Path]) -> Iterator[tuple[str, UserSamples]]:
        for path in files:
            for user, found in _read(path, image_shape):
                is_text.add(isinstance(found, _Text))
                yield user, (found.x, found.y, {})

    train = list(pieces(parts["train"]))
    test = list(pieces(parts["test"])) if parts["test"] else None
    if len(is_text) == 2:
        raise DataError(f"{folder} holds samples of text as well as of numbers; expected one kind")
    return by_user(train, test, str(folder), num_classes=len(SHAKESPEARE_LETTERS) if is_text == {True} else num_classes)


class _Numbers:
    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y


class _Text(_Numbers):
    pass


def _read(path: Path, image_shape: tuple[int, ...] | None) -> Iterator[tuple[str, _Numbers]]:
    with damage(path, "JSON file"):
        content = path.read_bytes()
        try:
            file = msgspec.json.decode(content, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not as LEAF writes it ({error}); expected users, num_samples and user_data with x "
                            f"and y for each user") from error
    if not len(file.users) == len(file.num_samples) == len(file.user_data) or set(file.users) != set(file.user_data):
        raise DataError(f"{path} names {len(file.users)} users, has {len(file.num_samples)} numbers of samples and the data "
                        f"of {len(file.user_data)} users; expected the same users in all three, each once")
    for user, count in zip(file.users, file.num_samples, strict=True):
        name = f"{path}: user {user!r}"
        with damage(path, f"data of user {user!r}"):
            found = _user(file.user_data[user], name, image_shape)
        if len(found.x) != count or len(found.y) != count:
            raise DataError(f"{name} has {len(found.x)} samples and {len(found.y)} labels; num_samples says {count}")
        if count:
            yield user, found


def _user(data: _UserData, name: str, image_shape: tuple[int, ...] | None) -> _Numbers:
    try:
        if _TEXTS.match(memoryview(data.x)):
            try:
                return _text(msgspec.json.decode(data.x, type=list[str]), msgspec.json.decode(data.y, type=list[str]), name)
            except (msgspec.ValidationError, UnicodeDecodeError) as error:
                raise DataError(f"{name} has text as samples, and labels that are none ({error}); expected each text's next "
                                f"character (images that lie in files of their own, as LEAF's celeba has them, are not "
                                f"supported)") from error
        x = msgspec.json.decode(data.x, type=list[list[float]])
        y = _labels(msgspec.json.decode(data.y, type=list[int | float]), name)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {error}; expected lists of numbers with whole numbers as labels, or texts of one length "
                        f"with characters as labels") from error
    lengths = {len(row) for row in x}
    if len(lengths) > 1:
        raise DataError(f"{name} has samples of {' and '.join(map(str, sorted(lengths)[:3]))} numbers; expected one length")
    samples = np.array(x, np.float32).reshape(len(x), *lengths)
    if image_shape is not None and len(x):
        if samples.shape[1] != np.prod(image_shape):
            raise DataError(f"{name} has samples of {samples.shape[1]} numbers; expected {int(np.prod(image_shape))}, as "
                            f"images of {list(image_shape)} have")
        samples = samples.reshape(-1, *image_shape)
    return _Numbers(samples, y)


def _labels(values: list[int | float], name: str) -> np.ndarray:
    """Some copies of the synthetic set have whole numbers written as 3.0."""
    if broken := [value for value in values if value != int(value)]:
        raise DataError(f"{name} has the label {broken[0]}; expected whole numbers")
    return np.array([int(value) for value in values], np.int64)


def _text(x: list[str], y: list[str], name: str) -> _Text:
    lengths = {len(text) for text in x}
    if len(lengths) > 1 or any(len(label) != 1 for label in y):
        raise DataError(f"{name}: expected texts of one length, each with one character as its label; found lengths "
                        f"{', '.join(map(str, sorted(lengths)[:5]))}")
    try:
        codes = np.array([[_LETTER_CODES[letter] for letter in text] for text in x], np.uint8).reshape(len(x), -1)
        return _Text(codes, np.array([_LETTER_CODES[letter] for letter in y], np.int64))
    except KeyError as error:
        raise DataError(f"{name} holds the character {error.args[0]!r}, which is none of LEAF's {len(_LETTER_CODES)} "
                        f"characters") from None


def _listed(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
