"""The learners that come with the package, against loops and formulas written out here."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from federation.builtin import (
    CNNModel,
    DefaultLearner,
    FedProxLearner,
    LinearModel,
    LogisticModel,
    MLPModel,
    SklearnLearner,
    TorchModel,
)
from federation.builtin.steps.contract import Correction, StepSettings
from federation.builtin.steps.numpy_steps import loss_and_slope
from federation.builtin.steps.torch_losses import weighted_loss
from federation.core.learner import Context
from federation.data.client_data import ClientData
from federation.errors import ConfigError
from tests.builtin.torch_parts import Characters, batches, make_data, plain_mlp, plain_training


def a_learner(**settings):
    model = MLPModel(input_size=6, output_size=4, hidden_sizes=(5,), dropout=settings.pop("dropout", 0.0))
    return DefaultLearner(model, **settings)


def trained(learner, data, client="a", round=1, **config):
    learner.set_weights(trained.start)
    learner.bind(data, Context(client, round, seed=3))
    result = learner.fit(config)
    return result.weights.copy(), result


trained.start = MLPModel(input_size=6, output_size=4, hidden_sizes=(5,), seed=9).get_weights()


@pytest.mark.parametrize(("settings", "make"), [
    (dict(client_lr=0.1), lambda p: torch.optim.SGD(p, 0.1)),
    (dict(client_lr=0.1, momentum=0.9, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
    (dict(client_lr=0.01, optimizer="adam"), lambda p: torch.optim.Adam(p, 0.01)),
])
def test_full_batches_equal_torch_optim(settings, make):
    """With one batch a pass there is no order to draw: ten steps are those of torch.optim on an ordinary module."""
    data = make_data(20)
    weights, result = trained(a_learner(batch_size=20, local_steps=10, **settings), data)
    oracle = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        for parameter, array in zip(oracle.parameters(), trained.start, strict=True):
            parameter.copy_(torch.tensor(array))
    optimizer = make(oracle.parameters())
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(oracle(torch.tensor(data.x)), torch.tensor(data.y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for array, parameter in zip(weights, oracle.parameters(), strict=True):
        np.testing.assert_allclose(array, parameter.detach().numpy(), rtol=2e-4, atol=2e-6)
    assert result.metrics["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_fit_does_not_depend_on_who_was_trained_before():
    """S-AGG-06, S-CKPT-07: neither momentum, nor dropout, nor torch's own generator carries over from client to client."""
    first, second = make_data(50, seed=1), make_data(33, seed=2)
    learner = a_learner(momentum=0.9, dropout=0.5, local_epochs=2, batch_size=8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone, _ = trained(learner, first)
    trained(learner, second, client="b")
    after_b, _ = trained(learner, first)
    assert torch.equal(torch.get_rng_state(), before)
    assert alone.sha256() == after_b.sha256()
    torch.manual_seed(6)
    fresh, _ = trained(a_learner(momentum=0.9, dropout=0.5, local_epochs=2, batch_size=8), first)
    assert fresh.sha256() == alone.sha256()
    for other in (dict(client="b"), dict(round=2)):
        assert trained(learner, first, **other)[0].sha256() != alone.sha256()


@pytest.mark.parametrize(("model", "settings"), [
    (MLPModel, {}), (MLPModel, {"momentum": 0.9}), (MLPModel, {"optimizer": "adam"}), (MLPModel, {"client_batch": 2}),
    (LinearModel, {"momentum": 0.9})])
def test_a_copy_of_a_learner_trains_a_model_of_its_own(model, settings):
    learner = DefaultLearner(model(input_size=6, output_size=4), make_data(40), batch_size=8, **settings)
    start = learner.get_weights()
    wanted = learner.fit().weights.sha256()
    learner.set_weights(start)
    result = copy.deepcopy(learner).fit()
    assert result.weights.borrowed
    assert result.weights.sha256() == wanted
    assert learner.get_weights().sha256() == start.sha256()


class Labelled:
    """Data of a user's own: `y` has more than one value for a sample, or one in an array of its own."""

    def __init__(self, x, y):
        self.x = self.x_test = x.astype(np.float32)
        self.y = self.y_test = y


def test_labels_of_pixels():
    """Loss and accuracy are means over pixels; also where samples are weighted, as many of them as an image is wide."""
    rng = np.random.default_rng(0)
    data = Labelled(rng.normal(size=(4, 2, 3, 4)), rng.integers(0, 3, (4, 3, 4)))
    model = TorchModel(nn.Conv2d(2, 3, 1))
    scores, labels = model.module(torch.from_numpy(data.x)).detach(), torch.from_numpy(data.y)
    found = DefaultLearner(model, data).evaluate().metrics
    assert found["accuracy"] == (scores.argmax(1) == labels).double().mean().item()
    wanted = nn.functional.cross_entropy(scores, labels).item()
    assert found["loss"] == pytest.approx(wanted)
    values = dict(model.module.named_parameters())
    weighted = weighted_loss(model.module, list(values), "cross_entropy")(
        list(values.values()), torch.from_numpy(data.x), labels, torch.ones(4))
    assert weighted.item() == pytest.approx(wanted)


def test_targets_in_a_column():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 1)).astype(np.float32)
    learners = [DefaultLearner(LinearModel(6, 1), Labelled(x, targets), batch_size=8) for targets in (y, y[:, 0])]
    assert learners[0].evaluate().metrics == learners[1].evaluate().metrics
    assert learners[0].fit().weights.sha256() == learners[1].fit().weights.sha256()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 33])
