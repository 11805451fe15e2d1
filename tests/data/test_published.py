"""Published sets by their names, from small files in their publishers' formats, wherever these may lie."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from federation.data.load import load_dataset
from federation.data.sources.published import PUBLISHED
from federation.errors import DataError

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, train: str, test: str, packed: bool, labels: np.ndarray = LABELS) -> None:
    folder.mkdir(parents=True)
    for part, chosen in ((train, slice(0, 3)), (test, slice(3, 5))):
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", labels)):
            content = idx(array[chosen])
            path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("name", "folder", "packed"), [
    ("mnist", "mnist", True), ("mnist", "MNIST/raw", False), ("mnist", ".", True), ("fashion_mnist", "fashion_mnist", True),
    ("fashion_mnist", "FashionMNIST/raw", False)])
def test_mnist_and_fashion_mnist(tmp_path: Path, name: str, folder: str, packed: bool, cached: bool) -> None:
    root = tmp_path / "root"
    write_idx(root / folder, "train", "t10k", packed)
    dataset = load_dataset(name, root=str(root), cache=tmp_path / "cache" if cached else None)
    np.testing.assert_array_equal(dataset.x_train, IMAGES[:3])
    np.testing.assert_array_equal(dataset.x_test, IMAGES[3:])
    assert dataset.x_train.dtype == np.uint8, "bytes stay bytes until a client's turn comes"
    assert [*dataset.y_train, *dataset.y_test] == LABELS.tolist()
    assert (dataset.num_classes, dataset.scale, dataset.input_shape) == (10, 1 / 255, (28, 28))
    assert (tmp_path / "cache").exists() == cached


@pytest.mark.parametrize(("split", "classes", "first"), [("balanced", 47, 0), ("letters", 26, 1), ("byclass", 62, 0)])
def test_emnist_is_turned_and_its_letters_begin_with_1(tmp_path: Path, split: str, classes: int, first: int) -> None:
    write_idx(tmp_path / "emnist", f"emnist-{split}-train", f"emnist-{split}-test", True)
    dataset = load_dataset("emnist", root=str(tmp_path), config={"split": split})
    np.testing.assert_array_equal(dataset.x_train, IMAGES[:3].transpose(0, 2, 1))
    assert dataset.y_train.tolist() == (LABELS[:3].astype(int) - first).tolist()
    assert dataset.num_classes == classes
    with pytest.raises(DataError, match="'half' is not one of balanced, byclass"):
        load_dataset("emnist", root=str(tmp_path), config={"split": "half"})


COLOURS = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)


def cifar10_binary() -> dict[str, bytes]:
    records = [bytes([n]) + COLOURS[n].tobytes() for n in range(6)]
    return {**{f"data_batch_{n + 1}.bin": records[n] for n in range(5)}, "test_batch.bin": records[5]}


def write_tar(path: Path, folder: str, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("place", ["cifar10/cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz", "cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, place: str) -> None:
    if place.endswith(".gz"):
        write_tar(tmp_path / place, "cifar-10-batches-bin", cifar10_binary())
    else:
        (tmp_path / place).mkdir()
        for name, content in cifar10_binary().items():
            (tmp_path / place / name).write_bytes(content)
    dataset = load_dataset("cifar10", root=str(tmp_path), cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.x_train, COLOURS[:5].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(dataset.x_test, COLOURS[5:].reshape(-1, 3, 32, 32))
    assert dataset.y_train.tolist() == [0, 1, 2, 3, 4]
    assert (dataset.num_classes, dataset.scale) == (10, 1 / 255)


def test_cifar100_has_its_superclasses(tmp_path: Path) -> None:
    records = [bytes([n // 2, 90 + n]) + COLOURS[n].tobytes() for n in range(6)]
    write_tar(tmp_path / "cifar100" / "cifar-100-binary.tar.gz", "cifar-100-binary",
              {"train.bin": b"".join(records[:4]), "test.bin": b"".join(records[4:])})
    dataset = load_dataset("cifar100", root=str(tmp_path))
    assert dataset.y_train.tolist() == [90, 91, 92, 93]
    assert dataset.columns["coarse_label"].tolist() == [0, 0, 1, 1]
    assert dataset.test_columns["coarse_label"].tolist() == [2, 2]


def write_leaf(folder: Path, users: dict[str, tuple[list[object], list[object]]]) -> None:
    folder.mkdir(parents=True)
    content = {"users": list(users), "num_samples": [len(y) for _, y in users.values()],
               "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()}}
    (folder / "all_data_0.json").write_text(json.dumps(content))


@pytest.mark.parametrize("place", ["femnist", "femnist/data"])
def test_femnist(tmp_path: Path, place: str) -> None:
    pixels = (IMAGES / 255).reshape(5, -1).round(3)
    write_leaf(tmp_path / place / "train", {"f2": (pixels[:2].tolist(), [7, 61]), "f1": (pixels[2:3].tolist(), [0])})
    write_leaf(tmp_path / place / "test", {"f1": (pixels[3:4].tolist(), [5])})
    dataset = load_dataset("femnist", root=str(tmp_path), cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.x_train, pixels[:3].reshape(-1, 28, 28).astype(np.float32))
    assert dataset.y_train.tolist() == [7, 61, 0]
    assert dataset.columns["user"].tolist() == [1, 1, 0]
    assert dataset.test_columns["user"].tolist() == [0]
    assert dataset.num_classes == 62


def test_shakespeare(tmp_path: Path) -> None:
    write_leaf(tmp_path / "shakespeare" / "train", {"ROMEO": (["a" * 80, "b" * 80], ["\n", "}"])})
    dataset = load_dataset("shakespeare", root=str(tmp_path), test_fraction=0)
    assert dataset.input_shape == (80,)
    assert dataset.num_classes == 80
    assert dataset.y_train.tolist() == [0, 79]


@pytest.mark.parametrize("name", ["leaf:here", "leaf:~/here", "leaf:{home}/here"])
def test_a_folder_of_leafs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In data.root, at home, or by its whole path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_leaf(tmp_path / "here" / "train", {"a": ([[0.5], [1.5]], [0, 1])})
    root = tmp_path if name == "leaf:here" else tmp_path / "elsewhere"
    dataset = load_dataset(name.format(home=tmp_path), root=str(root), test_fraction=0)
    assert dataset.y_train.tolist() == [0, 1]


def test_federated_emnist(tmp_path: Path) -> None:
    pixels = (IMAGES / 255).astype(np.float32)
    (tmp_path / "federated_emnist").mkdir()
    for part, users in (("train", {"f1": slice(0, 2), "f0": slice(2, 3)}), ("test", {"f0": slice(3, 4), "f1": slice(4, 5)})):
        with h5py.File(tmp_path / "federated_emnist" / f"fed_emnist_{part}.h5", "w") as file:
            for user, rows in users.items():
                file[f"examples/{user}/pixels"] = pixels[rows]
                file[f"examples/{user}/label"] = LABELS[rows].astype(np.int32)
    dataset = load_dataset("federated_emnist", root=str(tmp_path), cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.x_train, pixels[[2, 0, 1]])
    assert dataset.columns["user"].tolist() == [0, 1, 1]
    assert dataset.test_columns["user"].tolist() == [0, 1]
    first = load_dataset("federated_emnist", root=str(tmp_path), config={"max_users": 1}, cache=tmp_path / "cache")
    assert len(first.y_train) == 1, "another setting is another entry of the cache"


def test_stackoverflow_counts_words_where_no_list_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "stackoverflow"
    folder.mkdir()
    for part, sentences in (("train", ["b a b", "a b c"]), ("test", ["c b"])):
        with h5py.File(folder / f"stackoverflow_{part}.h5", "w") as file:
            file.create_dataset("examples/00001/tokens", data=[text.encode() for text in sentences],
                                dtype=h5py.string_dtype())
    config = {"vocabulary_size": 2, "length": 4, "stride": 4}
    dataset = load_dataset("stackoverflow", root=str(tmp_path), config=config)
    # b 1, a 2 (3 and 2 times), any other 3, begin 4, end 5; padding 0 in front
    np.testing.assert_array_equal(dataset.x_train, [[4, 1, 2, 1], [4, 2, 1, 3]])
    np.testing.assert_array_equal(dataset.x_test, [[0, 4, 3, 1]])
    assert (dataset.y_train.tolist(), dataset.num_classes) == ([5, 5], 6)
    every = load_dataset("stackoverflow", root=str(tmp_path), config={"vocabulary_size": 2, "length": 4})
    np.testing.assert_array_equal(np.asarray(every.x_test), [[0, 0, 0, 4], [0, 0, 4, 3], [0, 4, 3, 1]])
    assert every.y_test.tolist() == [3, 1, 5]
    (folder / "stackoverflow.word_count").write_text("c 10\na 9\nb 1\n")
    dataset = load_dataset("stackoverflow", root=str(tmp_path), config=config)
    np.testing.assert_array_equal(dataset.x_train, [[4, 3, 2, 3], [4, 2, 3, 1]])


@pytest.mark.parametrize(("setting", "value"), [("max_users", 0), ("max_users", -1), ("vocabulary_size", -1), ("length", -1),
                                                ("stride", 0), ("stride", -1)])
def test_counts_below_1_are_refused(tmp_path: Path, setting: str, value: int) -> None:
    """-1 user would be all but the last, and a stride of 0 one of the sample's length."""
    (tmp_path / "stackoverflow").mkdir()
    for part in ("train", "test"):
        with h5py.File(tmp_path / "stackoverflow" / f"stackoverflow_{part}.h5", "w") as file:
            file.create_dataset("examples/00001/tokens", data=[b"a b", b"a"], dtype=h5py.string_dtype())
    with pytest.raises(DataError, match=f"^stackoverflow: {setting}: {value} is not a whole number of at least 1"):
        load_dataset("stackoverflow", root=str(tmp_path), config={setting: value})


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_is_not_there_names_the_way(tmp_path: Path, name: str) -> None:
    advice = "preprocess.sh" if name in ("femnist", "shakespeare") else f"federation.data fetch {name} --root {tmp_path}"
    with pytest.raises(DataError, match=f"^{name}: neither .* is in {tmp_path}/{name}; .*{advice}"):
        load_dataset(name, root=str(tmp_path))


def test_a_file_that_was_replaced_is_converted_again(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", "train", "t10k", True)
    load_dataset("mnist", root=str(tmp_path), cache=tmp_path / "cache")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([9, 9, 9], np.uint8))))
    assert load_dataset("mnist", root=str(tmp_path), cache=tmp_path / "cache").y_train.tolist() == [9, 9, 9]


def test_a_damaged_file_is_named_by_its_place(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", "train", "t10k", True)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{path}"):
        load_dataset("mnist", root=str(tmp_path), cache=tmp_path / "cache")
    assert not [entry for entry in (tmp_path / "cache").iterdir() if not entry.name.startswith(".")]
