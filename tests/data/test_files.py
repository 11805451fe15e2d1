"""Arrays from .npz and HDF5: both layouts, and every way in which a file can be wrong."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from federation.data.load import load_dataset
from federation.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3, 2))
Y = np.arange(40) % 4
APART = {"x_train": X[:30], "y_train": Y[:30], "x_test": X[30:], "y_test": Y[30:]}


def write(path: Path, arrays: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array)
    return path


SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])


@SUFFIXES
def test_one_table_is_split(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", {"x": X, "y": Y, "note": np.arange(3)})
    dataset = load_dataset(f"a{suffix}", root=str(tmp_path), test_fraction=0.25)
    assert (dataset.x_train.shape, dataset.x_test.shape, dataset.num_classes) == ((30, 3, 2), (10, 3, 2), 4)
    both = np.concatenate([dataset.x_train, dataset.x_test])
    np.testing.assert_array_equal(np.sort(both, axis=None), np.sort(X.astype(np.float32), axis=None))


@SUFFIXES
def test_a_test_set_of_its_own_is_used(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", APART)
    dataset = load_dataset(str(path), test_fraction=0.5)
    np.testing.assert_array_equal(dataset.x_train, X[:30].astype(np.float32))
    np.testing.assert_array_equal(dataset.y_test, Y[30:])
    assert dataset.input_shape == (3, 2)


def test_hdf5_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {key.replace("x_", "").replace("y_", "") + "/" + key[0]: value
                                     for key, value in APART.items()})
    np.testing.assert_array_equal(load_dataset(str(path)).y_train, Y[:30])


@SUFFIXES
def test_float_targets_are_regression(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", {"x": X, "y": Y / 3})
    dataset = load_dataset(str(path), test_fraction=0)
    assert dataset.num_classes is None
    np.testing.assert_array_equal(dataset.y_train, (Y / 3).astype(np.float32))


def test_task_and_num_classes_can_be_said(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.npz", {"x": X, "y": Y.astype(float)}))
    assert load_dataset(path, config={"task": "regression"}).num_classes is None
    whole = str(write(tmp_path / "b.npz", {"x": X, "y": Y}))
    assert load_dataset(whole, config={"num_classes": 7}).num_classes == 7
    assert load_dataset(whole, config={"task": "regression"}).y_train.dtype == np.float32


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nothing": ({}, {}, "expected the keys x y, or x_train y_train x_test y_test"),
    "other keys": ({"features": X, "labels": Y}, {}, "expected the keys x y.*found features, labels"),
    "no y": ({"x": X}, {}, "the key y is missing"),
    "no test": ({"x_train": X, "y_train": Y}, {}, "the key x_test and y_test is missing"),
    "both layouts": ({"x": X, "y": Y, **APART}, {}, "unclear which to use"),
    "lengths": ({"x": X, "y": Y[:39]}, {}, "x holds 40 samples, but .*: y 39"),
    "lengths of the test set": ({**APART, "y_test": Y[30:39]}, {}, "x_test holds 10 samples, but .*: y_test 9"),
    "sample shapes": ({**APART, "x_test": X[30:, :2]}, {}, r"x_test has the shape \[2, 2\]; expected \[3, 2\]"),
    "flat x": ({"x": X[:, 0, 0], "y": Y}, {}, r": x has the shape \[40\]; expected"),
    "column y": ({"x": X, "y": Y[:, None]}, {}, r": y has the shape \[40, 1\]; expected"),
    "scalar": ({"x": np.float64(3), "y": Y}, {}, r": x has the shape \[\]; expected"),
    "empty": ({"x": X[:0], "y": Y[:0]}, {}, ": x holds no samples"),
    "nan": ({"x": np.where(X[7, 1, 0] == X, np.nan, X), "y": Y}, {}, r": x holds nan at \[7, 1, 0\]; expected finite"),
    "infinity": ({**APART, "x_test": X[30:] * np.inf}, {}, r": x_test holds -?inf at \[0, 0, 0\]"),
    "too large": ({"x": X * 1e300, "y": Y}, {}, r": x holds .* at \[0, 0, 0\]; expected finite .* range of float32"),
    "nan target": ({"x": X, "y": np.where(Y == 2, np.nan, 0.5)}, {}, r": y holds nan at \[2\]"),
    "float labels": ({"x": X, "y": Y * 1.0}, {}, ": y is float64 and holds whole numbers only; expected integers"),
    "float labels, task said": ({"x": X, "y": Y / 2}, {"task": "classification"}, ": y is float64; expected integers"),
    "float labels, classes said": ({"x": X, "y": Y * 1.0}, {"num_classes": 4}, ": y is float64; expected integers"),
    "negative labels": ({"x": X, "y": Y - 1}, {}, ": y holds -1; expected labels 0, 1, 2"),
    "too many labels": ({"x": X, "y": Y}, {"num_classes": 3}, ": y holds label 3; expected 0 to 2"),
    "too many test labels": ({**APART, "y_test": Y[30:] + 9}, {"num_classes": 4}, ": y_test holds label 12"),
    "complex": ({"x": X * 1j, "y": Y}, {}, ": x is an array of complex128; expected real numbers"),
    "bytes": ({"x": X, "y": np.array([b"cat"] * 40)}, {}, ": y is an array of .*S3; expected real numbers"),
    "unknown setting": ({"x": X, "y": Y}, {"numclasses": 4}, "no setting 'numclasses'; did you mean num_classes"),
    "unknown task": ({"x": X, "y": Y}, {"task": "ranking"}, "task: 'ranking'"),
    "no count of classes": ({"x": X, "y": Y}, {"num_classes": 0}, "num_classes: 0"),
    "classes in regression": ({"x": X, "y": Y}, {"num_classes": 4, "task": "regression"}, "num_classes: 4"),
}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_names_file_key_and_what_was_expected(tmp_path: Path, case: str, suffix: str) -> None:
    arrays, config, words = WRONG[case]
    path = write(tmp_path / f"data{suffix}", arrays)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset(str(path), config=config)
    assert str(path) in str(caught.value)


@SUFFIXES
def test_missing_files_and_folders_are_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/gone{suffix} does not exist; expected a file that holds x and y"):
        load_dataset(f"gone{suffix}", root=str(tmp_path))
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load_dataset(f"folder{suffix}", root=str(tmp_path))


@SUFFIXES
@pytest.mark.parametrize("content", [b"", b"not a data file at all", b"PK\x03\x04 cut", b"\x89HDF\r\n\x1a\n cut",
                                     pickle.dumps({"x": 1})])
def test_files_of_another_kind_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad{suffix}: .*(damaged|no \.npz archive)"):
        load_dataset(str(path))


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("kept", [0.03, 0.3, 0.6, 0.95, 0.999])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = write(tmp_path / f"cut{suffix}", {"x": X, "y": Y})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=f"cut{suffix}"):
        load_dataset(str(path))


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "flip.npz", {"x": X, "y": Y})
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"flip\.npz"):
        load_dataset(str(path))


class Exploit:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (pytest.fail, ("a pickle in a data file was executed",))


@pytest.mark.parametrize("key", ["x", "y"])
def test_object_arrays_are_refused_and_not_run(tmp_path: Path, key: str) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, **({"x": X, "y": Y} | {key: np.array([Exploit()] * 40, object)}))
    with pytest.raises(DataError, match=rf"objects\.npz: .*'{key}'.*never loaded"):
        load_dataset(str(path))


def test_an_archive_of_pickles_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Exploit()))
        archive.writestr("y", pickle.dumps(Exploit()))
    with pytest.raises(DataError, match=r"objects\.npz"):
        load_dataset(str(path))


def test_text_in_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.h5"
    with h5py.File(path, "w") as file:
        file["x"] = X
        file.create_dataset("y", data=["a"] * 40, dtype=h5py.string_dtype())
    with pytest.raises(DataError, match=r"text\.h5: 'y' is an array of Python objects or of strings"):
        load_dataset(str(path))


def test_a_group_in_the_place_of_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "group.h5"
    with h5py.File(path, "w") as file:
        file["x"] = X
        file.create_group("y")
    with pytest.raises(DataError, match=r"group\.h5: 'y' is a group; expected a dataset"):
        load_dataset(str(path))
    with h5py.File(path, "w") as file:
        file["train/x"] = X
    with pytest.raises(DataError, match="the key train/y and test/x and test/y is missing"):
        load_dataset(str(path))


def test_an_array_that_claims_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 1000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("y.npy", b"")
    with pytest.raises(DataError, match=r"huge\.npz"):
        load_dataset(str(path))
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("x", shape=(10**6, 10**6, 1000), dtype="f4", chunks=(1, 1, 1000))
        file["y"] = Y
    with pytest.raises(DataError, match=r"huge\.h5"):
        load_dataset(str(tmp_path / "huge.h5"))


def test_other_hdf5_files_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "leaf.h5"
    with h5py.File(path, "w") as file:
        file["examples/f0/pixels"] = X
        file["meta"] = 1
    with pytest.raises(DataError, match=r"leaf\.h5: expected the keys x y, or .*; found examples, meta"):
        load_dataset(str(path))


@pytest.mark.parametrize("dtype", [h5py.vlen_dtype(np.int32), h5py.ref_dtype])
def test_objects_in_hdf5_are_refused(tmp_path: Path, dtype: np.dtype) -> None:
    path = tmp_path / "objects.h5"
    with h5py.File(path, "w") as file:
        file["x"] = X
        file.create_dataset("y", (40,), dtype)
    with pytest.raises(DataError, match=r"objects\.h5: 'y' is an array of objects"):
        load_dataset(str(path))


def test_an_hdf5_file_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    """400 MB of a file of a few kB, which memory would have room for."""
    path = tmp_path / "claim.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(10**5, 1000), dtype="f4", chunks=(1, 1000))
        file["y"] = Y
    with pytest.raises(DataError, match=r"claim\.h5: the dataset 'x' says that it holds 400000000 bytes, which a file of"):
        load_dataset(str(path))
    with h5py.File(path, "w") as file:  # as dense as deflate can be
        file.create_dataset("x", data=np.zeros((1000, 2000), np.float32), compression="gzip", compression_opts=9)
        file["y"] = np.arange(1000) % 3
    assert load_dataset(str(path), test_fraction=0).x_train.shape == (1000, 2000)
