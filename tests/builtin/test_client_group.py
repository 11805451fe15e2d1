"""Clients that are trained at once: against torch's own loop for each of them, and bit by bit at every place of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from federation.builtin import CNNModel, DefaultLearner, FedProxLearner, LinearModel, MLPModel, TorchModel
from federation.builtin.models.lstm import LSTMModel
from federation.builtin.steps.contract import Member, StepSettings
from federation.builtin.steps.group_steps import Batches, TorchGroupSteps
from federation.builtin.steps.torch_gradients import clipped_each
from federation.core.learner import Context, Learner, Turn
from federation.core.types import TrainResult
from federation.core.weights import Weights
from federation.data.client_data import ClientData
from federation.errors import ConfigError, DataError
from tests.builtin.torch_parts import NETWORKS, Tied, batches, make_data, model_of, plain_mlp, plain_training

START = MLPModel(input_size=6, output_size=4, hidden_sizes=(5,), seed=9).get_weights()


def learner_of(model: TorchModel | None = None, client_batch: int = 8, **settings: Any) -> DefaultLearner:
    return DefaultLearner(model or MLPModel(6, 4, (5,)), **{"batch_size": 8, "client_batch": client_batch, **settings})


def turns_of(data: Sequence[ClientData], start: Weights = START) -> list[Turn]:
    return [Turn(each, Context(f"client_{index}", 1, 3), start) for index, each in enumerate(data)]


def trained(learner: DefaultLearner, turns: Sequence[Turn], **config: Any) -> list[TrainResult | Exception]:
    """The results in the order of `turns`, with weights of their own."""
    found: dict[int, TrainResult | Exception] = {}
    for index, result in learner.fit_many(turns, config):
        assert index not in found
        if not isinstance(result, Exception):
            result = TrainResult(Weights.of(result.weights).copy(), result.num_samples, dict(result.metrics))
        found[index] = result
    return [found[index] for index in range(len(turns))]


SGD, HEAVY = {"client_lr": 0.1}, {"client_lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (SGD, lambda parameters: torch.optim.SGD(parameters, 0.1)),
    "momentum": (HEAVY, lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)),
    "adam": ({"client_lr": 0.01, "optimizer": "adam"}, lambda parameters: torch.optim.Adam(parameters, 0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_client_takes_the_steps_that_it_takes_alone(name):
    """Clients of 20, 5, 8, 33 and one samples: batches that are not full, and steps that are over before those of others."""
    settings, make_optimizer = OPTIMIZERS[name]
    data = [make_data(count, seed=count) for count in (20, 5, 8, 33, 1)]
    results = trained(learner_of(local_epochs=2, **settings), turns_of(data), metrics=["local_steps"])
    for index, (each, result) in enumerate(zip(data, results, strict=True)):
        module = plain_mlp(dict(START.items()))
        chosen = batches(len(each.y), 2, 8, client=f"client_{index}", round=1, seed=3)
        loss = plain_training(module, make_optimizer(module.parameters()), each, chosen)
        assert result.num_samples == len(each.y)
        assert result.metrics["local_steps"] == len(chosen)
        assert result.metrics["train_loss"] == pytest.approx(loss, rel=1e-5)
        for array, start, parameter in zip(result.weights, START, module.parameters(), strict=True):
            np.testing.assert_allclose(array - start, parameter.detach().numpy() - start, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("settings", [
    dict(clip_norm=0.05, momentum=0.9), dict(local_steps=7), dict(drop_last=True, local_epochs=3),
    dict(lr_schedule="step", lr_step_rounds=1, lr_warmup_rounds=2), dict(loss="mse"),
], ids=str)
def test_all_other_settings_are_those_of_clients_one_by_one(settings):
    """And what aggregators ask for; the weights differ by rounding alone."""
    data = [make_data(count, classes=None if "loss" in settings else 4, seed=count) for count in (20, 5, 0, 33)]
    outputs = 1 if "loss" in settings else 4
    start = MLPModel(6, outputs, (5,), seed=9).get_weights()
    metrics = ["start_loss", "local_steps", "normaliser"]
    results = trained(learner_of(MLPModel(6, outputs, (5,)), **settings), turns_of(data, start), metrics=metrics)
    alone = DefaultLearner(MLPModel(6, outputs, (5,)), batch_size=8, **settings)
    for turn, result in zip(turns_of(data, start), results, strict=True):
        alone.bind(turn.data, turn.context)
        alone.set_weights(start)
        wanted = alone.fit({"metrics": metrics})
        assert (result.num_samples, sorted(result.metrics)) == (wanted.num_samples, sorted(wanted.metrics))
        assert dict(result.metrics) == pytest.approx(dict(wanted.metrics), rel=1e-5)
        for array, other in zip(result.weights, wanted.weights, strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-6)
    assert results[2].weights.sha256() == start.sha256()


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.3}, {"optimizer": "adam"}],
                         ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("client_batch", [2, 3, 8])
@pytest.mark.parametrize("name", ["relu", "norms", "branched", "convolution"])
def test_the_same_bits_at_every_place_and_in_any_company(name, client_batch, settings):
    """By itself, and in groups of any other clients, one of them of nothing but NaN; bit for bit, losses included."""
    model = model_of(name)
    start, width = model.get_weights(), NETWORKS[name][1]
    data = [make_data(count, shape=(width,), classes=5, seed=count) for count in (13, 4, 9, 1, 18)]
    data[3].x[:] = np.nan
    learner = learner_of(model, client_batch, batch_size=5, local_epochs=3, client_lr=0.5, **settings)
    turns = turns_of(data, start)
    alone = []
    for turn in turns:
        learner.bind(turn.data, turn.context)
        learner.set_weights(start)
        result = learner.fit({})
        alone.append((Weights.of(result.weights).sha256(), result.metrics["train_loss"]))
    assert len(set(alone)) == len(data)
    draws = np.random.default_rng(0)
    for _ in range(8):
        chosen = draws.permutation(len(turns))[:draws.integers(1, client_batch + 1)]
        for index, result in zip(chosen, trained(learner, [turns[index] for index in chosen]), strict=True):
            assert result.weights.sha256() == alone[index][0]
            assert result.metrics["train_loss"] == pytest.approx(alone[index][1], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e5])
def test_each_clients_gradients_are_clipped_as_torch_does(size):
    """Also where they are so short that what keeps the division finite counts."""
    generator = torch.Generator().manual_seed(0)
    gradients = [size * torch.randn(3, *shape, generator=generator) for shape in ((4, 5), (5,), ())]
    gradients[0][1] *= 1e-3
    gradients[1][1], gradients[2][1] = 0, 0
    found = clipped_each(gradients, 0.5 * size)
    for client in range(3):
        wanted = [torch.nn.Parameter(torch.zeros_like(gradient[client])) for gradient in gradients]
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient[client].clone()
        nn.utils.clip_grad_norm_(wanted, 0.5 * size)
        for parameter, clipped in zip(wanted, found, strict=True):
            torch.testing.assert_close(clipped[client], parameter.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["relu", "convolution"])
def test_clients_that_start_from_weights_of_their_own(name):
    """As local parameters have it."""
    model = model_of(name)
    data = make_data(13, shape=(NETWORKS[name][1],), classes=5)
    starts = [model.get_weights() for _ in range(3)]
    for factor, start in enumerate(starts):
        start[0][...] *= 1 + factor
    learner = learner_of(model)
    turns = [Turn(data, Context("a", 1, 3), start) for start in starts]
    together = [result.weights.sha256() for result in trained(learner, turns)]
    assert together == [trained(learner, [turn])[0].weights.sha256() for turn in turns]
    assert len(set(together)) == 3


class Masked(nn.Module):
    """Looks at some of its features only, which a buffer says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mask", torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * self.mask)