def test_small_clients(count, drop_last, caplog):
    """S-PART-05: 0, 1, 5 and 33 samples in batches of 32 through BatchNorm: no crash, and 0 means unchanged."""
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    learner = DefaultLearner(TorchModel(module, (6,), 4), batch_size=32, drop_last=drop_last)
    before = learner.get_weights()
    learner.bind(make_data(count), Context())
    with caplog.at_level(logging.WARNING):
        result = learner.fit({})
        learner.fit({})
    changed = result.weights.sha256() != before.sha256()
    assert (result.num_samples, changed) == ((count, True) if count > 1 else (0, False))
    assert len(caplog.records) == (1 if count == 1 or (count == 33 and not drop_last) else 0)
    assert result.weights.all_finite()


def test_batches_cover_every_sample_once_a_pass():
    seen = []
    learner = a_learner(local_epochs=3, batch_size=7)
    learner.bind(make_data(30), Context())
    for batch in learner._batches(30, 1, learner._fit_settings):
        seen.append(batch)
    assert [len(batch) for batch in seen] == [7, 7, 7, 7, 2] * 3
    for number in range(3):
        assert sorted(np.concatenate(seen[5 * number:5 * number + 5])) == list(range(30))
    learner = a_learner(batch_size=1)
    assert [len(batch) for batch in learner._batches(5, 2, learner._fit_settings)] == [2, 3], "where a step needs two"


@pytest.mark.parametrize(("count", "sizes"), [(32, [8] * 4), (33, [8] * 4), (39, [8] * 4), (8, [8]), (5, [5]), (1, [1])])
def test_only_a_last_batch_that_is_not_full_is_left_out(count, sizes):
    learner = a_learner(local_epochs=2, batch_size=8, drop_last=True)
    assert [len(batch) for batch in learner._batches(count, 1, learner._fit_settings)] == sizes * 2


@pytest.mark.parametrize(("config", "steps"), [({}, 6), ({"epochs": 5}, 15), ({"local_steps": 4}, 4), ({"batch_size": 30}, 2)])
def test_config_overrides_settings_for_one_call(config, steps):
    learner = a_learner(local_epochs=2, batch_size=10)
    learner.bind(make_data(30), Context())
    assert len(list(learner._batches(30, 1, learner._fit_settings.overridden({**config, "round": 3})))) == steps
    assert len(list(learner._batches(30, 1, learner._fit_settings))) == 6


