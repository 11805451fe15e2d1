"""Sets of other libraries: fetched once into a file, which is all that a run needs."""

from __future__ import annotations

import multiprocessing
import sys
import types
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from federation.data.__main__ import main
from federation.data.formats.raw import Content, Samples
from federation.data.load import load_dataset
from federation.data.sources.libraries import _write, fetch_library
from federation.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "iris", "wine"])
def test_what_comes_with_scikit_learn_needs_no_fetching(name: str) -> None:
    import sklearn.datasets

    wanted = getattr(sklearn.datasets, f"load_{name}")()
    config = {"task": "regression"} if name == "diabetes" else {}
    dataset = load_dataset(f"sklearn:{name}", test_fraction=0, config=config)
    np.testing.assert_array_equal(dataset.x_train, wanted.data.astype(np.float32))
    np.testing.assert_array_equal(dataset.y_train, wanted.target)
    assert dataset.num_classes == (None if config else len(wanted.target_names))


def _images(tmp_path: Path) -> tuple[Path, np.ndarray, list[int], list[str]]:
    """A folder as `datasets` reads it: Parquet files of a training and a test split."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    labels, users = [n % 3 for n in range(12)], [f"user {n % 4}" for n in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c", "d"]),
                                  "user": datasets.Value("string")})
    folder = tmp_path / "images"
    folder.mkdir()
    for split, chosen in (("train", range(8)), ("test", range(8, 12))):
        rows = {"image": [pixels[n] for n in chosen], "label": [labels[n] for n in chosen],
                "user": [users[n] for n in chosen]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder, pixels, labels, users


def test_images_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder, pixels, labels, users = _images(tmp_path)
    name = f"hf:{folder}"
    assert main(["fetch", name, "--root", str(tmp_path / "root"), "--option", "columns=user"]) == 0
    assert "wrote" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "datasets", None)  # a run does without
    dataset = load_dataset(name, root=str(tmp_path / "root"), cache=tmp_path / "cache")
    assert dataset.x_train.dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate([dataset.x_train, dataset.x_test]), pixels.transpose(0, 3, 1, 2))
    assert [*dataset.y_train, *dataset.y_test] == labels
    assert dataset.num_classes == 4, "as the set says, though no sample has the last class"
    assert dataset.scale == 1 / 255
    assert dataset.columns["user"].tolist() == [int(user[-1]) for user in users[:8]]
    assert dataset.test_columns["user"].tolist() == [int(user[-1]) for user in users[8:]]


def test_numbers_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "numbers"
    folder.mkdir()
    datasets.Dataset.from_dict({"height": [1.5, 2.5, 3.5], "width": [4, 5, 6], "kind": [0, 1, 0]}).to_csv(
        str(folder / "train.csv"))
    with pytest.raises(DataError, match=r"the column for y is unclear \(none fits\); name it with --y"):
        fetch_library(f"hf:{folder}", tmp_path, {})
    with pytest.raises(DataError, match="no column 'sort'; it has height, width, kind"):
        fetch_library(f"hf:{folder}", tmp_path, {"y": "sort"})
    fetch_library(f"hf:{folder}", tmp_path, {"y": "kind"})
    dataset = load_dataset(f"hf:{folder}", root=str(tmp_path), test_fraction=0)
    np.testing.assert_array_equal(dataset.x_train, [[1.5, 4], [2.5, 5], [3.5, 6]])
    assert dataset.y_train.tolist() == [0, 1, 0]


def test_openml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def fetch_openml(**wanted: object) -> types.SimpleNamespace:
        asked.append(wanted)
        return types.SimpleNamespace(data=np.eye(3), target=np.array(["cat", "dog", "cat"], object))

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    for name in ("openml:pets", "openml:61"):
        fetch_library(name, tmp_path, {})
        dataset = load_dataset(name, root=str(tmp_path), test_fraction=0)
        assert dataset.y_train.tolist() == [0, 1, 0]
        np.testing.assert_array_equal(dataset.x_train, np.eye(3))
    assert asked[0]["name"] == "pets"
    assert asked[1]["data_id"] == 61
    assert main(["fetch", "openml:pets", "--root", str(tmp_path), "--option", "version=2"]) == 0
    assert [wanted.get("version") for wanted in asked] == ["active", None, 2]  # a number: scikit-learn refuses "2"
    with pytest.raises(DataError, match=r"openml:pets: version: '2\.0' is not a whole number"):
        fetch_library("openml:pets", tmp_path, {"version": "2.0"})
    with pytest.raises(DataError, match="openml:61: a number says which version; leave out version"):
        fetch_library("openml:61", tmp_path, {"version": "2"})


def test_two_that_fetch_at_once_end_with_a_whole_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(4)
    writers = [context.Process(target=_write_at_once, args=(tmp_path / "set.npz", together)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]
    with np.load(tmp_path / "set.npz") as found:
        assert found["x_train"].sum() == 1 << 20


def _write_at_once(path: Path, together: Barrier) -> None:
    content = Content(Samples(np.ones((1 << 10, 1 << 10)), np.zeros(1 << 10, np.int64)))
    together.wait()
    _write(path, content)


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)

    class Tiny:
        def __init__(self, root: str, train: bool = True, transform: object = None, download: bool = False) -> None:
            assert download
            self.part = slice(0, 3) if train else slice(3, 4)

        def __len__(self) -> int:
            return len(pixels[self.part])

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return pixels[self.part][index], index % 2

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(Tiny=Tiny)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    with pytest.raises(DataError, match="no data set 'tiny'; did you mean Tiny"):
        fetch_library("torchvision:tiny", tmp_path, {})
    fetch_library("torchvision:Tiny", tmp_path, {})
    dataset = load_dataset("torchvision:Tiny", root=str(tmp_path))
    np.testing.assert_array_equal(dataset.x_train, pixels[:3, None])
    np.testing.assert_array_equal(dataset.x_test, pixels[3:, None])
    assert dataset.y_train.tolist() == [0, 1, 0]


def test_what_was_not_fetched_names_the_way(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hf:a/b is not there: .*/hf/a--b\.npz .*federation\.data fetch hf:a/b --root"):
        load_dataset("hf:a/b", root=str(tmp_path))


def test_errors_of_the_library_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    def fails(**wanted: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fails)
    assert main(["fetch", "openml:pets", "--root", str(tmp_path)]) == 1
    assert "openml:pets could not be fetched (RuntimeError: no network)" in capsys.readouterr().err
    with pytest.raises(DataError, match="no option 'z'; known: version, target"):
        fetch_library("openml:pets", tmp_path, {"z": 1})
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"torchvision:X needs a library that is not installed .*\[torch\]"):
        fetch_library("torchvision:X", tmp_path, {})
    with pytest.raises(DataError, match="has no data set 'nothing'"):
        fetch_library("sklearn:nothing", tmp_path, {})
    assert not list(tmp_path.rglob("*.npz"))


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hf" / "x.npz"
    path.parent.mkdir()
    np.savez(path, x_train=np.eye(2))
    with pytest.raises(DataError, match=r"x\.npz lacks y_train, scale; .*fetch it again"):
        load_dataset("hf:x", root=str(tmp_path))
    path.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match=r"x\.npz: this is no \.npz archive"):
        load_dataset("hf:x", root=str(tmp_path))