@pytest.mark.parametrize("is_home", [True, False])
@pytest.mark.parametrize("kind", ["buffer", "frozen"])
def test_clients_whose_buffers_or_frozen_parameters_differ(monkeypatch, kind, is_home):
    """As local parameters have it; each is trained with its own, against torch's loop, whoever it is trained beside."""
    monkeypatch.setattr(TorchGroupSteps, "_is_home", lambda steps, device: is_home)
    model = TorchModel(Masked(), (6,), 4) if kind == "buffer" else MLPModel(6, 4, (5,))
    learner, data, starts = learner_of(model), make_data(20), [model.get_weights() for _ in range(4)]
    if kind == "frozen":
        trained(learner, turns_of([data], starts[0]))
        model.module.hidden1.requires_grad_(False)
    name = "mask" if kind == "buffer" else "hidden1.weight"
    for start, factor in zip(starts, (0.5, 2.0, 0.5, 1.0), strict=True):
        start[name][0] *= factor
    turns = [Turn(data, Context(f"client_{index}", 1, 3), start) for index, start in enumerate(starts)]
    results = trained(learner, turns)
    for index, (start, result) in enumerate(zip(starts, results, strict=True)):
        module = Masked() if kind == "buffer" else plain_mlp(dict(start.items()))
        if kind == "buffer":
            module.load_state_dict({key: torch.tensor(array) for key, array in start.items()})
        else:
            module[0].requires_grad_(False)
        optimizer = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], 0.1)
        loss = plain_training(module, optimizer, data, batches(20, 1, 8, client=f"client_{index}", round=1, seed=3))
        assert result.metrics["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert (result.weights[name] == start[name]).all()
        wanted = module.layer.weight if kind == "buffer" else module[2].weight
        found = result.weights["layer.weight" if kind == "buffer" else "output.weight"]
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4, atol=1e-6)
        assert result.weights.sha256() == trained(learner, [turns[index]])[0].weights.sha256()