@pytest.mark.parametrize(("config", "steps"), [({}, 4), ({"epochs": 2, "local_epochs": 2}, 6),
                                               ({"epochs": 2, "local_steps": 5}, 5)])
def test_passes_of_one_call_replace_steps_that_were_set(config, steps):
    learner = a_learner(local_steps=4, batch_size=10)
    learner.bind(make_data(30), Context())
    assert len(list(learner._batches(30, 1, learner._fit_settings.overridden(config)))) == steps


@pytest.mark.parametrize(("config", "words"), [({"epoch": 5}, "epochs"), ({"epochs": 2, "local_epochs": 3}, "two words"),
                                               ({"batch_size": 0}, "batch_size"),
                                               ({"local_epochs": True}, "local_epochs"),
                                               ({"client_lr": "fast"}, "client_lr")])
def test_config_that_cannot_be(config, words):
    learner = a_learner()
    learner.bind(make_data(8), Context())
    with pytest.raises(ValueError, match=words):
        learner.fit(config)


@pytest.mark.parametrize("settings", [dict(local_epochs=0), dict(batch_size=-1), dict(client_lr=float("nan")),
                                      dict(optimizer="rprop"), dict(optimizer="adam", momentum=0.9),
                                      dict(local_epochs=3, local_steps=5), dict(momentum=-0.1), dict(momentum=float("nan")),
                                      dict(weight_decay=-0.1), dict(eval_batch_size=0), dict(eval_batch_size=2.5)])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        a_learner(**settings)


def test_no_data_bound(caplog):
    """Trains on a made-up sample shaped like the model, and says so once."""
    learner = DefaultLearner(MLPModel())
    results = [learner.fit({}), learner.fit({})]
    assert all(result.num_samples == 64 for result in results)
    assert caplog.text.count("built-in sample") == 1
    assert learner.evaluate({}).num_samples == 16


def test_evaluation_uses_evaluation_samples_alone():
    """S-AGG-13: metrics of the test samples, weighted by them; a client without any counts nothing."""
    model = LinearModel(input_size=2, output_size=2)
    model.set_weights([np.array([[1, 0], [0, 1]], np.float32), np.zeros(2, np.float32)])
    x_test = np.array([[3, 0], [0, 3], [3, 0], [0, 3]], np.float32)
    data = ClientData(np.zeros((5, 2)), np.zeros(5, np.int64), x_test, np.array([0, 1, 1, 1]), num_classes=2)
    learner = DefaultLearner(model)
    learner.bind(data, Context())
    result = learner.evaluate({})
    assert (result.num_samples, result.metrics["accuracy"]) == (4, 0.75)
    assert result.metrics["loss"] == pytest.approx((3 * np.log1p(np.exp(-3)) + np.log1p(np.exp(3))) / 4, rel=1e-6)
    learner.bind(ClientData(x_test, np.zeros(4, np.int64), num_classes=2), Context())
    assert learner.evaluate({}).num_samples == 0


def test_a_module_that_works_in_place_leaves_the_samples_alone():
    """Evaluated, trained, and tried on one sample, which BatchNorm calls for."""
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    given, test = make_data(20), make_data(10, seed=1)
    data = ClientData(given.x.copy(), given.y, test.x.copy(), test.y, 4)
    learner = DefaultLearner(TorchModel(module, (6,), 4), data, batch_size=8)
    learner.evaluate()
    learner.fit({"metrics": ["start_loss"]})
    np.testing.assert_array_equal(data.x, given.x)
    np.testing.assert_array_equal(data.x_test, test.x)


