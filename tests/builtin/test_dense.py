"""Steps that are written out, against autograd's."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from federation.builtin import DefaultLearner, MLPModel
from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.dense import DenseSteps
from federation.builtin.steps.torch_blas import sgemm
from federation.core.learner import Context
from federation.data.client_data import ClientData
from federation.errors import ConfigError
from tests.builtin.torch_parts import make_data


def network(*widths: int, flattens: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Flatten()] if flattens else []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def steps_of(module: nn.Module, kind: str = "cross_entropy") -> DenseSteps:
    steps = DenseSteps.find(module, list(module.parameters()), kind)
    assert steps is not None
    return steps


def step_of(steps: DenseSteps, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
    """A step on all of these samples; the loss before it."""
    session = steps.session(x.numpy(), y.numpy(), rate)
    assert session is not None
    session.step(np.arange(len(y)))
    assert session.num_steps == 1
    return session.mean_loss()


def step_of_autograd(module: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
    """What a step does."""
    scores = module(x)
    loss = functional.mse_loss(scores[:, 0], y) if y.is_floating_point() else functional.cross_entropy(scores, y)
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= rate * parameter.grad
            parameter.grad = None
    return loss.item()


def assert_close(here: nn.Module, there: nn.Module) -> None:
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("widths", [(6, 4), (6, 5, 4), (6, 8, 7, 5, 2), (6, 1), (6, 3, 1)])
@pytest.mark.parametrize("flattens", [False, True])
def test_the_steps_of_autograd_but_for_rounding(widths, flattens):
    """Losses and parameters after twenty steps, in classification and regression."""
    kind = "mse" if widths[-1] == 1 else "cross_entropy"
    here, there = network(*widths, flattens=flattens), network(*widths, flattens=flattens)
    steps = steps_of(here, kind)
    draws = torch.Generator().manual_seed(1)
    for _ in range(20):
        x = torch.randn((7, 2, 3) if flattens else (7, 6), generator=draws)
        y = torch.randn(7, generator=draws) if kind == "mse" else torch.randint(widths[-1], (7,), generator=draws)
        assert step_of(steps, x, y, 0.1) == pytest.approx(step_of_autograd(there, x, y, 0.1), rel=1e-5)
    assert_close(here, there)


def test_batches_are_taken_from_among_the_samples():
    """In any order, and some twice; labels of few bits as well."""
    here, there = network(6, 5, 4), network(6, 5, 4)
    x, y = torch.linspace(-1, 1, 60).reshape(10, 6), (torch.arange(10) % 4).to(torch.uint8)
    session = steps_of(here).session(x.numpy(), y.numpy(), 0.5)
    losses = []
    for batch in ([3, 1, 9], [0, 0, 5, 9], [7]):
        session.step(np.array(batch))
        losses += [step_of_autograd(there, x[batch], y[batch].long(), 0.5)] * len(batch)
    assert session.mean_loss() == pytest.approx(np.mean(losses), rel=1e-5)
    assert_close(here, there)


def test_the_loss_of_scores_that_are_large():
    """Against float64: a confident network's loss is small, and what is left of large numbers must not be their rounding."""
    module = network(6, 4)
    with torch.no_grad():
        module[0].weight.mul_(300)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
    scores = module(x).detach().double()
    y = scores.argmax(1)
    wanted = functional.cross_entropy(scores, y).item()
    assert scores.abs().max() > 100
    assert step_of(steps_of(module), x, y, 0.0) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_what_is_not_finite_stays_so():
    """A sample with NaN makes NaN of what it reaches, as in autograd, ReLU included; so it is found in the update."""
    here, there = network(6, 5, 4), network(6, 5, 4)
    x, y = torch.ones(3, 6), torch.zeros(3, dtype=torch.int64)
    x[1, 2] = torch.nan
    assert np.isnan(step_of(steps_of(here), x, y, 0.1))
    step_of_autograd(there, x, y, 0.1)
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        assert (one.isnan() == other.isnan()).all()


@pytest.mark.parametrize(("batch", "labels", "words"), [([0, 3], [0, 1, 2], "no sample 3 among 3"),
                                                        ([-1], [0, 1, 2], "no sample -1"),
                                                        ([0, 2], [0, 1, 4], "label 4 is none of 4 classes"),
                                                        ([0, 2], [0, 1, -1], "label -1 is none")])