def test_a_group_is_filled_up_with_a_client_and_a_batch_with_samples_that_do_not_count():
    """Two clients at four places, batches of three; the second client's steps are over after the first."""
    data = [ClientData(np.arange(first, first + count, dtype=np.float32)[:, None], np.arange(first, first + count))
            for first, count in ((0, 5), (10, 2))]
    members = [Member(data[0], [np.array([4, 0, 2]), np.array([1, 3])], START), Member(data[1], [np.array([1])], START)]
    batches = Batches(members, 4, 3, torch.float32, torch.device("cpu"))
    assert batches.num_steps == 2
    first, second = [[4, 0, 2], [11, 11, 11]], [[1, 3, 1], [11, 11, 11]]
    for number, (rows, counts) in enumerate([(first, [3, 1, 3, 3]), (second, [2, 1, 2, 2])]):
        x, y, weights = batches.of(number)
        assert x.squeeze(2).tolist() == y.tolist() == [*rows, rows[0], rows[0]]
        assert weights.tolist() == [[1.0] * count + [0.0] * (3 - count) for count in counts]


class Counting(nn.Module):
    """Counts its calls in a buffer, which it changes or replaces."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(6, 4), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return self.layer(x)


class Branching(nn.Module):
    """Looks at its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def sequential(*layers: nn.Module) -> TorchModel:
    return TorchModel(nn.Sequential(*layers), (6,), 4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("model", "settings", "words"), [
    (lambda: LinearModel(6, 4), {}, "client_batch=8 is for torch models, not for LinearModel"),
    (lambda: MLPModel(6, 4, (5,), dropout=0.1), {}, r"client_batch=8: what dropout \(dropout1\) leaves out"),
    (lambda: sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), {}, r"which BatchNorm \(1\) would average over"),
    (lambda: sequential(nn.Linear(6, 4), nn.Sigmoid()), {}, "last bits of sigmoid, sigmoid_backward in this model"),
    (lambda: LSTMModel(4, 6), {}, r"last bits of .*mkldnn_rnn_layer"),
    (lambda: TorchModel(Counting(in_place=False), (6,), 4), {}, "changes calls in training"),
    (lambda: TorchModel(Counting(in_place=True), (6,), 4), {}, "cannot be trained for several clients at once .*in-place"),
    (lambda: TorchModel(Branching(), (6,), 4), {}, "cannot be trained for several clients at once .*data-dependent"),
    (lambda: sequential(nn.Linear(6, 4).requires_grad_(False)), {}, "nothing of this model is trainable"),
    (lambda: sequential(nn.Linear(6, 1)), {}, "the loss cross_entropy needs a model with one output for each class"),
    (lambda: MLPModel(6, 4), {"momentum": 0.9, "keep_momentum": True}, "does not go with keep_momentum"),
    (lambda: MLPModel(6, 4), {"compile": True}, "client_batch=8 and compile=True"),
    (lambda: MLPModel(6, 4), {"precision": "bfloat16"}, "client_batch=8 works in float32"),
    (lambda: MLPModel(6, 4), {"client_batch": 0}, "client_batch=0 is not a whole number of at least 1"),
    (lambda: MLPModel(6, 4), {"client_batch": True}, "client_batch=True is not a whole number"),
])
def test_what_cannot_be_trained_so_is_refused_at_once(model, settings, words):
    with pytest.raises(ConfigError, match=rf"(?s)^learner_config: .*{words}"):
        DefaultLearner(model(), **{"client_batch": 8, **settings})