class Noisy(nn.Module):
    """Draws in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + torch.randn(x.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_few_digits_is_measured_in_float32(dtype):
    torch.manual_seed(0)
    module, data = nn.Linear(6, 4).to(dtype), make_data(20)
    learner = DefaultLearner(TorchModel(module, (6,), 4), ClientData(data.x, data.y, data.x, data.y, 4))
    scores = module(torch.tensor(data.x).to(dtype)).detach().double()
    wanted = nn.functional.cross_entropy(scores, torch.tensor(data.y)).item()
    assert learner.evaluate().metrics["loss"] == pytest.approx(wanted, rel=1e-6)


def test_what_is_drawn_in_evaluation_follows_from_the_client_and_disturbs_nothing():
    data, seen = make_data(20), []
    learner = DefaultLearner(TorchModel(Noisy(), (6,), 4))
    for client, round, state in (("a", 1, 5), ("a", 1, 6), ("b", 1, 5), ("a", 2, 5)):
        learner.bind(ClientData(data.x, data.y, data.x, data.y), Context(client, round, 3))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        seen.append(learner.evaluate().metrics["loss"])
        assert torch.equal(torch.get_rng_state(), before)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


@pytest.mark.parametrize("model", [LinearModel(6, 4), TorchModel(nn.Sequential(nn.Linear(6, 4)), (6,), 4)])
def test_momentum_that_is_not_given_begins_at_zero(model):
    start, found, (name, other) = model.get_weights(), [], model.weights.names
    given = {name: np.ones_like(model.weights[name])}
    for momentum in (given, {**given, other: np.zeros_like(model.weights[other])}, {}):
        model.set_weights(start)
        with model.make_steps().training(make_data(8), StepSettings(momentum=0.9), 0, momentum=momentum) as session:
            session.step(np.arange(8))
            kept = session.momentum()
        np.testing.assert_allclose(start[name] - model.weights[name], 0.1 * kept[name], rtol=1e-4, atol=1e-6)
        found.append({key: array.copy() for key, array in kept.items()})
    np.testing.assert_array_equal(given[name], 1)
    np.testing.assert_allclose(found[0][name] - found[2][name], 0.9, rtol=1e-5)
    for key in (name, other):
        np.testing.assert_array_equal(found[0][key], found[1][key])
    np.testing.assert_array_equal(found[0][other], found[2][other])


def test_the_linear_model_equals_torch():
    """Softmax regression by NumPy against the same steps of torch."""
    data = make_data(40)
    model = LinearModel(input_size=6, output_size=4)
    learner = DefaultLearner(model, batch_size=40, local_steps=15, client_lr=0.3, momentum=0.5)
    learner.bind(data, Context())
    learner.fit({})
    oracle = nn.Linear(6, 4)
    nn.init.zeros_(oracle.weight)
    nn.init.zeros_(oracle.bias)
    optimizer = torch.optim.SGD(oracle.parameters(), 0.3, momentum=0.5)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(oracle(torch.tensor(data.x)), torch.tensor(data.y)).backward()
        optimizer.step()
    np.testing.assert_allclose(model.weights["weight"], oracle.weight.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.weights["bias"], oracle.bias.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_scores_beyond_the_range_of_exp():
    losses, slope = loss_and_slope(np.float32([[1000, 0], [1000, 0]]), np.array([0, 1]), "cross_entropy")
    assert (losses.tolist(), slope.tolist()) == ([0, 1000], [[0, 0], [1, -1]])


def test_regression_finds_the_line():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + 3.0).astype(np.float32)
    model = LinearModel(input_size=3, output_size=1)
    learner = DefaultLearner(model, local_epochs=100, batch_size=50, client_lr=0.1)
    learner.bind(ClientData(x, y), Context())
    learner.fit({})
    np.testing.assert_allclose(model.weights["weight"][0], [1, -2, 0.5], atol=1e-3)
    assert model.weights["bias"][0] == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize(("model", "count"), [
    (MLPModel(), 159_010), (CNNModel(), 1_663_370), (LinearModel(), 7_850),
    (MLPModel(input_size=64, output_size=10, hidden_sizes=()), 650)])
def test_parameter_counts(model, count):
    """784-200-10, and the network of McMahan et al. 2017 for MNIST."""
    assert model.weights.layout.num_values == count


def test_the_cnn_takes_images_and_rows():
    model = CNNModel(**CNNModel.settings_from_data((64,), 10))
    learner = DefaultLearner(model)
    learner.bind(make_data(40, shape=(64,), classes=10), Context())
    assert learner.fit({}).num_samples == 40
    learner.bind(make_data(40, shape=(8, 8), classes=10), Context())
    assert learner.fit({}).weights.all_finite()


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_missing_classes(solver, caplog):
    """S-PART-06: labels {0,3}, all ten, and {5} alone: coef_ is (10,3) and intercept_ (10,) in every round, round 0 too."""
    rng = np.random.default_rng(1)
    learner = SklearnLearner(LogisticModel(input_size=3, output_size=10, solver=solver))
    start = learner.get_weights()
    assert [array.shape for array in start] == [(10, 3), (10,)]
    counts = []
    for client, labels in (("a", [0, 3]), ("b", range(10)), ("c", [5])):
        y = np.resize(np.array(list(labels)), 40)
        x = (rng.normal(size=(40, 3)) + y[:, None]).astype(np.float32)
        learner.bind(ClientData(x, y, x, y, num_classes=10), Context(client, 1, 0))
        learner.set_weights(start)
        first = learner.fit({})
        learner.set_weights(start)
        assert learner.fit({}).weights.sha256() == first.weights.sha256()
        assert [array.shape for array in first.weights] == [(10, 3), (10,)]
        assert learner.evaluate({}).num_samples == 40
        counts.append(first.num_samples)
    assert counts == ([40, 40, 40] if solver == "sgd" else [40, 40, 0])
    assert ("single class" in caplog.text) == (solver == "lbfgs")


def test_a_learner_refuses_a_model_of_another_kind():
    with pytest.raises(ConfigError, match=r"federated\.learner\.sklearn"):
        DefaultLearner(LogisticModel(input_size=3, output_size=4))
    with pytest.raises(ConfigError, match=r"federated\.learner\.default"):
        SklearnLearner(LinearModel())


def plain_sgd(data, start, rate, rounds=1, momentum=0.0, clip_norm=None, weight_decay=0.0, batch_size=8, passes=2):
    """Torch's own optimiser over the batches of some rounds, its momentum kept: (module, mean loss of the last round)."""
    module = plain_mlp(dict(start.items()))
    optimizer = torch.optim.SGD(module.parameters(), rate, momentum=momentum, weight_decay=weight_decay)
    loss = 0.0
    for round in range(1, rounds + 1):
        total = 0.0
        for batch in batches(len(data.y), passes, batch_size, client="a", round=round, seed=3):
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(module(torch.tensor(data.x[batch])), torch.tensor(data.y[batch]))
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            optimizer.step()
            total += value.item() * len(batch)
        loss = total / (passes * len(data.y))
    return module, loss