def test_what_is_no_sample_or_no_class_moves_nothing(batch, labels, words):
    module = network(6, 5, 4)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    session = steps_of(module).session(np.ones((3, 6), np.float32), np.array(labels), 0.1)
    with pytest.raises(IndexError, match=words):
        session.step(np.array(batch))
    assert all((one == other).all() for one, other in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize(("x", "y"), [(torch.zeros(3, 5), torch.zeros(3)), (torch.zeros(3, 2, 6), torch.zeros(3)),
                                      (torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3)),
                                      (torch.zeros(3, 6), torch.zeros(3, 2)),
                                      (torch.zeros(3, 6), torch.zeros(3, 1)), (torch.zeros(0, 6), torch.zeros(0))])
def test_other_samples_are_left_to_autograd(x, y):
    assert steps_of(network(6, 5, 4)).session(x.numpy(), y.long().numpy(), 0.1) is None


def hooked() -> nn.Module:
    module = network(6, 5, 4)
    module[0].register_forward_hook(lambda *_: None)
    return module


def shared() -> nn.Module:
    module = network(6, 6, 6)
    module[2].weight = module[0].weight
    return module


class Own(nn.Linear):
    """Might do anything."""


@pytest.mark.parametrize("make", [
    hooked, shared, lambda: nn.Sequential(), lambda: nn.Linear(6, 4),
    lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)),
    lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)),
    lambda: nn.Sequential(nn.Linear(6, 4, bias=False)), lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
    lambda: nn.Sequential(Own(6, 4)), lambda: nn.Sequential(nn.Linear(6, 4)).double(),
    lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 4)),
    lambda: nn.Sequential(nn.Flatten(0), nn.Linear(6, 4)), lambda: nn.Sequential(nn.Linear(6, 1)),
    lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(7, 4)),
], ids=["hook", "shared weights", "nothing", "no Sequential", "no ReLU", "Tanh", "no bias", "ReLU at the end", "own class",
        "float64", "Dropout", "another Flatten", "one class",
        "layers that do not fit"])
def test_other_networks_are_left_to_autograd(make):
    module = make()
    assert DenseSteps.find(module, list(module.parameters()), "cross_entropy") is None


def test_parameters_that_are_frozen_between_rounds_stay():
    """And are trained again when they are no longer frozen, with the bits of a model that never was."""
    model = MLPModel(6, 4, (5,))
    learner = DefaultLearner(model, make_data(20), batch_size=8)
    start, found = learner.get_weights(), []
    for requires_grad in (True, False, True):
        model.module.hidden1.requires_grad_(requires_grad)
        learner.set_weights(start)
        found.append(learner.fit().weights.copy())
    assert found[0].sha256() == found[2].sha256() != found[1].sha256()
    for name, array in found[1].items():
        assert (array == start[name]).all() == name.startswith("hidden1")


def test_frozen_parameters_are_left_to_autograd():
    module = network(6, 5, 4)
    module[0].weight.requires_grad_(False)
    assert DenseSteps.find(module, [part for part in module.parameters() if part.requires_grad], "cross_entropy") is None


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("settings", "written_out"), [({}, True), ({"client_lr": 0.3}, True), ({"momentum": 0.9}, False),
                                                       ({"weight_decay": 0.1}, False), ({"clip_norm": 1.0}, False),
                                                       ({"optimizer": "adam"}, False), ({"precision": "bfloat16"}, False)])
def test_when_a_learner_takes_them(monkeypatch, settings, written_out, compiled):
    """With plain SGD; the model's weights are those that were moved."""
    taken = []
    step = DenseSteps.step
    monkeypatch.setattr(DenseSteps, "step", lambda self, *given: (taken.append(1), step(self, *given))[1])
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = TorchModel(network(6, 5, 4), (6,), 4)
    start = model.get_weights()
    learner = DefaultLearner(model, batch_size=8, compile=compiled, **settings)
    learner.bind(make_data(20), Context())
    result = learner.fit({})
    assert len(taken) == (3 if written_out else 0)
    assert not (result.weights.buffer == start.buffer).all()
    assert result.metrics["train_loss"] == pytest.approx(1.4, abs=0.3)