@pytest.mark.parametrize("loss", ["auto", "mse"])
def test_regression(loss):
    """Against a loop in float64; what float targets mean is known of the first samples only."""
    model, data = TorchModel(nn.Linear(6, 1), (6,), None), make_data(20, classes=None)
    learner = learner_of(model, loss=loss)
    start = learner.get_weights()
    (result,) = trained(learner, turns_of([data], start))
    x, w, total = np.column_stack([data.x, np.ones(20)]), np.append(start["weight"][0], start["bias"]).astype(np.float64), 0.0
    for batch in batches(20, 1, 8, client="client_0", round=1, seed=3):
        error = x[batch] @ w - data.y[batch]
        total += error @ error
        w = w - 0.1 * 2 * error @ x[batch] / len(batch)
    np.testing.assert_allclose(np.append(result.weights["weight"][0], result.weights["bias"]), w, rtol=1e-4, atol=1e-6)
    assert result.metrics["train_loss"] == pytest.approx(total / 20, rel=1e-5)


@pytest.mark.parametrize("shape", [(6,), None])
def test_a_model_of_float64_is_trained_in_float64(shape):
    """Whether it is tried on zeros or on the first samples."""
    model, data = TorchModel(nn.Sequential(nn.Linear(6, 4)).double(), shape, 4), make_data(20)
    learner = learner_of(model)
    start = learner.get_weights()
    (result,) = trained(learner, turns_of([data], start))
    weight, bias = (torch.tensor(array, requires_grad=True) for array in start)
    optimizer = torch.optim.SGD([weight, bias], 0.1)
    for batch in batches(20, 1, 8, client="client_0", round=1, seed=3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(torch.tensor(data.x[batch]).double() @ weight.T + bias, torch.tensor(data.y[batch])).backward()
        optimizer.step()
    for array, wanted in zip(result.weights, (weight, bias), strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, wanted.detach().numpy(), rtol=1e-12, atol=1e-14)


class Doubling(nn.Module):
    """Does something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * 2 if self.training else x)


@pytest.mark.parametrize("is_home", [True, False])
def test_a_group_is_trained_in_training_mode(monkeypatch, is_home):
    """Whether the rank has evaluated before or not."""
    monkeypatch.setattr(TorchGroupSteps, "_is_home", lambda steps, device: is_home)
    model, data = TorchModel(Doubling(), (6,), 4), make_data(20)
    learner, twice = learner_of(model), ClientData(2 * data.x, data.y)
    start = learner.get_weights()
    plain = learner_of(TorchModel(nn.Sequential(nn.Linear(6, 4)), (6,), 4))
    (wanted,) = trained(plain, turns_of([twice], Weights.of(dict(zip(plain.model.weights.names, start, strict=True)))))
    for _ in range(2):
        (result,) = trained(learner, turns_of([data], start))
        for array, other in zip(result.weights, wanted.weights, strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-7)
        learner.bind(ClientData(data.x, data.y, data.x, data.y), Context("client_0", 1, 3))
        learner.evaluate()


def test_outputs_that_do_not_fit_the_loss_are_what_is_wrong():
    with pytest.raises(ConfigError, match=r"^learner_config: the loss cross_entropy"):
        learner_of(sequential(nn.Linear(6, 1)))


def test_a_model_that_was_refused_is_as_it_was():
    """Its buffer too, which it has replaced when it was tried."""
    digests = []
    for is_tried in (False, True):
        torch.manual_seed(0)
        model = TorchModel(Counting(in_place=False), (6,), 4)
        before = model.get_weights()
        if is_tried:
            with pytest.raises(ConfigError, match="changes calls in training"):
                learner_of(model)
        assert model.get_weights().sha256() == before.sha256()
        learner = DefaultLearner(model, make_data(20), batch_size=8)
        digests.append(learner.fit().weights.sha256())
        assert model.weights["calls"] == 3
    assert digests[0] == digests[1]


class Targets:
    """Data of a user's own, with a target for each output of the model."""

    def __init__(self, data: ClientData) -> None:
        self.x, self.y = data.x, np.eye(4, dtype=np.float32)[data.y]


def test_other_settings_and_losses_leave_nothing_behind():
    """One object's groups, one after the other, against those of a new one each."""
    model, data = MLPModel(6, 4, (5,)), make_data(20)
    used, orders = model.make_group_steps(2), [np.arange(8), np.arange(8, 16)]
    plain, heavy, adam = StepSettings(), StepSettings(momentum=0.9, clip_norm=0.1), StepSettings("adam", 0.01)
    for given, settings in ((data, heavy), (data, adam), (data, plain), (Targets(data), plain), (data, plain), (data, adam)):
        found = []
        for steps in (used, model.make_group_steps(2)):
            ((index, loss),) = steps.train([Member(given, orders, START)], settings, 8)
            found.append((index, loss, model.get_weights().sha256()))
        assert found[0] == found[1]


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4)), Branching])
def test_a_model_of_unknown_samples_is_refused_by_its_first_group(make):
    learner = learner_of(TorchModel(make()))
    for result in trained(learner, turns_of([make_data(9), make_data(5)], learner.get_weights())):
        assert isinstance(result, ConfigError)
        assert "client_batch" in str(result)