def same_bits(weights, module):
    for array, parameter in zip(weights, module.parameters(), strict=True):
        np.testing.assert_array_equal(array, parameter.detach().numpy())


@pytest.mark.parametrize("clip_norm", [0.05, 0.5, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_gradients_are_clipped_before_the_step(clip_norm, weight_decay):
    """The bits of clip_grad_norm_ between backward and step; weight decay and momentum come after it."""
    data = make_data(20)
    settings = dict(batch_size=8, local_epochs=2, momentum=0.9, weight_decay=weight_decay)
    weights, result = trained(a_learner(clip_norm=clip_norm, **settings), data)
    module, loss = plain_sgd(data, trained.start, 0.1, momentum=0.9, clip_norm=clip_norm, weight_decay=weight_decay)
    same_bits(weights, module)
    assert result.metrics["train_loss"] == pytest.approx(loss)
    free, _ = trained(a_learner(**settings), data)
    assert (free.sha256() == weights.sha256()) == (clip_norm == 1e6)


@pytest.mark.parametrize(("learner", "settings"), [(DefaultLearner, {}), (DefaultLearner, {"clip_norm": 0.05}),
                                                  (FedProxLearner, {"mu": 0.5})])
def test_sparse_gradients_are_clipped_and_corrected_as_others(learner, settings):
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        module = Characters()
        module.embedding.sparse = sparse
        made = learner(TorchModel(module), make_data(40, (13,), 5), batch_size=8, **settings)
        found.append(np.concatenate([array.reshape(-1) for array in made.fit().weights]))
    assert np.allclose(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.0}, {"momentum": 0.9, "keep_momentum": True}, {"optimizer": "adam"}])
