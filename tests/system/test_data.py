"""Data from files, in every world: stored once, split, transformed and measured with the same result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation.assemble import load_data
from federation.config import load_config
from federation.errors import ConfigError

WORLDS = [{"mode": "serial"}, {"mode": "parallel", "workers": 2}, {"ranks": 3}]


def run_everywhere(launch, settings):
    """The results of a run in each world, equal; that of the serial one."""
    results = []
    for world in WORLDS:
        workers = world.get("workers")
        given = {key: value for key, value in world.items() if key != "workers"}
        results.append(launch(settings=[*settings, *([f"num_workers={workers}"] if workers else [])], **given))
    for other in results[1:]:
        assert other.result == results[0].result
    return results[0]


def write_images(folder: Path) -> None:
    """Bytes, 6 x 6: the place of a bright square is the class."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = rng.integers(0, 60, (400, 6, 6), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 150
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)


def test_stored_transformed_and_validated(launch, tmp_path):
    """Two rows of metrics a round that nobody trained on; the parts are measured apart."""
    images = tmp_path / "images"
    images.mkdir()
    write_images(images)
    cache = tmp_path / "cache"
    run = run_everywhere(launch, [
        f"data.root={tmp_path}", "data.dataset=images/", f"data.cache={cache}", "num_clients=8",
        "data.partitioner=inner_dirichlet", "data.partitioner_config.alpha=0.5", "data.validation_fraction=0.2",
        "data.client_test_fraction=0.2", "data.client_validation_fraction=0.1", "trainer_config.evaluate=both",
        "data.transforms={crop: 1, noise: 0.5, mean: 30, std: 80}", "trainer_config.max_rounds=6"])
    rows = run.rows
    for row in rows:
        assert {"accuracy", "validation_accuracy", "client_accuracy", "client_validation_accuracy"} <= set(row)
    assert rows[-1]["validation_accuracy"] > 0.8
    assert rows[-1]["loss"] != rows[-1]["validation_loss"]
    assert len([entry for entry in cache.iterdir() if not entry.name.startswith(".")]) == 1, "one copy for all"


def test_the_best_checkpoint_is_chosen_by_validation(launch, tmp_path):
    import h5py

    run = launch(mode="serial", settings=["data.validation_fraction=0.2", "trainer_config.max_rounds=8", "checkpoint.keep=1",
                                          "learner_config.client_lr=2.0", "num_clients=5"])
    kept = sorted(int(path.stem.removeprefix("round_")) for path in (run.folder / "checkpoints").glob("*.h5"))
    scores = [row["validation_accuracy"] for row in run.rows]
    best = max(range(8), key=lambda at: (scores[at], at)) + 1
    assert kept == sorted({best, 8})
    with h5py.File(run.folder / "checkpoints" / f"round_{best:06d}.h5") as file:
        assert float(file.attrs["metric"]) == pytest.approx(scores[best - 1])


def test_users_are_clients_and_are_tested_on_their_own_samples(launch, tmp_path):
    """LEAF's files: a user's training and test samples stay together, in every world."""
    rng = np.random.default_rng(1)
    for part, count in (("train", 30), ("test", 10)):
        folder = tmp_path / "users" / part
        folder.mkdir(parents=True)
        data = {}
        for number in range(6):
            y = rng.integers(0, 3, count)
            x = rng.normal(size=(count, 5)).round(3) + 2.0 * np.eye(5)[y]
            data[f"user_{number}"] = {"x": x.tolist(), "y": y.tolist()}
        (folder / "all_data.json").write_text(json.dumps({
            "users": list(data), "num_samples": [count] * 6, "user_data": data}))
    run = run_everywhere(launch, [
        f"data.root={tmp_path}", "data.dataset=leaf:users", f"data.cache={tmp_path / 'cache'}", "num_clients=6",
        "data.partitioner=natural", "trainer_config.evaluate=both", "trainer_config.max_rounds=5"])
    last = run.rows[-1]
    assert last["num_samples"] == 180
    assert last["client_accuracy"] == pytest.approx(last["accuracy"]), "the clients' test samples are the whole test set"
    assert last["accuracy"] > 0.7


def test_clients_cannot_be_measured_on_what_they_do_not_have(launch, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(8), y=np.arange(8) % 2)
    run = launch(mode="serial", status=2, settings=[
        f"data.dataset={tmp_path / 'a.npz'}", "data.partitioner=natural", "trainer_config.evaluate=both", "num_clients=8"])
    assert "has no column 'user'" in run.stderr


def test_clients_that_are_too_small_to_be_measured_are_not_passed_over(tmp_path):
    """A fifth of one sample is none: the run would train, and say nothing of how well."""
    np.savez(tmp_path / "a.npz", x=np.eye(8), y=np.arange(8) % 2)
    settings = [f"data.dataset={tmp_path / 'a.npz'}", "data.cache=off", "num_clients=6", "data.client_test_fraction=0.2"]
    with pytest.raises(ConfigError, match=r"evaluate: clients needs test data on the clients, and none of the 6 clients has any"):
        load_data(load_config(overrides=[*settings, "trainer_config.evaluate=clients"]))
    assert load_data(load_config(overrides=settings)).test_sizes.tolist() == [0] * 6
    validated = load_config(overrides=["trainer_config.evaluate=clients", "data.client_test_fraction=0.001",
                                       "data.client_validation_fraction=0.2"])
    assert load_data(validated).validation_sizes.any()


def test_eight_ranks_that_meet_at_an_empty_cache_store_once(launch, tmp_path):
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images")
    cache = tmp_path / "cache"
    settings = [f"data.root={tmp_path}", "data.dataset=images/", "num_clients=16", "trainer_config.max_rounds=1"]
    run = launch(ranks=9, settings=[*settings, f"data.cache={cache}"])
    assert run.result == launch(mode="serial", settings=[*settings, "data.cache=off"]).result
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 1
