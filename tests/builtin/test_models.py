"""The models that come with the package: exact sizes, and that they learn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from federation import ClientUpdate
from federation.assemble import assemble
from federation.builtin import (
    CNNModel,
    DefaultLearner,
    FedAvgAggregator,
    LogisticModel,
    LSTMModel,
    MLPModel,
    ResNet18Model,
    TorchModel,
    TorchModuleModel,
)
from federation.config import load_config
from federation.data.client_data import ClientData
from federation.errors import ConfigError


def parameters(model):
    """Trainable numbers, counted from the module."""
    return sum(parameter.numel() for parameter in model.module.parameters())


def conv(before, after, size):
    return before * after * size * size


def resnet18(channels, classes, stem_size):
    """By hand from table 1 of He et al. 2016, with two numbers a channel for each normalisation."""
    total, before = conv(channels, 64, stem_size) + 2 * 64, 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            total += conv(before, width, 3) + conv(width, width, 3) + 4 * width
            if block == 0 and before != width:
                total += conv(before, width, 1) + 2 * width
            before = width
    return total + 512 * classes + classes


@pytest.mark.parametrize(("make", "count"), [
    (lambda: MLPModel(), 159_010),
    (lambda: CNNModel(), 1_663_370),
    (lambda: CNNModel((1, 28, 28), 62, architecture="reddi"), 1_206_590),
    (lambda: CNNModel((3, 32, 32), 10, architecture="reddi"), 1_626_442),
    (lambda: ResNet18Model(), 11_173_962),
    (lambda: ResNet18Model(norm="batch"), 11_173_962),
    (lambda: ResNet18Model((3, 224, 224), 1000), 11_689_512),
    (lambda: LSTMModel(), 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + 257 * 80)])
def test_the_number_of_parameters(make, count):
    assert parameters(make()) == count


def test_resnet18_by_hand():
    assert (resnet18(3, 10, 3), resnet18(3, 1000, 7)) == (11_173_962, 11_689_512)


SMALL = [(lambda seed: CNNModel((1, 8, 8), 3, channels=(4, 8), hidden_size=16, seed=seed), (1, 8, 8)),
         (lambda seed: CNNModel((1, 8, 8), 3, "reddi", channels=(4, 8), hidden_size=16, dropout=0.0, seed=seed), (64,)),
         (lambda seed: ResNet18Model((1, 8, 8), 3, seed=seed), (1, 8, 8)),
         (lambda seed: LSTMModel(3, 6, hidden_size=16, seed=seed), (6,)),
         (lambda seed: TorchModuleModel("torch.nn:Linear", {"in_features": 5, "out_features": 3}, (5,), 3, seed), (5,))]


@pytest.mark.parametrize(("make", "shape"), SMALL, ids=["cnn", "reddi", "resnet18", "lstm", "module"])
def test_they_learn_and_follow_from_the_seed(make, shape):
    model, again, other = make(3), make(3), make(4)
    assert model.weights.sha256() == again.weights.sha256() != other.weights.sha256()
    generator = np.random.default_rng(0)
    y = np.arange(24) % 3
    x = generator.integers(0, 3, (24, *shape)) if isinstance(model, LSTMModel) else generator.normal(size=(24, *shape))
    if isinstance(model, LSTMModel):
        x[:, -1] = y
    learner = DefaultLearner(model, ClientData(x, y, num_classes=3), batch_size=8, client_lr=0.05)
    first = learner.fit().metrics["train_loss"]
    last = [learner.fit().metrics["train_loss"] for _ in range(8)][-1]
    assert last < first
    clone = copy.deepcopy(model)
    clone.weights[0][...] = 0
    assert model.weights.sha256() != clone.weights.sha256()


def test_normalisations_of_resnet18():
    """Batch statistics are buffers; groups have none."""
    batch = ResNet18Model((1, 8, 8), 3, norm="batch").weights.layout
    assert len(batch.buffers) == 3 * 20
    assert all("running" in name or "num_batches" in name for name in batch.buffers)
    assert not ResNet18Model((1, 8, 8), 3).weights.layout.buffers


@pytest.mark.parametrize("settings", [dict(output_size=1), dict(input_shape=(32, 32, 3)), dict(num_groups=5),
                                      dict(norm="layer"), dict(stem="small"),
                                      dict(norm="batch", num_groups=4)])
def test_resnet18_refuses(settings):
    with pytest.raises(ConfigError, match="model_config"):
        ResNet18Model(**settings)


@pytest.mark.parametrize(("model", "settings", "name"), [
    (LogisticModel, dict(c=3.0), "c: 3.0 is for solver: lbfgs"),
    (LogisticModel, dict(solver="lbfgs", alpha=0.5), "alpha: 0.5 is for solver: sgd"),
    (LogisticModel, dict(solver="newton", c=3.0), "solver: 'newton'"),
    (MLPModel, dict(hidden_sizes=(), dropout=0.5), "dropout: 0.5 is for hidden units"),
])
def test_settings_without_an_effect_are_refused(model, settings, name):
    with pytest.raises(ConfigError, match=f"model_config.{name}"):
        model(**settings)


@pytest.mark.parametrize(("model", "shape", "classes", "wanted"), [
    (CNNModel, (64,), 10, {"input_shape": (1, 8, 8), "output_size": 10}),
    (ResNet18Model, (3, 32, 32), 100, {"input_shape": (3, 32, 32), "output_size": 100}),
    (LSTMModel, (80,), 90, {"vocabulary_size": 90, "length": 80}),
    (TorchModuleModel, (5,), 2, {"input_shape": (5,), "num_classes": 2})])
def test_sizes_from_the_data(model, shape, classes, wanted):
    assert model.settings_from_data(shape, classes) == wanted


@pytest.mark.parametrize(("model", "shape", "classes"), [(CNNModel, (7,), 10), (ResNet18Model, (9, 9), None),
                                                         (LSTMModel, (8, 8), 10), (LSTMModel, (80,), None)])
def test_data_that_do_not_fit(model, shape, classes):
    with pytest.raises(ConfigError, match=r"components\.model"):
        model.settings_from_data(shape, classes)


@pytest.mark.parametrize("given", ["input_size=10", "output_size=5"])
def test_sizes_that_are_not_those_of_the_data_are_refused(given):
    """Else every client would fail in the first round."""
    parts = assemble(load_config(overrides=["components.model=model.numpy.linear", f"model_config.{given}"]))
    with pytest.raises(ConfigError, match=f"model_config: {given.replace('=', ': ')}: the model is for .* digits"):
        parts.make_model()


def not_a_module():
    return 3


@pytest.mark.parametrize(("factory", "arguments", "message"), [
    ("torch.nn", {}, "not of the form"), ("no_such_package.models:net", {}, "pip install no_such_package"),
    ("torch.nn:NoSuchThing", {}, "has no NoSuchThing"), ("torch.nn:Linear", {"inputs": 3}, "TypeError"),
    ("torch:__version__", {}, "not a function"), ("tests.builtin.test_models:not_a_module", {}, "returned int")])
def test_factories_that_cannot_be(factory, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TorchModuleModel(factory, arguments)


def test_batch_norm_through_a_round():
    """S-AGG-01, 02: the global statistics are the clients' average, the counter stays an integer without a shape."""
    def model():
        return TorchModel(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2)), (1,), 2)

    start = model().get_weights()
    updates = []
    for mean in (0.0, 10.0):
        learner = DefaultLearner(model(), ClientData(np.full((8, 1), mean) + np.linspace(-1, 1, 8)[:, None],
                                                     np.arange(8) % 2, num_classes=2), batch_size=4)
        learner.set_weights(start)
        updates.append(ClientUpdate.from_result(f"client_{mean:g}", learner.fit()))
    new = FedAvgAggregator().aggregate(updates, start)
    running = [update.weights["0.running_mean"] for update in updates]
    assert running[1] > 1.5
    assert np.allclose(new["0.running_mean"], (running[0] + running[1]) / 2, atol=1e-6)
    counter = new["0.num_batches_tracked"]
    assert (counter.dtype, counter.shape, int(counter)) == (np.int64, (), 2)
    loaded = model()
    loaded.set_weights(new)
    assert torch.equal(loaded.module.state_dict()["0.running_mean"], torch.from_numpy(new["0.running_mean"]))
