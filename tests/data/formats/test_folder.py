"""Folders of `.npy` files: both layouts, columns, and files that are damaged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.formats.folder import read_folder
from federation.errors import DataError
from tests.data.formats.reading import content_or_error

X = np.random.default_rng(0).integers(0, 256, (6, 2, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])
USER = np.array([5, 5, 7, 7, 7, 9])


def npy(array: np.ndarray) -> bytes:
    """The format's version 1.0 by its description: magic, version, length of the head, the head, the values."""
    head = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape!r}, }}".encode()
    head = head.ljust((len(head) + 11 + 63) // 64 * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + array.tobytes()


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.npy").write_bytes(content if isinstance(content, bytes) else npy(content))
    return folder


def test_one_table_with_columns(tmp_path: Path) -> None:
    content = read_folder(write(tmp_path / "data", x=X, y=Y, user=USER, site=Y * 2))
    np.testing.assert_array_equal(content.train.x, X)
    assert (content.train.y.tolist(), content.test) == (Y.tolist(), None)
    assert {key: column.tolist() for key, column in content.train.columns.items()} == {
        "user": USER.tolist(), "site": (Y * 2).tolist()}


def test_training_and_test_samples_with_columns(tmp_path: Path) -> None:
    content = read_folder(write(tmp_path / "data", x_train=X[:4], y_train=Y[:4], x_test=X[4:], y_test=Y[4:], user_train=USER[:4],
                                user_test=USER[4:], site_train=Y[:4]))
    assert content.test is not None
    np.testing.assert_array_equal(content.train.x, X[:4])
    np.testing.assert_array_equal(content.test.x, X[4:])
    assert sorted(content.train.columns) == ["site", "user"]
    assert {key: column.tolist() for key, column in content.test.columns.items()} == {"user": USER[4:].tolist()}


def test_pages_of_the_file_are_mapped_and_read_only(tmp_path: Path) -> None:
    content = read_folder(write(tmp_path / "data", x=X, y=Y))
    assert str(tmp_path / "data" / "x.npy") in Path("/proc/self/maps").read_text()
    assert not content.train.x.flags.writeable


def test_other_orders_and_no_rows(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", y=Y, x=X)
    np.save(folder / "x.npy", np.asfortranarray(X.astype(">f4")))
    np.testing.assert_array_equal(read_folder(folder).train.x, X)
    assert read_folder(write(folder, x=X[:0], y=Y[:0])).train.x.shape == (0, 2, 3)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle in a data file was executed",))


OBJECTS = npy(np.zeros(2)).replace(b"'<f8'", b"'|O' ")[:128] + pickle.dumps(np.array([Exploit(), Exploit()], object))

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, r"holds no \.npy files; expected x\.npy y\.npy or x_train\.npy y_train\.npy x_test\.npy y_test\.npy"),
    "no y": ({"x": X}, r"holds x\.npy; expected x\.npy y\.npy or"),
    "no test": ({"x_train": X, "y_train": Y}, r"holds x_train\.npy, y_train\.npy; expected"),
    "both": ({"x": X, "y": Y, "x_train": X, "y_train": Y, "x_test": X, "y_test": Y}, "not both"),
    "column without a part": ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "user": USER},
                              r"holds user\.npy; columns are called NAME_train\.npy"),
    "column of the test set": ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "user_test": USER},
                               "the column user for test samples alone"),
    "empty file": ({"x": b"", "y": Y}, r"x\.npy: the \.npy file cannot be read, it is damaged"),
    "another kind": ({"x": b"PK\3\4 an archive", "y": Y}, r"x\.npy: the \.npy file cannot be read"),
    "cut in its head": ({"x": npy(X)[:40], "y": Y}, r"x\.npy: the \.npy file cannot be read"),
    "cut": ({"x": npy(X)[:-1], "y": Y}, r"x\.npy: the \.npy file cannot be read"),
    "head is no dict": ({"x": npy(X).replace(b"'shape'", b"[shape'"), "y": Y}, r"x\.npy: the \.npy file cannot be read"),
    "huge": ({"x": npy(X).replace(b"(6, 2, 3), }   ", b"(600000, 2, 3),}"), "y": Y}, r"x\.npy: the \.npy file cannot be read"),
    "objects": ({"x": X, "y": OBJECTS}, r"y\.npy: the \.npy file holds Python objects; .* could execute code"),
    "a column of objects": ({"x": X, "y": Y, "user": OBJECTS}, r"user\.npy: the \.npy file holds Python objects"),
    "a pickle": ({"x": pickle.dumps(Exploit()), "y": Y}, r"x\.npy: the \.npy file cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    """S-SEC-01"""
    files, words = WRONG[case]
    with pytest.raises(DataError, match=words) as caught:
        read_folder(write(tmp_path / "data", **files))
    assert str(tmp_path / "data") in str(caught.value)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/gone is no folder; expected one with x\.npy and y\.npy"):
        read_folder(tmp_path / "gone")


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 163), st.integers(0, 255) | st.sampled_from(b"(){}[]'\\,:\n ")), max_size=4),
       cut=st.integers(0, 700))
def test_a_changed_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]],
                                           cut: int) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "fuzzed-folder", y=Y)
    content = bytearray(npy(X))
    for at, value in changes:
        content[at] = value
    (folder / "x.npy").write_bytes(content[:cut] if cut % 4 == 0 else content)
    content_or_error(read_folder, folder)
