"""The preview of a partition: figures against NumPy's, warnings, and a picture that is one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from federation.assemble import load_data
from federation.config import load_config
from federation.data.__main__ import main
from federation.preview import preview

SETTINGS = ("num_clients=30", "data.partitioner=dirichlet", "data.partitioner_config={alpha: 0.1}")


def test_quantiles_entropies_and_the_digest() -> None:
    text = preview(None, SETTINGS)
    data = load_data(load_config(None, overrides=SETTINGS))
    sizes = np.sort(data.sizes)
    entropies = []
    for client in range(30):
        shares = np.bincount(data.client(client).y) / data.sizes[client]
        entropies.append(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    entropies.sort()
    at = [max(int(np.ceil(quantile * 30)) - 1, 0) for quantile in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)]
    for title, wanted in (("training samples", [f"{sizes[n]}" for n in at]),
                          ("label entropy", [f"{abs(entropies[n]):.2f}" for n in at])):
        row = next(line for line in text.splitlines() if title in line)
        assert re.findall(r"\d+(?:\.\d+)?", row) == wanted
    assert f"partition {data.partition.sha256()}" in text
    assert "1438 training, 359 test and 0 validation samples of [64], 10 classes" in text


def test_small_clients_are_warned_about() -> None:
    data = load_data(load_config(None, overrides=SETTINGS))
    for batch in (20, 50):
        small = int((data.sizes < batch).sum())
        assert f"warning: {small} of 30 clients have fewer samples than a batch ({batch})" in preview(
            None, (*SETTINGS, f"learner_config.batch_size={batch}"))
    assert "warning" not in preview(None, ("learner_config.batch_size=1",))
    for learner in ("default", "fedprox"):  # whose batches have 32 samples where nothing else is said
        assert "fewer samples than a batch (32)" in preview(None, (*SETTINGS, f"components.learner=federated.learner.{learner}"))


def test_empty_clients_are_warned_about() -> None:
    settings = ("num_clients=300", "data.partitioner=dirichlet", "data.partitioner_config={alpha: 0.01, allow_empty: true}")
    empty = int((load_data(load_config(None, overrides=settings)).sizes == 0).sum())
    assert empty
    assert f"warning: {empty} of 300 clients have no training samples" in preview(None, settings)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("settings", [
    SETTINGS, ("num_clients=200",), ("data.dataset=synthetic_regression",),
    ("data.dataset=synthetic", "data.dataset_config={num_classes: 90}")])
def test_a_picture_is_written(tmp_path: Path, suffix: str, settings: tuple[str, ...],
                              capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"partition{suffix}"
    assert main(["preview", "-o", str(picture), "--set", *settings]) == 0
    assert picture.read_bytes().startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert "partition" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["-o", "partition.txt"], "a picture's name ends with .png, .pdf, .svg"),
    (["-o", "/no/such/folder/p.png"], "/no/such/folder/p.png cannot be written"),
    (["--set", "data.partitoner=iid"], "did you mean partitioner"), (["--config", "/no/such.yaml"], "/no/such.yaml"),
    (["--set", "num_clients=5000"], "5000"),
    (["--set", "data.enabled=false", "mode=server", "transport.address=127.0.0.1:9000"], "data.enabled: false: clients bring"),
])
def test_what_cannot_be_done_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", *arguments]) == 1
    assert words in capsys.readouterr().err