def test_a_model_that_is_frozen_altogether_stays(settings):
    module = nn.Linear(6, 4).requires_grad_(False)
    learner, data = DefaultLearner(TorchModel(module, (6,), 4), batch_size=8, **settings), make_data(20)
    start = learner.get_weights()
    wanted = nn.functional.cross_entropy(module(torch.tensor(data.x)), torch.tensor(data.y)).item()
    weights, result = trained_here(learner, data)
    assert weights.sha256() == start.sha256()
    assert (result.num_samples, result.metrics["train_loss"]) == (20, pytest.approx(wanted))


def test_one_clipped_step_has_the_length_that_was_asked_for():
    """In NumPy: client_lr times clip_norm, along the gradient; the whole gradient where that is shorter."""
    data = make_data(30, classes=None, shift=2.0)
    steps = {}
    for clip_norm in (None, 0.01, 1.0, 1e6):
        model = LinearModel(6, 1)
        learner = DefaultLearner(model, local_steps=1, batch_size=30, client_lr=0.5, clip_norm=clip_norm)
        learner.bind(data, Context())
        steps[clip_norm] = np.concatenate([array.ravel() for array in learner.fit({}).weights])
    length = np.linalg.norm(steps[None])
    assert length > 0.5
    for clip_norm in (0.01, 1.0):
        np.testing.assert_allclose(steps[clip_norm], 0.5 * clip_norm * steps[None] / length, rtol=2e-4)
    np.testing.assert_array_equal(steps[1e6], steps[None])


@pytest.mark.parametrize("numpy_model", [False, True])
def test_momentum_that_is_kept_goes_on(numpy_model):
    """Three rounds from where the last one ended are one run of SGD; without keeping, each begins at zero."""
    data = make_data(20)

    def rounds(**settings):
        if numpy_model:
            learner, weights = DefaultLearner(LinearModel(6, 4), **settings), LinearModel(6, 4).get_weights()
        else:
            learner, weights = a_learner(**settings), trained.start
        state: dict = {}
        for round in (1, 2, 3):
            learner.bind(data, Context("a", round, 3))
            learner.client_state = state
            learner.set_weights(weights)
            result = learner.fit({})
            weights = result.weights.copy()
            state = {name: array.copy() for name, array in (result.state or {}).items()}
            for array in state.values():
                array.flags.writeable = False  # as the engine gives it
        return weights, state

    settings = dict(batch_size=8, local_epochs=2, momentum=0.9)
    kept, state = rounds(keep_momentum=True, **settings)
    assert sorted(state) == sorted(f"momentum.{name}" for name in kept.names)
    lost, nothing = rounds(**settings)
    assert nothing == {}
    assert np.abs(kept[0] - lost[0]).max() > 1e-3
    if numpy_model:
        module, (weight, bias) = nn.Linear(6, 4), LinearModel(6, 4).get_weights()
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        with torch.no_grad():
            module.weight.copy_(torch.tensor(weight))
            module.bias.copy_(torch.tensor(bias))
        for round in (1, 2, 3):
            plain_training(module, optimizer, data, batches(20, 2, 8, client="a", round=round, seed=3))
        for array, parameter in zip(kept, module.parameters(), strict=True):
            np.testing.assert_allclose(array, parameter.detach().numpy(), rtol=1e-4, atol=1e-5)
    else:
        same_bits(kept, plain_sgd(data, trained.start, 0.1, rounds=3, momentum=0.9)[0])


def test_a_client_without_samples_keeps_its_momentum():
    learner = a_learner(momentum=0.9, keep_momentum=True)
    learner.bind(make_data(0), Context())
    assert learner.fit({}).state is None


