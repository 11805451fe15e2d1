"""That it learns: accuracies on real digits, and curves that go down."""

from __future__ import annotations

import pytest


def test_digits_reach_95_percent(launch):
    """The built-in example: 10 clients, IID, 20 rounds."""
    run = launch(mode="serial")
    assert run.summary["rounds_completed"] == 20
    assert run.summary["final"]["accuracy"] >= 0.95


@pytest.mark.parametrize("settings", [
    ["data.dataset=synthetic", "components.model=model.numpy.linear"],
    ["data.partitioner=dirichlet", "data.partitioner_config.alpha=0.5", "components.model=model.numpy.linear"],
    ["components.model=model.sklearn.logistic", "components.learner=federated.learner.sklearn"],
    ["data.dataset=synthetic_regression", "components.model=model.numpy.linear", "learner_config={client_lr: 0.02}"],
    ["components.model=model.torch.cnn", "learner_config={local_epochs: 2, client_lr: 0.05}"],
], ids=["synthetic", "dirichlet", "sklearn", "regression", "cnn"])
def test_the_loss_goes_down(launch, settings):
    """In thirds of twelve rounds, the mean test loss falls each time, and ends below the first round's."""
    rounds = [row["loss"] for row in launch(mode="serial", settings=[*settings, "trainer_config.max_rounds=12"]).rows]
    thirds = [sum(rounds[first:first + 4]) / 4 for first in (0, 4, 8)]
    assert thirds[0] > thirds[1] > thirds[2]
    assert rounds[-1] < rounds[0]


def test_both_kinds_of_evaluation(launch):
    """S-AGG-13: of the server's test set, and of the cohort's own, both weighted by evaluation samples."""
    run = launch(mode="parallel", settings=["components.model=model.numpy.linear", "trainer_config.evaluate=both",
                                            "data.client_test_fraction=0.25", "trainer_config.max_rounds=3",
                                            "trainer_config.eval_every=2", "num_workers=2"])
    assert [("accuracy" in row, "client_accuracy" in row) for row in run.rows] == [(False, False), (True, True), (True, True)]
    assert all(0 < row[key] <= 1 for row in run.rows[1:] for key in ("accuracy", "client_accuracy"))


@pytest.mark.parametrize("reduction", ["float32", "float64"])
def test_inexact_reductions_learn_as_well(launch, reduction):
    settings = ["components.model=model.numpy.linear", "trainer_config.max_rounds=5"]
    exact = launch(mode="serial", settings=settings).summary["final"]
    other = launch(mode="serial", settings=[*settings, f"reduction={reduction}"]).summary["final"]
    assert other["accuracy"] == pytest.approx(exact["accuracy"], abs=0.01)
    assert other["loss"] == pytest.approx(exact["loss"], rel=1e-4)
