"""LEAF's JSON: FEMNIST, Shakespeare and the synthetic set as its scripts write them, and files that are damaged."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.formats.leaf import read_leaf
from federation.errors import DataError
from tests.data.formats.reading import content_or_error

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 1000, (6, 784)) / 1000
Users = dict[str, tuple[list[Any], list[Any]]]


def leaf(users: Users, **more: Any) -> dict[str, Any]:
    return {"users": list(users), "num_samples": [len(y) for _, y in users.values()],
            "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()}, **more}


def write(folder: Path, part: str, *files: Any) -> Path:
    (folder / part).mkdir(parents=True)
    for number, content in enumerate(files):
        path = folder / part / f"all_data_{number}_niid_0_keep_0_{part}_9.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def test_femnist_in_several_files(tmp_path: Path) -> None:
    write(tmp_path, "train", leaf({"f3_01": (PIXELS[:2].tolist(), [61, 0]), "f0_44": (PIXELS[2:3].tolist(), [5])}),
          leaf({"f1_02": (PIXELS[3:4].tolist(), [10])}, hierarchies=["x"]))
    write(tmp_path, "test", leaf({"f1_02": (PIXELS[4:5].tolist(), [7]), "f0_44": (PIXELS[5:].tolist(), [8])}))
    content = read_leaf(tmp_path, num_classes=62, image_shape=(28, 28))
    assert content.test is not None
    for samples, rows, labels, users in ((content.train, PIXELS[:4], [61, 0, 5, 10], [2, 2, 0, 1]),
                                         (content.test, PIXELS[4:], [7, 8], [1, 0])):
        np.testing.assert_array_equal(samples.x, rows.astype(np.float32).reshape(-1, 28, 28))
        assert (samples.x.dtype, samples.y.dtype) == (np.float32, np.int64)
        assert samples.y.tolist() == labels
        assert samples.columns["user"].tolist() == users, "sorted names of both parts"
    assert (content.num_classes, content.scale) == (62, 1.0)


def test_flat_rows_without_a_test_set(tmp_path: Path) -> None:
    content = read_leaf(write(tmp_path, "train", leaf({"a": ([[0.5, -1], [1e-3, 2]], [0, 1])})))
    assert content.train.x.tolist() == np.array([[0.5, -1], [1e-3, 2]], np.float32).tolist()
    assert (content.test, content.num_classes) == (None, None)


def test_whole_numbers_written_as_floats_are_labels(tmp_path: Path) -> None:
    content = read_leaf(write(tmp_path, "train", leaf({"f_00000": ([[0.5], [1.5], [2.5]], [3.0, 0, 2.0])})))
    assert content.train.y.tolist() == [3, 0, 2]
    assert content.train.y.dtype == np.int64


#: LEAF's ALL_LETTERS, from its parts: what a sorted list of the plays' characters is.
ALPHABET = sorted({*"\n !\"&'(),-.:;>?[]}", *"0123456789", *map(chr, range(65, 91)), *map(chr, range(97, 123))})


def test_shakespeare_is_numbered_by_leafs_alphabet(tmp_path: Path) -> None:
    assert len(ALPHABET) == 80
    windows = ["".join(RNG.choice(ALPHABET, 80)) for _ in range(5)]
    following = ["}", "\n", "a", "Z", " "]
    write(tmp_path, "train", leaf({"THE_TRAGEDY_ROMEO": (windows[:3], following[:3]), "JULIET": (windows[3:4], following[3:4])},
                                  hierarchies=["a", "b"]))
    write(tmp_path, "test", leaf({"JULIET": (windows[4:], following[4:])}))
    content = read_leaf(tmp_path)
    assert content.test is not None
    assert content.train.x.tolist() == [[ALPHABET.index(letter) for letter in window] for window in windows[:4]]
    assert content.train.y.tolist() == [ALPHABET.index(letter) for letter in following[:4]]
    assert content.test.x.shape == (1, 80)
    assert content.train.x.dtype == np.uint8, "a quarter of the memory"
    assert (content.num_classes, content.scale) == (80, 1.0)
    assert content.train.columns["user"].tolist() == [1, 1, 1, 0]
    assert content.test.columns["user"].tolist() == [0]


def test_users_without_samples_and_users_in_several_files(tmp_path: Path) -> None:
    write(tmp_path, "train", leaf({"b": ([[1.0]], [0]), "nobody": ([], [])}), leaf({"b": ([[2.0]], [1]), "a": ([[3.0]], [1])}))
    content = read_leaf(tmp_path)
    assert content.train.x.tolist() == [[1], [2], [3]]
    assert content.train.columns["user"].tolist() == [1, 1, 0]


GOOD = leaf({"a": ([[1.0, 2.0]], [0]), "b": ([[3.0, 4.0], [5.0, 6.0]], [1, 1])})


def changed(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def one(x: Any, y: Any, count: int = 2) -> dict[str, Any]:
    return {"users": ["a"], "num_samples": [count], "user_data": {"a": {"x": x, "y": y}}}


DAMAGED: dict[str, tuple[Any, str]] = {
    "cut": (json.dumps(GOOD).encode()[:-3], "is not as LEAF writes it .*truncated"),
    "empty": (b"", "is not as LEAF writes it"),
    "a list": ([1, 2], "is not as LEAF writes it .*Expected `object`, got `array`.*expected users, num_samples"),
    "other keys": ({"clients": ["a"], "data": {}}, "missing required field `users`"),
    "no labels": (changed(user_data={"a": {"x": [[1.0]]}, "b": {"x": [], "y": []}}), "missing required field `y`"),
    "no data of a user": (changed(user_data={"a": {"x": [[1.0, 2.0]], "y": [0]}}),
                          "names 2 users, has 2 numbers of samples and the data of 1 users"),
    "another user's data": (changed(users=["a", "c"]), "expected the same users in all three"),
    "fewer counts": (changed(num_samples=[1]), "names 2 users, has 1 numbers of samples"),
    "a user twice": ({"users": ["a", "a"], "num_samples": [1, 1], "user_data": {"a": {"x": [[1.0]], "y": [0]}}},
                     "names 2 users, .*data of 1 users; expected the same users in all three, each once"),
    "other count": (changed(num_samples=[1, 3]), "user 'b' has 2 samples and 2 labels; num_samples says 3"),
    "negative count": (changed(num_samples=[-1, 2]), "user 'a' has 1 samples and 1 labels; num_samples says -1"),
    "fewer labels": (one([[1.0], [2.0]], [1]), "user 'a' has 2 samples and 1 labels; num_samples says 2"),
    "ragged": (one([[1.0], [2.0, 3.0]], [1, 0]), "user 'a' has samples of 1 and 2 numbers; expected one length"),
    "ragged users": (leaf({"a": ([[1.0, 2.0]], [0]), "b": ([[1.0]], [0])}),
                     r"train: a sample of user 'b' has the shape \[1\]; expected \[2\], as of user 'a'"),
    "flat": (one([1.0, 2.0], [1, 0]), "Expected `array`, got `float`.*expected lists of numbers"),
    "too deep": (one([[[1.0]], [[2.0]]], [1, 0]), "Expected `float`, got `array`"),
    "words": (one([["a", "b"], ["c", "d"]], [1, 0]), "Expected `float`, got `str`"),
    "nan": (b'{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[NaN]], "y": [0]}}}', "is not as LEAF writes it"),
    "too large": (b'{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[1e999]], "y": [0]}}}', "out of range"),
    "fractions": (one([[1.0], [2.0]], [1, 0.5]), "user 'a' has the label 0.5; expected whole numbers"),
    "huge labels": (one([[1.0], [2.0]], [1, 2**70]), "the data of user 'a' cannot be read"),
    "celeba": (one(["000001.jpg", "2.jpg"], [1, 0]), "text as samples.*files of their own, as LEAF's celeba has them, are not"),
    "texts of two lengths": (one(["ab", "abc"], ["a", "b"]), "expected texts of one length, .* found lengths 2, 3"),
    "labels of two letters": (one(["ab", "ab"], ["a", "bc"]), "each with one character as its label"),
    "another alphabet": (one(["ab", "aé"], ["a", "b"]), "holds the character 'é', which is none of LEAF's 80"),
    "another label": (one(["ab", "ab"], ["a", "{"]), "holds the character '{', which is none of LEAF's 80"),
    "text and numbers": (leaf({"a": ([[1.0, 2.0]], [0]), "b": (["ab"], ["c"])}), "samples of text as well as of numbers"),
    "nothing": (leaf({}), "has no training samples"),
    "nesting": (b'{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": ' + b"[" * 100_000 + b"]" * 100_000
                + b', "y": [1]}}}', "RecursionError"),
    "not UTF-8": (b'{"users": ["\xff"], "num_samples": [0], "user_data": {"\xff": {"x": [], "y": []}}}',
                  "not as LEAF writes it .*decode byte 0xff"),
    "half a character": (one(["a\ud800", "ab"], ["a", "b"]), "a"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    content, words = DAMAGED[case]
    write(tmp_path, "train", content)
    with pytest.raises(DataError, match=words) as caught:
        read_leaf(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_images_of_another_size(tmp_path: Path) -> None:
    write(tmp_path, "train", GOOD)
    with pytest.raises(DataError, match=r"user 'a' has samples of 2 numbers; expected 784, as images of \[28, 28\] have"):
        read_leaf(tmp_path, image_shape=(28, 28))


def test_a_damaged_test_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "train", GOOD)
    write(tmp_path, "test", leaf({"a": ([[1.0]], [0])}))
    assert read_leaf(tmp_path).test is not None, "shapes of the parts are compared when they are checked"
    (tmp_path / "test" / "more.json").write_text("{}")
    with pytest.raises(DataError, match=r"test/more\.json is not as LEAF writes it"):
        read_leaf(tmp_path)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/gone is not there; expected the folder train with LEAF's"):
        read_leaf(tmp_path / "gone")
    (tmp_path / "all_data.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds all_data\.json; expected the folder train"):
        read_leaf(tmp_path)


def test_one_file_after_the_other_is_in_memory(tmp_path: Path) -> None:
    """3.2 MB of samples in 8 files of 1 MB each: what is held at most is far from all text, or all numbers as objects."""
    rows = json.dumps([0.123456] * 1000)
    text = f'{{"users": ["USER"], "num_samples": [100], "user_data": {{"USER": {{"x": [{", ".join([rows] * 100)}], ' \
           f'"y": {[1] * 100}}}}}}}'
    write(tmp_path, "train", *(text.replace("USER", f"u{number}").encode() for number in range(8)))
    tracemalloc.start()
    try:
        content = read_leaf(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert content.train.x.nbytes == 3_200_000
    assert peak < 2.2 * 3_200_000 + 2.5 * len(text)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(b'{}[]":,.0123456789-eabxyu \xff')), max_size=4),
       cut=st.integers(0, 400))
def test_a_changed_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]],
                                           cut: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-leaf"
    if not folder.exists():
        write(folder, "train", GOOD)
    content = bytearray(json.dumps(GOOD).encode())
    for at, value in changes:
        content[at % len(content)] = value
    next((folder / "train").iterdir()).write_bytes(content[:cut] if cut % 3 == 0 else content)
    found = content_or_error(read_leaf, folder)
    assert found is None or len(found.train.x) == len(found.train.y) == len(found.train.columns["user"])