def test_the_cnn_is_not_refused():
    learner = learner_of(CNNModel((1, 8, 8), 4, channels=(3, 5), hidden_size=7))
    start = learner.get_weights()
    for result in trained(learner, turns_of([make_data(9, shape=(64,)), make_data(5, shape=(64,))], start)):
        assert result.weights.sha256() != start.sha256()


def test_dropout_of_nothing_is_not_refused():
    learner_of(sequential(nn.Linear(6, 4), nn.Dropout(0.0)))


def test_no_other_learner_takes_it():
    with pytest.raises(TypeError, match="client_batch"):
        FedProxLearner(MLPModel(6, 4), client_batch=2)
    assert Learner.clients_at_once == DefaultLearner(MLPModel(6, 4)).clients_at_once == 1


def test_a_client_at_fault_is_left_out_alone():
    """Wrong labels, samples of another shape, NaN: each has an error or NaN of its own, and the others the bits that they have
    without those."""
    good = [make_data(20, seed=1), make_data(9, seed=2)]
    out_of_range, negative, nan = make_data(9), make_data(9), make_data(9)
    out_of_range.y[3], negative.y[2], nan.x[4] = 4, -1, np.nan
    data = [good[0], out_of_range, negative, make_data(9, shape=(7,)), nan, good[1]]
    learner = learner_of()
    turns = turns_of(data)
    results = trained(learner, turns)
    assert [isinstance(result, Exception) for result in results] == [False, True, True, True, False, False]
    assert isinstance(results[2], DataError)
    assert not results[4].weights.all_finite()
    for index in (0, 5):
        assert results[index].weights.sha256() == trained(learner, [turns[index]])[0].weights.sha256()