@pytest.mark.parametrize(("round", "rate"), [(0, 0.05), (1, 0.05), (2, 0.1), (3, 0.01), (4, 0.01), (5, 0.001)])
def test_the_rate_follows_its_schedule(round, rate):
    """Warm-up in the first round, a tenth after every second; outside of rounds (0) as in the first."""
    data = make_data(20)
    learner = a_learner(batch_size=20, client_lr=0.1, lr_schedule="step", lr_step_rounds=2, lr_warmup_rounds=1)
    by_schedule, _ = trained(learner, data, round=round)
    wanted, _ = trained(a_learner(batch_size=20, client_lr=0.1), data, round=round, client_lr=rate)
    for found, expected, start in zip(by_schedule, wanted, trained.start, strict=True):
        np.testing.assert_allclose(found - start, expected - start, rtol=1e-5, atol=1e-7)
    given, _ = trained(learner, data, round=round, client_lr=0.1)
    assert given.sha256() == trained(a_learner(batch_size=20, client_lr=0.1), data, round=round)[0].sha256()


@pytest.mark.parametrize("settings", [
    dict(lr_schedule="cosine"), dict(lr_warmup_rounds=-1), dict(clip_norm=0), dict(clip_norm=-1.0), dict(clip_norm="x"),
    dict(clip_norm=float("nan")), dict(keep_momentum=True), dict(keep_momentum=True, optimizer="adam"),
])
def test_further_settings_that_cannot_be(settings):
    name = next(iter(settings))
    with pytest.raises(ConfigError, match="lr_rounds" if name == "lr_schedule" else name):
        a_learner(**settings)


def accumulation(tau, rho=0.0, shrink=0.0):
    """||a||_1 of Wang et al. 2020, section 4: each local gradient's weight in the update, added up."""
    if shrink:
        return sum((1 - shrink) ** (tau - 1 - k) for k in range(tau))
    return sum((1 - rho ** (tau - k)) / (1 - rho) for k in range(tau))


@pytest.mark.parametrize(("make", "wanted"), [
    (lambda: a_learner(batch_size=8, local_epochs=2), accumulation(6)),
    (lambda: a_learner(local_steps=5, momentum=0.9), accumulation(5, rho=0.9)),
    (lambda: a_learner(local_steps=5, momentum=0.9), (5 - 0.9 * (1 - 0.9**5) / 0.1) / 0.1),
    (lambda: a_learner(local_steps=1, momentum=0.5), 1.0),
    (lambda: a_learner(local_steps=7, weight_decay=0.3), 7.0),
    (lambda: FedProxLearner(MLPModel(6, 4, (5,)), local_steps=6, client_lr=0.1, mu=2.0), accumulation(6, shrink=0.2)),
    (lambda: FedProxLearner(MLPModel(6, 4, (5,)), local_steps=6, client_lr=0.1, mu=0.0), 6.0),
    (lambda: DefaultLearner(LinearModel(6, 4), local_steps=4), 4.0),
])
def test_the_normaliser(make, wanted):
    _, result = trained_here(make(), make_data(20), metrics=["normaliser", "local_steps"])
    assert result.metrics["normaliser"] == pytest.approx(wanted, rel=1e-12)
    assert sorted(result.metrics) == ["local_steps", "normaliser", "train_loss"]


def test_the_normaliser_follows_the_rate_of_the_round():
    learner = FedProxLearner(MLPModel(6, 4, (5,)), local_steps=4, client_lr=0.2, mu=1.0, lr_warmup_rounds=1)
    _, result = trained_here(learner, make_data(20), metrics=["normaliser"])
    assert result.metrics["normaliser"] == pytest.approx(accumulation(4, shrink=0.1))


def trained_here(learner, data, **config):
    learner.bind(data, Context("a", 1, 3))
    result = learner.fit(config)
    return result.weights, result