@pytest.mark.parametrize("outputs", [1, 4])
def test_samples_are_taken_from_where_they_lie(outputs):
    """No copy of them is made, and the bits are those of one."""
    given = make_data(50)
    y = given.y if outputs > 1 else given.y.astype(np.float32)
    rows = np.arange(49, 9, -1)[::2]  # a view with gaps
    lying, copied = ClientData(given.x, y, rows=rows), ClientData(given.x[rows], y[rows])
    found = []
    for data in (lying, copied):
        learner = DefaultLearner(TorchModel(network(6, 5, outputs), (6,), 4), batch_size=8, local_epochs=2)
        learner.bind(data, Context())
        result = learner.fit({})
        found.append((result.weights.sha256(), result.num_samples, result.metrics))
    assert found[0] == found[1]
    assert lying.stored[0] is given.x


def test_data_of_a_class_of_the_users_own_have_no_more_than_x_and_y():
    given = make_data(20)
    digests = set()
    for data in (given, SimpleNamespace(x=given.x, y=given.y)):
        learner = DefaultLearner(TorchModel(network(6, 5, 4), (6,), 4), batch_size=8)
        learner.bind(data, Context())
        digests.add(learner.fit({}).weights.sha256())
    assert len(digests) == 1


def test_rows_that_are_not_there_move_nothing():
    module = network(6, 5, 4)
    session = steps_of(module).session(np.ones((3, 6), np.float32), np.array([0, 1]), 0.1, np.array([2, 3]))
    before = module[0].bias.detach().clone()
    with pytest.raises(IndexError, match="no row 3 among 3"):
        session.step(np.array([0, 1]))
    assert (module[0].bias == before).all()


def test_a_batch_of_another_size_has_steps_as_well():
    """A client's last batch is smaller, and the next client's first is not."""
    here, there = network(6, 5, 4), network(6, 5, 4)
    steps = steps_of(here)
    for count in (8, 3, 8):
        x, y = torch.linspace(-1, 1, 6 * count).reshape(count, 6), torch.arange(count) % 4
        assert step_of(steps, x, y, 0.5) == pytest.approx(step_of_autograd(there, x, y, 0.5), rel=1e-5)
    assert_close(here, there)


def test_training_by_them_leaves_torchs_generator_alone():
    learner = DefaultLearner(TorchModel(network(6, 5, 4), (6,), 4), batch_size=8)
    learner.bind(make_data(20), Context())
    before = torch.get_rng_state()
    learner.fit({})
    assert (torch.get_rng_state() == before).all()


def test_the_models_of_this_package_are_such_networks():
    model = MLPModel(6, 4)
    assert DenseSteps.find(model.module, list(model.module.parameters()), "cross_entropy") is not None


@pytest.mark.parametrize(("outputs", "loss"), [(1, "cross_entropy"), (4, "mse")])
def test_outputs_that_do_not_fit_the_loss(outputs, loss):
    learner = DefaultLearner(TorchModel(network(6, outputs), (6,), 4), loss=loss)
    learner.bind(make_data(20), Context())
    with pytest.raises(ConfigError, match=f"not {outputs}"):
        learner.fit({})


def test_a_torch_without_a_blas_trains_by_autograd(monkeypatch):
    monkeypatch.setattr("federation.builtin.steps.dense.sgemm", lambda: None)
    module = network(6, 5, 4)
    assert DenseSteps.find(module, list(module.parameters()), "cross_entropy") is None


def test_this_torch_has_a_blas():
    """Else every network would be left to autograd, without a word."""
    assert sgemm() is not None


def test_every_thread_computes_the_same_bits():
    """In a thread that has never computed, and where the memory of samples begins elsewhere."""
    x, y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
    elsewhere = torch.zeros(64 * 6 + 1)[1:].reshape(64, 6).copy_(x)
    found = []

    def train(samples):
        module = network(6, 50, 4)
        step_of(steps_of(module), samples, y, 0.1)
        found.append(b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters()))

    train(x)
    thread = threading.Thread(target=train, args=(elsewhere,))
    thread.start()
    thread.join()
    assert found[0] == found[1]