def test_parameters_that_are_frozen_between_rounds_stay():
    model = MLPModel(6, 4, (5,))
    learner, turns = learner_of(model), turns_of([make_data(20), make_data(9)])
    free = trained(learner, turns)
    model.module.hidden1.requires_grad_(False)
    frozen = trained(learner, turns)
    for before, after in zip(free, frozen, strict=True):
        for name, array in after.weights.items():
            assert (array == START[name]).all() == name.startswith("hidden1")
            assert (before.weights[name] != START[name]).any()


def test_what_is_refused_on_a_cpu_alone(monkeypatch):
    """A GPU has no vector registers to fill; a model that vmap does not take is refused for it as well."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    learner_of(sequential(nn.Linear(6, 4), nn.Sigmoid()), device="cuda")
    with pytest.raises(ConfigError, match="data-dependent"):
        learner_of(TorchModel(Branching(), (6,), 4), device="cuda")
    with pytest.raises(ConfigError, match="last bits of sigmoid"):
        learner_of(sequential(nn.Linear(6, 4), nn.Sigmoid()), device="cpu")


def test_a_copy_of_the_module_computes_the_same(monkeypatch):
    """As on a GPU, but here; a parameter that is frozen later is so in the copy too."""
    model = MLPModel(6, 4, (5,))
    learner, turns = learner_of(model), turns_of([make_data(20), make_data(9)])
    found = []
    for is_home in (True, False):
        monkeypatch.setattr(TorchGroupSteps, "_is_home", lambda steps, device, is_home=is_home: is_home)
        for requires_grad in (True, False):
            model.module.hidden1.requires_grad_(requires_grad)
            found.append([result.weights.sha256() for result in trained(learner, turns)])
    assert found[:2] == found[2:]
    assert found[0] != found[1]


def test_tied_weights():
    """One tensor at two places of the module; against the same learner without groups."""
    data = ClientData(make_data(20).x, make_data(20).y)
    together, alone = (DefaultLearner(TorchModel(Tied(), (6,), 6), batch_size=8, client_batch=size) for size in (3, 1))
    start = alone.get_weights()
    (result,) = trained(together, turns_of([data], start))
    alone.bind(data, Context("client_0", 1, 3))
    alone.fit({})
    assert len(start) == 3
    for array, other, before in zip(result.weights, alone.get_weights(), start, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-6)
        assert (array != before).any()


def test_a_client_of_fit_has_the_numbers_that_it_has_in_a_group():
    """fit raises what fit_many yields, and leaves the model as it does."""
    learner, data = learner_of(), make_data(20)
    (result,) = trained(learner, turns_of([data]))
    learner.bind(data, Context("client_0", 1, 3))
    learner.set_weights(START)
    assert learner.fit({}).weights.sha256() == result.weights.sha256() == learner.get_weights().sha256()
    learner.bind(ClientData(data.x, np.full(20, -1)), Context("client_0", 1, 3))
    with pytest.raises(DataError):
        learner.fit({})
    with pytest.raises(ValueError, match="unknown key"):
        learner.fit({"client_rate": 1})