@pytest.mark.parametrize("numpy_model", [False, True])
def test_the_loss_to_begin_with(numpy_model):
    """Over all training samples, in evaluation mode (running statistics, no dropout), and training is not disturbed."""
    data = make_data(20)
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4))
    model = LinearModel(6, 4) if numpy_model else TorchModel(module, (6,), 4)
    start = model.get_weights()
    learner = DefaultLearner(model, batch_size=8, eval_batch_size=7)
    scores = np.zeros((20, 4), np.float32)
    if not numpy_model:
        module.eval()
        with torch.no_grad():
            scores = module(torch.tensor(data.x)).numpy()
    logits = scores.astype(np.float64)
    wanted = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(20), data.y])
    weights, result = trained_here(learner, data, metrics=["start_loss"])
    assert result.metrics["start_loss"] == pytest.approx(wanted, rel=1e-6)
    digest = weights.sha256()
    model.set_weights(start)
    weights, plain = trained_here(learner, data)
    assert weights.sha256() == digest
    assert dict(plain.metrics) == {"train_loss": result.metrics["train_loss"]}


@pytest.mark.parametrize("metrics", [["normalizer"], ["local_steps", "gradient_norm"]])
def test_a_metric_that_no_one_knows(metrics):
    with pytest.raises(ValueError, match=f"{metrics[-1]}.*normaliser, local_steps, start_loss"):
        trained_here(a_learner(), make_data(8), metrics=metrics)


def test_adam_has_no_normaliser():
    with pytest.raises(ConfigError, match="sgd"):
        trained_here(a_learner(optimizer="adam"), make_data(8), metrics=["normaliser"])
    assert trained_here(a_learner(optimizer="adam"), make_data(8), metrics=["local_steps"])[1].metrics["local_steps"] == 1


def test_what_sklearn_can_report():
    data = make_data(30)
    learner = SklearnLearner(LogisticModel(input_size=6, output_size=4, solver="lbfgs"))
    _, result = trained_here(learner, data, metrics=["start_loss"])
    assert result.metrics["start_loss"] == pytest.approx(np.log(4))
    assert result.metrics["train_loss"] < np.log(4)
    with pytest.raises(ValueError, match=r"normaliser.*it can: start_loss"):
        trained_here(learner, data, metrics=["normaliser"])


def test_a_rate_for_a_solver_without_one_is_refused():
    with pytest.raises(ConfigError, match=r"client_lr=0\.1: LogisticRegression has no rate"):
        SklearnLearner(LogisticModel(6, 4, solver="lbfgs"), client_lr=0.1)


def test_a_rate_given_to_one_fit_of_sklearn_ends_with_it():
    """A rank's next client has the estimator's own rate, whoever was trained before."""
    data, learner = make_data(30), SklearnLearner(LogisticModel(input_size=6, output_size=4))
    weights = []
    for config in ({}, {"client_lr": 0.5}, {}):
        learner.set_weights([np.zeros((4, 6)), np.zeros(4)])
        learner.bind(data, Context("a", 1, 0))
        weights.append(learner.fit(config).weights.sha256())
    assert weights[0] == weights[2] != weights[1]


@pytest.mark.parametrize("clip_norm", [None, 1e6])
def test_a_correction_reaches_parameters_that_the_loss_does_not(clip_norm):
    """The gradient of a penalty is there even where that of the loss is absent: 1 - 0.1 * (1 - 3), and so on."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(6, 4)
            self.idle = nn.Parameter(torch.tensor([1.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = TorchModel(Idle(), (6,), 4)
    anchor = {name: array + 2 for name, array in model.get_weights().items()}
    settings = StepSettings(client_lr=0.1, clip_norm=clip_norm)
    with model.make_steps().training(make_data(8), settings, 0, Correction(1.0, anchor)) as session:
        session.step(np.arange(8))
        session.step(np.arange(8))
    assert model.weights["idle"][0] == pytest.approx(1 + 0.2 + 0.18)
    model.set_weights([array - 2 for array in anchor.values()])
    with model.make_steps().training(make_data(8), settings, 0) as session:
        session.step(np.arange(8))
    assert model.weights["idle"][0] == 1
