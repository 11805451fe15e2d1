"""Learners of algorithms, against loops in float64 that are written out here from their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from federation.builtin import (
    DefaultLearner,
    DittoLearner,
    FedDynLearner,
    FedProxLearner,
    LinearModel,
    ScaffoldAggregator,
    ScaffoldLearner,
    TorchModel,
)
from federation.core.learner import Context
from federation.core.random import stream
from federation.core.weights import Weights
from federation.data.client_data import ClientData
from federation.data.draws import shuffled
from federation.errors import ConfigError
from tests.builtin.torch_parts import batches, make_data

SIZE, BATCH, EPOCHS, RATE = 23, 8, 2, 0.05
STEPS = EPOCHS * 3
NAMES = ("weight", "bias")


def linear(kind: str):
    """One output from six inputs, in NumPy or torch."""
    return LinearModel(6, 1) if kind == "numpy" else TorchModel(nn.Linear(6, 1), (6,), None)


def begin(seed: int = 5) -> Weights:
    rng = np.random.default_rng(seed)
    return Weights.of({"weight": rng.normal(size=(1, 6)).astype(np.float32), "bias": rng.normal(size=1).astype(np.float32)})


def fit(learner, data, client="a", round=1, start=None, state=None, shared=None, **config):
    """One client's turn, as the engine takes it: (weights, result), copied."""
    learner.bind(data, Context(client, round, 0))
    learner.client_state = {} if state is None else state
    learner.shared = shared
    learner.set_weights(start or begin())
    result = learner.fit({**config, "round": round})
    return Weights.of(dict(result.weights.items())), result


class Oracle:
    """Least squares in float64, on the batches that the learner takes; weights are a vector, the bias last."""

    def __init__(self, data: ClientData, client: str = "a", round: int = 1, epochs: int = EPOCHS) -> None:
        self.x = np.column_stack([data.x.astype(np.float64), np.ones(len(data.y))])
        self.y = data.y.astype(np.float64)
        self.batches = batches(len(data.y), epochs, BATCH, client=client, round=round)

    def gradient(self, w, batch):
        """Of the mean squared error of a batch."""
        x, y = self.x[batch], self.y[batch]
        return 2 * x.T @ (x @ w - y) / len(y)


def vector(weights, prefix: str = "") -> np.ndarray:
    return np.concatenate([np.asarray(weights[prefix + name], np.float64).ravel() for name in NAMES])


