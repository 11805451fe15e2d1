"""TensorFlow Federated's HDF5 files: examples/<client>/<field>, images, snippets and sentences; damaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from federation.data.formats import tff
from federation.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.random((6, 28, 28), np.float32)
COLOURS = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
TEXT = h5py.string_dtype()


def write(path: Path, clients: dict[str, dict[str, Any]]) -> Path:
    """As TFF's own converter does: variable-length strings, numbers in the machine's order."""
    with h5py.File(path, "w") as file:
        examples = file.create_group("examples")
        for client, fields in clients.items():
            group = examples.create_group(client)
            for name, values in fields.items():
                is_text = isinstance(values, list) and all(isinstance(value, str | bytes) for value in values)
                group.create_dataset(name, data=values, **({"dtype": TEXT} if is_text else {}))
    return path


def test_federated_emnist(tmp_path: Path) -> None:
    train = write(tmp_path / "train.h5", {"f2": {"label": np.array([3, 61], np.int32), "pixels": PIXELS[:2]},
                                          "f0": {"label": np.array([0], np.int32), "pixels": PIXELS[2:3]}})
    test = write(tmp_path / "test.h5", {"f1": {"label": np.array([5], np.int32), "pixels": PIXELS[3:4]},
                                        "f2": {"label": np.array([6, 7], np.int32), "pixels": PIXELS[4:]}})
    content = tff.read_images(train, test, field="pixels", num_classes=62)
    assert content.test is not None
    np.testing.assert_array_equal(content.train.x, PIXELS[[2, 0, 1]])
    np.testing.assert_array_equal(content.test.x, PIXELS[3:])
    assert (content.train.y.tolist(), content.test.y.tolist()) == ([0, 3, 61], [5, 6, 7])
    assert content.train.columns["user"].tolist() == [0, 2, 2]
    assert content.test.columns["user"].tolist() == [1, 2, 2], "a user has one number in both parts"
    assert (content.train.x.dtype, content.train.y.dtype, content.num_classes, content.scale) == (
        np.float32, np.int64, 62, 1.0)


def test_federated_cifar100_puts_channels_first(tmp_path: Path) -> None:
    def fields(rows: slice, fine: list[int], coarse: list[int]) -> dict[str, np.ndarray]:
        return {"coarse_label": np.array(coarse, np.int64), "image": COLOURS[rows], "label": np.array(fine, np.int64)}

    train = write(tmp_path / "train.h5", {"0": fields(slice(0, 2), [99, 1], [19, 0]), "10": fields(slice(2, 3), [7], [3])})
    test = write(tmp_path / "test.h5", {"2": fields(slice(3, 6), [4, 5, 6], [1, 1, 2])})
    content = tff.read_images(train, test, field="image", num_classes=100)
    assert content.test is not None
    for samples, images in ((content.train, COLOURS[:3]), (content.test, COLOURS[3:])):
        assert samples.x.tolist() == [[[[int(image[row, column, channel]) for column in range(32)] for row in range(32)]
                                       for channel in range(3)] for image in images]
        assert samples.x.dtype == np.uint8
        assert samples.x.flags.c_contiguous
    assert content.train.columns["coarse_label"].tolist() == [19, 0, 3]
    assert content.test.columns["coarse_label"].tolist() == [1, 1, 2]
    assert (content.train.columns["user"].tolist(), content.test.columns["user"].tolist()) == ([0, 0, 1], [2, 2, 2])
    assert (content.num_classes, content.scale) == (100, 1 / 255)


#: TFF's order of characters goes through the alphabet by fours, as a table of five by columns does; some from its pages.
KNOWN_CODES = {"d": 1, "h": 2, "@": 7, " ": 14, "\n": 63, "a": 64, "e": 65, "i": 66, "\r": 86, "9": 85, "(": 16}


def test_the_alphabet_of_shakespeare() -> None:
    letters = tff.SHAKESPEARE_LETTERS
    assert len(letters) == len(set(letters)) == 86
    assert {letter: letters.index(letter) + 1 for letter in KNOWN_CODES} == KNOWN_CODES


def windowed(text: str, length: int, stride: int) -> list[tuple[list[int], int]]:
    codes = [88, *(tff.SHAKESPEARE_LETTERS.find(letter) + 1 or 87 for letter in text), 89]
    return [(([0] * length + codes[:at])[-length:], codes[at]) for at in range(1, len(codes))
            if at % stride == 0 or at == len(codes) - 1]


@pytest.mark.parametrize(("length", "stride"), [(80, 1), (80, None), (5, 2)])
def test_shakespeare(tmp_path: Path, length: int, stride: int | None) -> None:
    snippets = ["To be, or not to be: that is the question.\n" * 5, "Ay.", "", "caf\u00e9 {}"]
    train = write(tmp_path / "train.h5", {"HAMLET": {"snippets": snippets[:2]}, "B": {"snippets": snippets[2:]}})
    test = write(tmp_path / "test.h5", {"HAMLET": {"snippets": ["Words, words, words."]}})
    content = tff.read_shakespeare(train, test, length=length, stride=stride)
    assert content.test is not None
    expected = [(pair, user) for text, user in ((snippets[2], 0), (snippets[3], 0), (snippets[0], 1), (snippets[1], 1))
                for pair in windowed(text, length, stride or length)]
    assert content.train.x.tolist() == [x for (x, _), _ in expected]
    assert content.train.y.tolist() == [y for (_, y), _ in expected]
    assert content.train.columns["user"].tolist() == [user for _, user in expected]
    assert (content.train.x.dtype, content.num_classes, content.scale) == (np.uint8, 90, 1.0)
    assert content.test.columns["user"].tolist() == [1] * len(content.test.y)


SENTENCES = {"u2": ["how do i sort a list ?", "a list , a list"], "u1": ["sort it"]}


@pytest.mark.parametrize("stride", [1, None])
def test_stackoverflow(tmp_path: Path, stride: int | None) -> None:
    train = write(tmp_path / "train.h5", {user: {"tokens": texts, "title": texts, "score": np.arange(len(texts))}
                                          for user, texts in SENTENCES.items()})
    test = write(tmp_path / "test.h5", {"u3": {"tokens": ["i sort"]}})
    content = tff.read_stackoverflow(train, test, vocabulary=["list", "a", "sort"], length=4, stride=stride)
    codes = {"list": 1, "a": 2, "sort": 3}
    expected: list[tuple[list[int], int]] = []
    for text in [*SENTENCES["u1"], *SENTENCES["u2"]]:
        tokens = [5, *(codes.get(word, 4) for word in text.split(" ")), 6]
        expected += [(([0] * 4 + tokens[:at])[-4:], tokens[at]) for at in range(1, len(tokens))
                     if stride == 1 or at % 4 == 0 or at == len(tokens) - 1]
    assert content.train.x.tolist() == [x for x, _ in expected]
    assert content.train.y.tolist() == [y for _, y in expected]
    assert content.num_classes == 7
    assert content.train.columns["user"].tolist()[0] == 0
    assert content.test is not None
    assert set(content.test.columns["user"].tolist()) == {2}


def test_equally_frequent_words_come_in_order_of_their_names(tmp_path: Path) -> None:
    train = write(tmp_path / "train.h5", {user: {"tokens": texts} for user, texts in SENTENCES.items()})
    # a 3, list 3, sort 2, and once each: , ? do how i it
    assert tff.frequent_words(train, 5) == ["a", "list", "sort", ",", "?"]
    assert tff.frequent_words(train, 100) == ["a", "list", "sort", ",", "?", "do", "how", "i", "it"]
    assert tff.frequent_words(train, 5, max_users=1) == ["it", "sort"], "u1 alone"


@pytest.mark.parametrize("between", [" ", "\t"])
def test_a_list_of_words_keeps_the_order_of_equal_counts(tmp_path: Path, between: str) -> None:
    path = tmp_path / "stackoverflow.word_count"
    path.write_text("".join(f"{word}{between}{count}\n" for word, count in (("the", 9), ("to", 5), ("a", 5), ("né", 7))))
    assert tff.read_word_count(path, 3) == ["the", "né", "to"]
    for wrong in ("word", "word x", "a b 3", "word -1", "", "word 1.5"):
        path.write_text(f"the 9\n{wrong}\n")
        with pytest.raises(DataError, match=r"stackoverflow\.word_count, line 2: .* is no word with its count"):
            tff.read_word_count(path, 3)
    path.write_text("")
    with pytest.raises(DataError, match=r"stackoverflow\.word_count holds no words"):
        tff.read_word_count(path, 3)
    path.write_bytes(b"\xff 3\n")
    with pytest.raises(DataError, match=r"stackoverflow\.word_count: the list of words cannot be read"):
        tff.read_word_count(path, 3)
    with pytest.raises(DataError, match="gone"):
        tff.read_word_count(tmp_path / "gone", 3)


def test_the_first_users_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {user: {"label": np.array([code]), "pixels": PIXELS[:1]}
                                     for code, user in enumerate(["c", "a", "b"])})
    content = tff.read_images(path, path, field="pixels", num_classes=3, max_users=2)
    assert content.train.y.tolist() == [1, 2]


def test_users_without_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"a": {"snippets": np.array([], TEXT)}, "b": {"snippets": ["Ay."]}})
    assert tff.read_shakespeare(path, path).train.columns["user"].tolist() == [1]


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """A title that claims more than the file holds would be refused, were it read."""
    path = write(tmp_path / "a.h5", {"a": {"tokens": ["b c"]}})
    with h5py.File(path, "a") as file:
        file.create_dataset("examples/a/title", shape=(10**9,), dtype="f8", chunks=(1000,))
    assert len(tff.read_stackoverflow(path, path, vocabulary=["b"]).train.y) == 1


def images(**fields: Any) -> dict[str, dict[str, Any]]:
    given: dict[str, Any] = {"label": np.array([1, 2]), "pixels": PIXELS[:2], **fields}
    return {"a": {key: value for key, value in given.items() if value is not None}}


DAMAGED: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "no clients": ({}, "has no training samples"),
    "no pixels": (images(pixels=None, image=COLOURS[:2]), "client 'a' has the fields image, label; expected pixels"),
    "no labels": (images(label=None), "client 'a' has the fields pixels; expected label"),
    "no fields": ({"a": {}}, "client 'a' has the fields none; expected pixels"),
    "flat": (images(pixels=PIXELS[:2].reshape(2, -1)), r"pixels is float32\[2, 784\] and label .*; expected images"),
    "other numbers": (images(pixels=PIXELS[:2].astype(np.float64)), r"pixels is float64\[2, 28, 28\]"),
    "float labels": (images(label=np.array([1.0, 2.0])), r"label float64\[2\]; expected .* whole numbers"),
    "labels in a table": (images(label=np.array([[1], [2]])), r"label int64\[2, 1\]"),
    "fewer labels": (images(label=np.array([1])), "user 'a' has 2 samples, but 1 labels"),
    "fewer superclasses": (images(coarse_label=np.array([1])), r"coarse_label is int64\[1\]; expected whole numbers \[2\]"),
    "text": (images(pixels=["a", "b"]), r"pixels is object\[2\]"),
    "sizes": ({**images(), "b": {"label": np.array([1]), "pixels": PIXELS[:1, :5]}},
              r"a sample of user 'b' has the shape \[5, 28\]; expected \[28, 28\], as of user 'a'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_wrong_fields_are_named(tmp_path: Path, case: str) -> None:
    clients, words = DAMAGED[case]
    path = write(tmp_path / "fed.h5", clients)
    with pytest.raises(DataError, match=words) as caught:
        tff.read_images(path, path, field="pixels", num_classes=9)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("values", "words"), [
    (np.arange(3), r"snippets is int64\[3\]; expected texts"), (PIXELS[:1], r"snippets is float32\[1, 28, 28\]; expected texts"),
    ([b"good", b"\xff\xfe"], "snippets is not UTF-8")])
def test_snippets_that_are_no_text(tmp_path: Path, values: Any, words: str) -> None:
    path = write(tmp_path / "fed.h5", {"a": {"snippets": values}})
    with pytest.raises(DataError, match=rf"fed\.h5: client 'a': {words}"):
        tff.read_shakespeare(path, path)


def read(path: Path) -> None:
    tff.read_images(path, path, field="pixels", num_classes=9)


def test_other_hdf5_files_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    for key, words in (("train/x", "holds train; expected TensorFlow Federated's group examples"),
                       ("examples", "holds examples; expected"),
                       ("examples/a", "examples/a is a dataset; expected a group for each client"),
                       ("examples/a/pixels/b", "pixels of client 'a' is a group; expected a dataset")):
        with h5py.File(path, "w") as file:
            file[key] = PIXELS
        with pytest.raises(DataError, match=rf"other\.h5.* {words}"):
            read(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="holds nothing; expected"):
        read(path)


def test_objects_links_and_odd_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    for make, words in (
            (lambda group: group.create_dataset("pixels", (2,), h5py.vlen_dtype(np.int32)), "array of objects"),
            (lambda group: group.create_dataset("pixels", (2,), h5py.ref_dtype), "array of objects"),
            (lambda group: group.create_dataset("pixels", (10**4, 10**4, 10**3), "f4", chunks=(1, 100, 100)),
             "says that it holds 400000000000 bytes, which a file of .* bytes cannot"),
            (lambda group: group.__setitem__("pixels", h5py.SoftLink("/nowhere")), "pixels of client 'a' cannot be read"),
            (lambda group: group.__setitem__("pixels", h5py.ExternalLink("gone.h5", "/x")), "pixels of client 'a' cannot be")):
        with h5py.File(path, "w") as file:
            group = file.create_group("examples/a")
            group["label"] = [1, 2]
            make(group)
        with pytest.raises(DataError, match=rf"odd\.h5.*{words}"):
            read(path)


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_truncated_files_are_named(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "cut.h5", images())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"cut\.h5: the HDF5 file cannot be read, it is damaged"):
        read(path)


def test_changed_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """HDF5 has no checksums of its own: a changed pixel goes unnoticed, but nothing else than DataError comes out."""
    path = write(tmp_path / "fed.h5", images())
    content = path.read_bytes()
    outcomes = set()
    for at in range(0, 4096, 7):
        changed = bytearray(content)
        changed[at % len(content)] ^= 0xFF
        path.write_bytes(changed)
        try:
            read(path)
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/gone.h5 does not exist; expected an HDF5 file"):
        read(tmp_path / "gone.h5")
    with pytest.raises(DataError, match=f"{tmp_path} is a folder"):
        read(tmp_path)
