"""What samples go through, against formulas and NumPy's own padding and turning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation.core.random import stream
from federation.data.client_data import ClientData
from federation.data.dataset import Dataset
from federation.data.draws import below
from federation.data.manager import DataManager
from federation.data.partitioner import iid
from federation.data.rows import Rows
from federation.data.transforms import Transforms
from federation.errors import DataError

BYTES = np.arange(6 * 2 * 4 * 4, dtype=np.uint8).reshape(6, 2, 4, 4)
SHAPE = (2, 4, 4)


def test_bytes_are_scaled_then_normalised() -> None:
    made = Transforms(SHAPE, scale=1 / 255, mean=[0.5, 0.25], std=[0.5, 2.0]).train(BYTES.copy(), 0, 1)
    want = BYTES.astype(np.float32) * np.float32(1 / 255)
    want[:, 0] = (want[:, 0] - np.float32(0.5)) / np.float32(0.5)
    want[:, 1] = (want[:, 1] - np.float32(0.25)) / np.float32(2.0)
    np.testing.assert_array_equal(made, want)
    assert made.dtype == np.float32


def test_nothing_asked_is_nothing_done() -> None:
    x = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    for made in (Transforms((7,)).train(x.copy(), 3, 2), Transforms((7,)).evaluate(x.copy(), None)):
        np.testing.assert_array_equal(made, x)


def test_a_number_counts_for_every_channel() -> None:
    one = Transforms(SHAPE, mean=0.5, std=2).evaluate(BYTES.copy(), None)
    each = Transforms(SHAPE, mean=[0.5, 0.5], std=[2, 2]).evaluate(BYTES.copy(), None)
    np.testing.assert_array_equal(one, each)
    np.testing.assert_array_equal(one, Transforms(SHAPE, mean=[0.5], std=[2]).evaluate(BYTES.copy(), None))


@pytest.mark.parametrize("crop", [1, 3, 5])
def test_crops_are_windows_of_the_padded_image(crop: int) -> None:
    x = np.arange(1, 1 + 400 * 3 * 5, dtype=np.float32).reshape(400, 1, 3, 5)
    made = Transforms((1, 3, 5), crop=crop).train(x.copy(), 4, 9)
    padded = np.pad(x, ((0, 0), (0, 0), (crop, crop), (crop, crop)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[:, 0], (3, 5), axis=(1, 2))
    corners = set()
    for image, mine in zip(made[:, 0], windows, strict=True):
        hits = [(top, left) for top in range(2 * crop + 1) for left in range(2 * crop + 1)
                if np.array_equal(mine[top, left], image)]
        assert hits
        corners.update(hits)
    assert len(corners) > (2 * crop + 1) ** 2 * 0.7, "every corner is drawn"


def test_flips_are_half_and_of_columns_alone() -> None:
    x = np.random.default_rng(1).random((1000, 3, 4)).astype(np.float32)
    made = Transforms((3, 4), flip=True).train(x.copy(), 0, 1)
    is_flipped = (made == x[..., ::-1]).all(axis=(1, 2))
    assert (is_flipped | (made == x).all(axis=(1, 2))).all()
    assert 440 < is_flipped.sum() < 560  # four standard deviations


def test_augmentation_follows_seed_round_and_client_alone() -> None:
    x = np.random.default_rng(2).random((40, 1, 6, 6)).astype(np.float32)

    def made(seed: int, client: int, round: int) -> bytes:
        return Transforms((1, 6, 6), crop=2, flip=True, seed=seed).train(x.copy(), client, round).tobytes()

    assert made(1, 2, 3) == made(1, 2, 3)
    assert len({made(1, 2, 3), made(0, 2, 3), made(1, 0, 3), made(1, 2, 0)}) == 4


def test_evaluation_sees_no_augmentation() -> None:
    x = np.random.default_rng(2).random((40, 1, 6, 6)).astype(np.float32)
    for client in (None, 3):
        np.testing.assert_array_equal(Transforms((1, 6, 6), crop=2, flip=True).evaluate(x.copy(), client), x)


def test_noise_grows_with_the_client_and_stays_from_round_to_round() -> None:
    x = np.zeros((500, 20), np.float32)
    transforms = Transforms((20,), noise=0.5, num_clients=10, seed=3)
    for client in (0, 4, 9):
        made = transforms.train(x.copy(), client, 1)
        wanted = 0.5 * (client + 1) / 10
        assert made.var() == pytest.approx(wanted, rel=0.06)  # four standard deviations of 10,000 draws
        assert abs(made.mean()) < 4 * np.sqrt(wanted / 10_000)
        np.testing.assert_array_equal(made, transforms.train(x.copy(), client, 2))
        assert not np.array_equal(made, transforms.evaluate(x.copy(), client))
    np.testing.assert_array_equal(transforms.evaluate(x.copy(), None), x), "the server's samples have no noise"


@pytest.mark.parametrize(("settings", "wanted"), [
    ({"std": 0.5}, [4.0, 8.0]), ({"mean": -1.0}, [3.0, 5.0]), ({"std": [0.5, 1.0]}, [4.0, 4.0]), ({"scale": 0.5}, [1.0, 2.0])])
def test_each_setting_counts_by_itself(settings: dict[str, Any], wanted: list[float]) -> None:
    transforms = Transforms((2,), **settings)
    assert transforms.changes_training
    assert transforms.train(np.array([[2.0, 4.0]], np.float32), 0, 1).tolist() == [wanted]


@pytest.mark.parametrize(("rotations", "turns"), [(1, [0] * 5), (2, [0, 2, 0, 2, 0]), (4, [0, 1, 2, 3, 0])])
def test_clients_are_turned_in_turn(rotations: int, turns: list[int]) -> None:
    x = np.random.default_rng(0).random((3, 2, 5, 5)).astype(np.float32)
    transforms = Transforms((2, 5, 5), rotations=rotations)
    for client, turn in enumerate(turns):
        for made in (transforms.train(x.copy(), client, 1), transforms.evaluate(x.copy(), client)):
            np.testing.assert_array_equal(made, np.rot90(x, turn, axes=(2, 3)))
            assert made.flags.c_contiguous
            assert made.ctypes.data % 64 == 0
    np.testing.assert_array_equal(transforms.evaluate(x.copy(), None), x)


@pytest.mark.parametrize(("shape", "settings", "words"), [
    ((64,), {"crop": 1}, r"for images, but a sample has the shape \[64\]"), ((64,), {"flip": True}, "for images"),
    ((64,), {"rotations": 2}, "for images"), ((1, 4, 4), {"rotations": 3}, "3 is not one of 1, 2, 4"),
    ((1, 4, 5), {"rotations": 4}, "square"), ((1, 4, 4), {"crop": -1}, "at least 0"),
    ((1, 4, 4), {"noise": -0.1}, "at least 0"), ((3, 4, 4), {"mean": [0.1, 0.2]}, "one for each of 3 channels"),
    ((3, 4, 4), {"std": [1, 0, 1]}, "above 0"), ((3, 4, 4), {"std": -1.0}, "above 0"),
    ((3, 4, 4), {"mean": float("nan")}, "mean"), ((3, 4, 4), {"std": float("inf")}, "std"),
])
def test_what_is_not_possible_is_refused(shape: tuple[int, ...], settings: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Transforms(shape, **settings)  # type: ignore[arg-type]


def _manager(**settings: object) -> tuple[DataManager, Dataset]:
    x = np.random.default_rng(5).integers(0, 256, (60, 1, 6, 6), dtype=np.uint8)
    rows = Rows(x)
    y = np.arange(60) % 3
    dataset = Dataset(rows, y, rows.chosen(np.arange(10)), y[:10], 3, "images", scale=0.5)
    transforms = Transforms((1, 6, 6), scale=0.5, num_clients=4, **settings)  # type: ignore[arg-type]
    return DataManager(dataset, iid(y, 4, 0), transforms=transforms), dataset


def test_a_client_gets_its_own_transforms_each_round() -> None:
    manager, dataset = _manager(crop=1, flip=True)
    rows = manager.partition.client(2)
    first, again, later = manager.client(2, 1), manager.client(2, 1), manager.client(2, 2)
    assert first.x.dtype == np.float32
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, later.x)
    np.testing.assert_array_equal(first.y, later.y)
    plain = np.asarray(dataset.x_train)[rows].astype(np.float32) * np.float32(0.5)
    corners = below(stream(0, "augment", 1, 2), 3, 2 * len(rows)).reshape(-1, 2)
    padded = np.pad(plain, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for image, source, (top, left) in zip(first.x, padded, corners, strict=True):
        window = source[:, top : top + 6, left : left + 6]
        assert np.array_equal(image, window) or np.array_equal(image, window[..., ::-1])


def test_noise_on_validation_samples_is_not_that_of_test_samples() -> None:
    x, transforms = np.zeros((60, 5), np.float32), Transforms((5,), noise=0.5, num_clients=4, seed=3)
    dataset = Dataset(x, np.arange(60) % 3, x[:3], np.arange(3), 3, "zeros")
    manager = DataManager(dataset, iid(dataset.y_train, 4, 0), 0.2, client_validation_fraction=0.2, transforms=transforms)
    data = manager.client(2)
    for found, part in ((data.x_test, "test"), (data.x_validation, "validation")):
        np.testing.assert_array_equal(found, transforms.evaluate(np.zeros((3, 5), np.float32), 2, part))
    assert not np.array_equal(data.x_test, data.x_validation)


def test_shards_are_scaled_and_normalised() -> None:
    manager, dataset = _manager(mean=3.0)
    shard = manager.shard("test", 0)
    assert isinstance(shard, ClientData)
    np.testing.assert_array_equal(shard.x_test, np.asarray(dataset.x_test) * np.float32(0.5) - np.float32(3))