def arrays(values: np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    return {f"{prefix}weight": values[:6].astype(np.float32).reshape(1, 6), f"{prefix}bias": values[6:].astype(np.float32)}


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


BOTH = pytest.mark.parametrize("kind", ["numpy", "torch"])
SETTINGS = dict(local_epochs=EPOCHS, batch_size=BATCH, client_lr=RATE)


# -- FedProx ---------------------------------------------------------------------------------------------------------

class Constant(nn.Module):
    """A loss, (w - y)^2 with y = w - 1/2 at every step, whose gradient by the only weight is 1."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight + x[:, 0] * 0 - self.weight.detach() + 0.5


@pytest.mark.parametrize(("learner", "settings", "wanted"), [
    (FedProxLearner, {"mu": 1.0}, 0.81), (FedProxLearner, {"mu": 0.0}, 0.80), (DefaultLearner, {}, 0.80),
    (FedProxLearner, {"mu": 4.0}, 0.84), (FedDynLearner, {"alpha": 1.0}, 0.81),
])
def test_the_proximal_term_by_hand(learner, settings, wanted):
    """S-AGG-07: start 1, gradient 1, rate 0.1, two steps: 0.81 with mu = 1, 0.80 with 0, 1 - 0.1 - 0.1 (1 - 0.1 mu)."""
    own = learner(TorchModel(Constant(1.0), (1,), None), local_steps=2, client_lr=0.1, **settings)
    own.bind(ClientData(np.ones((1, 1), np.float32), np.zeros(1, np.float32)), Context())
    assert own.fit({}).weights["weight"][0] == pytest.approx(wanted, abs=1e-6)


@BOTH
@pytest.mark.parametrize("extra", [{}, dict(momentum=0.9, weight_decay=0.1), dict(optimizer="adam"), dict(clip_norm=0.3),
                                   dict(momentum=0.9, keep_momentum=True)])
def test_fedprox_without_mu_is_the_default_learner(kind, extra):
    """S-AGG-07: the same bits, in weights and metrics."""
    data = make_data(SIZE, classes=None)
    plain, first = fit(DefaultLearner(linear(kind), **SETTINGS, **extra), data)
    prox, second = fit(FedProxLearner(linear(kind), mu=0.0, **SETTINGS, **extra), data)
    assert plain.sha256() == prox.sha256()
    assert first.metrics == second.metrics
    assert (first.state or {}).keys() == (second.state or {}).keys()
    assert all((array == second.state[name]).all() for name, array in (first.state or {}).items())
    assert fit(FedProxLearner(linear(kind), mu=0.1, **SETTINGS, **extra), data)[0].sha256() != plain.sha256()


@BOTH
@pytest.mark.parametrize("mu", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_fedprox(kind, mu, momentum, weight_decay):
    """S-AGG-07: w_global is that of the start of the round throughout, and the penalty is half the square."""
    data = make_data(SIZE, classes=None)
    oracle, w = Oracle(data), vector(begin())
    velocity = 0.0
    for batch in oracle.batches:
        gradient = oracle.gradient(w, batch) + mu * (w - vector(begin())) + weight_decay * w
        velocity = momentum * velocity + gradient
        w = w - RATE * velocity
    settings = dict(mu=mu, momentum=momentum, weight_decay=weight_decay, **SETTINGS)
    found, result = fit(FedProxLearner(linear(kind), **settings), data)
    close(vector(found), w)
    assert result.state is None
    assert result.shared is None


# -- SCAFFOLD --------------------------------------------------------------------------------------------------------

def controls(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=7).astype(np.float32).astype(np.float64)


@BOTH
@pytest.mark.parametrize("has_state", [False, True])
def test_scaffold(kind, has_state):
    """Algorithm 1, lines 7 to 13, with option II."""
    data = make_data(SIZE, classes=None)
    oracle, x = Oracle(data), vector(begin())
    c, own = controls(1), controls(2) if has_state else np.zeros(7)
    y = x
    for batch in oracle.batches:
        y = y - RATE * (oracle.gradient(y, batch) - own + c)
    new = own - c + (x - y) / (STEPS * RATE)
    shared = Weights.of(arrays(c, "control.")).read_only()
    state = arrays(own, "control.") if has_state else {}
    found, result = fit(ScaffoldLearner(linear(kind), **SETTINGS), data, state=state, shared=shared)
    close(vector(found), y)
    np.testing.assert_allclose(vector(result.state, "control."), new, atol=2e-5)
    np.testing.assert_allclose(vector(result.shared, "control."), c + (new - own), atol=2e-5)
    assert sorted(result.state) == ["control.bias", "control.weight"]
    assert result.shared.layout == shared.layout


@BOTH
def test_scaffold_divides_by_the_rate_of_the_round(kind):
    """With a schedule, and with a rate given for one call."""
    data, shared = make_data(SIZE, classes=None), Weights.of(arrays(np.zeros(7), "control."))
    by_schedule = ScaffoldLearner(linear(kind), lr_schedule="step", lr_step_rounds=2, lr_gamma=0.5, **SETTINGS)
    for round, config, rate in ((1, {}, RATE), (3, {}, RATE / 2), (5, {}, RATE / 4), (3, {"client_lr": 0.02}, 0.02)):
        oracle, y = Oracle(data, round=round), vector(begin())
        for batch in oracle.batches:
            y = y - rate * oracle.gradient(y, batch)
        found, result = fit(by_schedule, data, round=round, shared=shared, **config)
        close(vector(found), y)
        np.testing.assert_allclose(vector(result.state, "control."), (vector(begin()) - y) / (STEPS * rate), atol=1e-4)


def test_scaffold_on_a_client_without_steps():
    shared = Weights.of(arrays(controls(1), "control."))
    found, result = fit(ScaffoldLearner(linear("numpy")), make_data(0, classes=None), shared=shared)
    assert (result.num_samples, result.state) == (0, None)
    assert result.shared.sha256() == shared.sha256()
    assert found.sha256() == begin().sha256()


@pytest.mark.parametrize("shared", [None, Weights.of({"control.weight": np.zeros((1, 6), np.float32)}),
                                    Weights.of({"control.weight": np.zeros((1, 6), np.float32), "c": np.zeros(1, np.float32)})])
@pytest.mark.parametrize("count", [0, 5])
def test_scaffold_without_its_aggregator(shared, count):
    with pytest.raises(ConfigError, match=r"federated\.aggregator\.scaffold"):
        fit(ScaffoldLearner(linear("torch")), make_data(count, classes=None), shared=shared)


def test_scaffold_needs_a_rate():
    shared = Weights.of(arrays(np.zeros(7), "control."))
    with pytest.raises(ConfigError, match="client_lr=0 in this round"):
        fit(ScaffoldLearner(linear("numpy")), make_data(5, classes=None), shared=shared, client_lr=0.0)


def test_scaffold_covers_what_its_aggregator_shares():
    """A frozen parameter has a control variate that stays zero; BatchNorm's statistics have none."""
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    module[0].bias.requires_grad_(False)
    model = TorchModel(module, (6,), 4)
    layout = ScaffoldAggregator().shared(model.weights.layout)
    learner = ScaffoldLearner(model, local_steps=3, batch_size=10)
    learner.bind(make_data(30), Context())
    learner.shared = Weights.zeros(layout)
    start = model.get_weights()
    result = learner.fit({})
    assert sorted(result.state) == sorted(layout.names)
    assert not any("running" in name or "num_batches" in name for name in layout.names)
    for name, array in result.state.items():
        moved = (start[name.removeprefix("control.")] - result.weights[name.removeprefix("control.")]) / 0.3
        np.testing.assert_allclose(array, moved, atol=1e-5)
        assert np.any(array) == (name != "control.0.bias")


# -- FedDyn ----------------------------------------------------------------------------------------------------------

@BOTH
@pytest.mark.parametrize(("momentum", "keeps"), [(0.0, False), (0.7, False), (0.7, True)])
def test_feddyn_over_rounds(kind, momentum, keeps):
    """Algorithm 1: three rounds, the gradient of one going into the next, and the momentum where it is kept."""
    data = make_data(SIZE, classes=None)
    alpha, learner = 0.3, FedDynLearner(linear(kind), alpha=0.3, momentum=momentum, keep_momentum=keeps, **SETTINGS)
    gradient, velocity, state, start = np.zeros(7), 0.0, {}, begin()
    for round in (1, 2, 3):
        oracle, theta, w = Oracle(data, round=round), vector(start), vector(start)
        velocity = velocity if keeps else 0.0
        for batch in oracle.batches:
            velocity = momentum * velocity + oracle.gradient(w, batch) - gradient + alpha * (w - theta)
            w = w - RATE * velocity
        gradient = gradient - alpha * (w - theta)
        found, result = fit(learner, data, round=round, start=start, state=state)
        close(vector(found), w)
        close(vector(result.state, "gradient."), gradient)
        state, start = result.state, begin(round)
    assert sorted(state) == ["gradient.bias", "gradient.weight", *(["momentum.bias", "momentum.weight"] if keeps else [])]


@pytest.mark.parametrize(("learner", "settings", "prefix"), [
    (ScaffoldLearner, {"client_lr": 1 / (1 - 2.0**-9 - 2.0**-30)}, "control."),
    (FedDynLearner, {"client_lr": 1.0, "alpha": 1 - 2.0**-9 - 2.0**-30}, "gradient.")])
def test_what_a_client_keeps_is_rounded_once(learner, settings, prefix):
    """From a weight that has moved by 1: 1 - 2^-9 - 2^-30, which as float32 is in the middle of two bfloat16."""
    model = TorchModel(Constant(0.0).to(torch.bfloat16), (1,), None)
    own = learner(model, ClientData(np.ones((1, 1), np.float32), np.zeros(1, np.float32)), local_steps=1, **settings)
    own.shared = Weights.zeros(ScaffoldAggregator().shared(model.weights.layout)) if learner is ScaffoldLearner else None
    result = own.fit({})
    assert result.weights["weight"].tolist() == [-1]
    assert result.state[f"{prefix}weight"].tolist() == [1 - 2.0**-8]
    if result.shared is not None:
        assert result.shared["control.weight"].tolist() == [1 - 2.0**-8]


# -- Ditto -----------------------------------------------------------------------------------------------------------

@BOTH
@pytest.mark.parametrize("extra", [{}, {"local_epochs": 1, "local_steps": 4}, {"momentum": 0.5, "keep_momentum": True}])
def test_ditto_over_rounds(kind, extra):
    """Algorithm 1: the global model is FedAvg's; the personal one goes on from round to round, drawn to w_global.

    Steps and momentum that is kept are the global model's; the personal one's begins at zero each time.
    """
    data = make_data(SIZE, classes=None)
    strength, epochs = 0.7, 3
    learner = DittoLearner(linear(kind), personal_lambda=strength, personal_epochs=epochs, **(SETTINGS | extra))
    plain = DefaultLearner(linear(kind), **(SETTINGS | extra))
    start, state, kept = begin(), {}, {}
    personal = vector(start)
    for round in (1, 2, 3):
        found, result = fit(learner, data, round=round, start=start, state=state)
        wanted, expected = fit(plain, data, round=round, start=start, state=kept)
        kept = expected.state or {}
        assert found.sha256() == wanted.sha256()
        assert dict(result.metrics) == dict(expected.metrics)
        oracle, anchor, velocity = Oracle(data, round=round), vector(start), 0.0
        for batch in personal_batches(epochs, round):
            gradient = oracle.gradient(personal, batch) + strength * (personal - anchor)
            velocity = extra.get("momentum", 0.0) * velocity + gradient
            personal = personal - RATE * velocity
        close(vector(result.state, "personal."), personal)
        state, start = result.state, begin(round)
        learner.client_state = state
        close(vector(learner.personal_weights(start)), personal)


def personal_batches(epochs: int, round: int) -> list[np.ndarray]:
    """As `batches`, with draws of their own."""
    generator = stream(0, "personal shuffle", round, "a")
    orders = [shuffled(generator, SIZE) for _ in range(epochs)]
    return [order[first:first + BATCH] for order in orders for first in range(0, SIZE, BATCH)]


def test_ditto_knows_no_personal_model_before_training():
    learner = DittoLearner(linear("torch"))
    assert learner.personal_weights(begin()) is None
    learner.client_state = {"personal.weight": np.zeros((1, 6), np.float32)}
    assert learner.personal_weights(begin()) is None
    assert DefaultLearner(linear("numpy")).personal_weights(begin()) is None


# -- what holds for all of them --------------------------------------------------------------------------------------

LEARNERS = [(FedProxLearner, dict(mu=0.5, momentum=0.9, keep_momentum=True)), (ScaffoldLearner, {}),
            (FedDynLearner, dict(alpha=0.2, momentum=0.5)), (DittoLearner, dict(momentum=0.9, keep_momentum=True)),
            (DefaultLearner, dict(momentum=0.9, keep_momentum=True, clip_norm=0.5)), (DefaultLearner, dict(optimizer="adam"))]


@BOTH
@pytest.mark.parametrize(("learner", "settings"), LEARNERS)
def test_a_result_follows_from_what_the_client_has(learner, settings, kind):
    """S-AGG-06: training A and then B on one learner gives for B what B alone gives, in its second round as well."""
    first, second = make_data(SIZE, classes=None, seed=1), make_data(17, classes=None, seed=2)
    shared = Weights.of(arrays(controls(1), "control.")) if learner is ScaffoldLearner else None
    used, states, seen = learner(linear(kind), **SETTINGS, **settings), {"a": {}, "b": {}}, []
    for round in (1, 2):
        for client, data in (("a", first), ("b", second)):
            found, result = fit(used, data, client, round, state=states[client], shared=shared)
            states[client] = {name: array.copy() for name, array in (result.state or {}).items()}
        seen.append((found.sha256(), states["b"]))
    alone, state = learner(linear(kind), **SETTINGS, **settings), {}
    for round, (digest, kept) in enumerate(seen, 1):
        found, result = fit(alone, second, "b", round, state=state, shared=shared)
        assert found.sha256() == digest
        state = result.state or {}
        assert state.keys() == kept.keys()
        assert all(np.array_equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize(("learner", "settings", "words"), [
    (FedProxLearner, dict(mu=-1), "mu"), (FedProxLearner, dict(mu="1"), "mu"), (FedDynLearner, dict(alpha=0), "alpha"),
    (FedDynLearner, dict(alpha=float("inf")), "alpha"), (ScaffoldLearner, dict(momentum=0.9), "momentum"),
    (ScaffoldLearner, dict(optimizer="adam"), "optimizer"), (ScaffoldLearner, dict(client_lr=0), "client_lr=0"),
    (DittoLearner, dict(personal_lambda=-0.1), "personal_lambda"),
    (DittoLearner, dict(personal_epochs=0), "personal_epochs"), (FedProxLearner, dict(batch_size=0), "batch_size"),
])
def test_settings_that_cannot_be(learner, settings, words):
    with pytest.raises(ConfigError, match=words):
        learner(linear("numpy"), **settings)
