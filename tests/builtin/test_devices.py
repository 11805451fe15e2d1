"""Other devices than the CPU, and lower precision: what can be seen of them without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from federation.builtin import (
    DefaultLearner,
    DittoLearner,
    FedDynLearner,
    FedProxLearner,
    LinearModel,
    MLPModel,
    TorchModel,
)
from federation.builtin.steps.device import choose_device
from federation.builtin.steps.loss_scale import PATIENCE, LossScale
from federation.builtin.steps.torch_steps import TorchSteps
from federation.core.learner import Context
from federation.data.client_data import ClientData
from federation.errors import ConfigError
from tests.builtin.torch_parts import Rebinding, Tied, batches, make_data, plain_mlp


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that torch finds as many GPUs as it is called with."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(("name", "count", "local_rank", "wanted"), [
    ("cpu", 0, None, "cpu"), ("cpu", 4, 1, "cpu"), ("auto", 0, 1, "cpu"), ("auto", 4, 1, "cuda:1"), ("auto", 4, None, "cuda:0"),
    ("cuda", 4, 3, "cuda:3"), ("cuda", 2, 5, "cuda:1"), ("cuda", 1, None, "cuda:0"), ("cuda:2", 4, 1, "cuda:2"),
    ("cuda:0", 1, 3, "cuda:0"),
])
def test_the_device_goes_by_local_rank(gpus, name, count, local_rank, wanted):
    gpus(count)
    environ = {} if local_rank is None else {"OMPI_COMM_WORLD_SIZE": "9", "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank)}
    assert choose_device(name, environ) == torch.device(wanted)


def test_nine_ranks_on_two_hosts_with_four_gpus_each(gpus):
    """S-HPC-05: ranks 0 to 4, of which 0 serves, and 5 to 8: no GPU for two that train, and none that is not there."""
    gpus(4)

    def device(local_rank: int, size: int) -> int:
        environ = {"OMPI_COMM_WORLD_SIZE": "9", "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank),
                   "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)}
        return choose_device("cuda", environ).index

    assert sorted(device(rank, 5) for rank in range(1, 5)) == [0, 1, 2, 3]
    assert [device(rank, 4) for rank in range(4)] == [0, 1, 2, 3]


def test_a_restriction_of_slurm_is_left_alone(gpus):
    """S-HPC-05: where CUDA_VISIBLE_DEVICES leaves one GPU, torch counts one, and it is number 0."""
    gpus(1)
    environ = {"CUDA_VISIBLE_DEVICES": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "6", "SLURM_LOCALID": "3", "SLURM_NTASKS": "8"}
    before = dict(environ)
    assert choose_device("cuda", environ).index == 0
    assert environ == before


def test_worker_processes_share_the_gpus(gpus):
    """S-HPC-05: in parallel mode, where no launcher tells."""
    gpus(2)
    assert [choose_device("cuda", {"NODE_COMM_WORKER": str(worker)}).index for worker in range(3)] == [0, 1, 0]


def test_the_device_goes_by_slurms_local_rank(gpus):
    gpus(4)
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_NTASKS": "8"}
    assert choose_device("cuda", step) == torch.device("cuda:2")


@pytest.mark.parametrize(("name", "count", "words"), [
    ("cuda", 0, "finds no GPU"), ("cuda:0", 0, "finds no GPU"), ("cuda:4", 4, "cuda:3"), ("gpu", 4, "auto, cpu, cuda"),
    ("cuda:", 4, "auto, cpu, cuda"), ("cuda:-1", 4, "auto, cpu, cuda"), ("CUDA", 4, "auto, cpu, cuda"), (0, 4, "auto, cpu, cuda"),
    ("", 4, "auto, cpu, cuda"),
])
def test_devices_that_cannot_be(gpus, name, count, words):
    gpus(count)
    with pytest.raises(ConfigError, match=words):
        choose_device(name, {})


@pytest.mark.parametrize(("settings", "words"), [
    (dict(device="gpu"), "device"), (dict(device="cuda"), "finds no GPU"), (dict(precision="float64"), "precision"),
    (dict(precision="float16"), "float16.*bfloat16"), (dict(precision="float16", device="auto"), "float16.*bfloat16"),
])
def test_a_learner_says_so_at_once(gpus, settings, words):
    gpus(0)
    with pytest.raises(ConfigError, match=words):
        DefaultLearner(TorchModel(nn.Linear(6, 4), (6,), 4), **settings)


@pytest.mark.parametrize("settings", [dict(precision="bfloat16"), dict(precision="float16"), dict(device="cuda"),
                                      dict(device="cuda:0"), dict(device="gpu")])
def test_the_numpy_model_is_float32_on_the_cpu(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DefaultLearner(LinearModel(6, 4), **settings)
    DefaultLearner(LinearModel(6, 4), precision="float32", device="auto")


# -- a copy of the module, as on a GPU, but here -----------------------------------------------------------------------

def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 4))


def frozen() -> nn.Module:
    module = normalised()
    module[0].weight.requires_grad_(False)
    return module


def tied() -> nn.Module:
    return Tied()


@pytest.mark.parametrize("make", [normalised, frozen, tied, Rebinding])
@pytest.mark.parametrize("learner", [
    lambda model: DefaultLearner(model, batch_size=8, momentum=0.9, keep_momentum=True, clip_norm=0.5),
    lambda model: DefaultLearner(model, batch_size=8, optimizer="adam"),
    lambda model: FedDynLearner(model, batch_size=8, alpha=0.3),
], ids=["momentum", "adam", "feddyn"])
def test_training_a_copy_gives_the_same_bits(monkeypatch, make, learner):
    """Weights, statistics, client state and metrics, over rounds in which weights are set and a parameter is frozen."""
    seen = []
    for copies in (False, True):
        torch.manual_seed(0)
        model = TorchModel(make(), (6,), 6 if make is tied else 4)
        monkeypatch.setattr(TorchSteps, "_is_home", lambda self, device, copies=copies: not copies)
        own, found, start = learner(model), [], model.get_weights()
        for round in (1, 2, 3):
            own.bind(make_data(21, seed=round % 2), Context("a", round, 0))
            if round == 3:
                own.set_weights(start)
                next(iter(model.module.parameters())).requires_grad_(False)
            result = own.fit({})
            own.client_state = {name: array.copy() for name, array in (result.state or {}).items()}
            own.bind(evaluation_data(), Context("a", round, 0))
            found += [result.weights.sha256(), dict(result.metrics), dict(own.evaluate({}).metrics),
                      {name: array.tobytes() for name, array in own.client_state.items()}]
        seen.append(found)
    assert seen[0] == seen[1]


def evaluation_data():
    """Ten samples to evaluate on."""
    data = make_data(10, seed=7)
    return ClientData(data.x, data.y, data.x, data.y, num_classes=4)


def test_the_models_own_module_is_not_trained_where_a_copy_is(monkeypatch):
    model = TorchModel(nn.Linear(6, 4), (6,), 4)
    monkeypatch.setattr(TorchSteps, "_is_home", lambda self, device: False)
    calls = []
    model.module.register_forward_hook(lambda module, given, scores: calls.append(module))
    learner = DefaultLearner(model)
    before = learner.get_weights()
    learner.bind(make_data(20), Context())
    assert learner.fit({}).weights.sha256() != before.sha256()
    assert calls
    assert all(module is not model.module for module in calls)


def test_parts_that_were_put_into_evaluation_are_trained_as_well():
    """Whether the rank has evaluated before or not: else its bits would depend on that."""
    results, own = [], make_data(20)
    for evaluates in (False, True):
        torch.manual_seed(0)
        model = TorchModel(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 4)), (6,), 4)
        learner = DefaultLearner(model, batch_size=8, client_lr=0.1)
        learner.bind(ClientData(own.x, own.y, own.x, own.y, 4), Context())
        model.module[1].eval()
        if evaluates:
            learner.evaluate({})
        results.append(learner.fit({}).weights.copy())
    assert (results[0].buffer == results[1].buffer).all()


# -- precision ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [DefaultLearner, FedProxLearner, DittoLearner, FedDynLearner])
def test_a_client_all_of_whose_steps_float16_has_left_out_counts_for_nothing(kind):
    """The scaled loss of such samples is beyond float16; on the CPU, autocast can show it."""
    data = make_data(20)
    learner = kind(MLPModel(6, 4, (5,)), ClientData(3e4 * data.x, data.y, num_classes=4), batch_size=20, local_steps=2)
    learner._step_settings = replace(learner._step_settings, precision="float16")
    start = learner.get_weights()
    result = learner.fit({})
    assert result.num_samples == 0
    assert np.array_equal(result.weights.buffer, start.buffer)


def test_bfloat16_is_autocast():
    """The same bits as a plain loop under torch.autocast, whose parameters and gradients stay float32."""
    data = make_data(20)
    model = TorchModel(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), (6,), 4)
    start = model.get_weights()
    results = {}
    for precision in ("float32", "bfloat16"):
        model.set_weights(start)
        learner = DefaultLearner(model, batch_size=8, local_epochs=3, client_lr=0.1, precision=precision)
        learner.bind(data, Context())
        results[precision] = learner.fit({}).weights.copy()
    oracle = plain_mlp(dict(start.items()))
    optimizer = torch.optim.SGD(oracle.parameters(), 0.1)
    for batch in batches(20, 3, 8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = oracle(torch.tensor(data.x[batch]))
        assert scores.dtype == torch.bfloat16
        functional.cross_entropy(scores.float(), torch.tensor(data.y[batch])).backward()
        optimizer.step()
    assert results["bfloat16"].layout.dtypes == (np.float32,) * 4
    for array, parameter in zip(results["bfloat16"], oracle.parameters(), strict=True):
        np.testing.assert_array_equal(array, parameter.detach().numpy())
    apart = np.abs(results["bfloat16"][0] - results["float32"][0]).max()
    assert 0 < apart < 0.05


def test_the_loss_scale_keeps_small_gradients():
    """A gradient that float16 cannot hold, of a scaled loss that it can; infinities halve the factor and skip the step."""
    scale = LossScale(1024.0)
    tiny = torch.tensor([1e-9])
    assert tiny.half().item() == 0
    (found, absent) = scale.unscaled([(tiny * scale.factor).half().float(), None])
    assert found.item() == pytest.approx(1e-9, rel=0.05)
    assert absent is None
    assert scale.unscaled([torch.tensor([1.0]), torch.tensor([float("inf")])]) is None
    assert scale.factor == 512
    for _ in range(PATIENCE):
        scale.unscaled([torch.tensor([1.0])])
    assert scale.factor == 1024


def test_the_loss_scale_counts_steps_in_a_row():
    """One that is left out begins the count anew, and so does a factor that has been doubled."""
    scale, good, bad = LossScale(8.0), [torch.tensor([1.0])], [torch.tensor([float("inf")])]
    for _ in range(PATIENCE - 1):
        scale.unscaled(good)
    assert scale.unscaled(bad) is None
    factors = []
    for _ in range(2 * PATIENCE):
        scale.unscaled(good)
        factors.append(scale.factor)
    assert factors == [4.0] * (PATIENCE - 1) + [8.0] * PATIENCE + [16.0]


def test_the_loss_scale_does_not_hide_divergence():
    scale = LossScale(2.0)
    nan = torch.tensor([float("nan")])
    assert scale.unscaled([nan]) is None
    (found,) = scale.unscaled([nan])
    assert torch.isnan(found).all()
