"""Torch modules in one flat buffer."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from federation.builtin.learners.default import DefaultLearner
from federation.builtin.models.cnn import CNNModel
from federation.builtin.models.mlp import MLPModel
from federation.builtin.models.torch_model import TorchModel
from federation.core.learner import Context
from federation.core.weights import Weights
from federation.errors import ConfigError, UpdateError
from tests.builtin.torch_parts import Rebinding, Tied, make_data


def assert_in_the_buffer(model: TorchModel) -> None:
    """Every tensor of the module's state_dict lies where the layout says, and every array has such a tensor."""
    weights = model.weights
    base = weights.buffer.__array_interface__["data"][0]
    state = model.module.state_dict()
    for name, offset, shape in zip(weights.layout.names, weights.layout.offsets, weights.layout.shapes, strict=True):
        assert tuple(state[name].shape) == shape
        if state[name].numel():
            assert state[name].data_ptr() == base + offset, name
            assert state[name].is_contiguous()


def with_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def test_the_buffer_is_the_module_before_and_after_training():
    model = TorchModel(with_norm())
    assert_in_the_buffer(model)
    learner = DefaultLearner(model, make_data(40), batch_size=8, momentum=0.9)
    start = model.get_weights()
    result = learner.fit()
    assert_in_the_buffer(model)
    assert result.weights.borrowed
    assert result.weights.buffer is model.weights.buffer
    assert not np.array_equal(start.buffer, result.weights.buffer)
    model.weights["0.weight"][2, 3] = 7.0
    assert model.module[0].weight[2, 3].item() == 7.0
    with torch.no_grad():
        model.module[0].bias.fill_(-2.0)
    assert (model.weights["0.bias"] == -2.0).all()
    learner.set_weights(start)
    assert_in_the_buffer(model)


def test_names_are_those_of_the_state_dict_trainable_first_then_frozen_then_buffers():
    module = with_norm()
    module[0].bias.requires_grad_(False)
    model = TorchModel(module)
    assert set(model.weights.names) == set(module.state_dict())
    assert model.weights.names == ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias", "0.bias", "1.running_mean",
                                   "1.running_var", "1.num_batches_tracked")
    assert model.weights["1.num_batches_tracked"].dtype == np.int64
    assert model.weights["1.num_batches_tracked"].shape == ()


def test_get_is_a_copy_and_set_copies():
    model = MLPModel(input_size=6, output_size=4)
    taken = model.get_weights()
    assert not taken.borrowed
    taken[0][:] = 1.0
    assert not (model.weights[0] == 1.0).any()
    model.set_weights(taken)
    taken[0][:] = 2.0
    assert (model.weights[0] == 1.0).all()
    model.set_weights([np.full(array.shape, 3.0) for array in taken])  # a plain list, and another float
    assert all((array == 3.0).all() for array in model.weights)


@pytest.mark.parametrize("change", [
    lambda arrays: arrays[:-1],
    lambda arrays: [arrays[0].T, *arrays[1:]],
    lambda arrays: [np.zeros(()), *arrays[1:]],
    lambda arrays: {"hidden1.weigth": arrays[0]},
    lambda arrays: [arrays[0].astype(complex), *arrays[1:]]], ids=["fewer", "transposed", "scalar", "names", "complex"])
def test_what_does_not_fit_is_refused_and_nothing_changes(change):
    model = MLPModel(input_size=6, output_size=4)
    before = model.get_weights()
    with pytest.raises(UpdateError, match="MLPModel"):
        model.set_weights(change(list(model.get_weights())))
    assert np.array_equal(model.weights.buffer, before.buffer)


@pytest.mark.parametrize(("dtype", "wanted"), [
    (torch.float16, np.float16), (torch.bfloat16, ml_dtypes.bfloat16), (torch.float64, np.float64)])
def test_other_float_types_are_stored_and_trained(dtype, wanted):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).to(dtype)
    values = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
    model = TorchModel(module)
    assert_in_the_buffer(model)
    for name, array in model.weights.items():
        assert array.dtype == wanted
        assert np.array_equal(array.astype(np.float64), values[name])
    result = DefaultLearner(model, make_data(20), batch_size=5, local_epochs=3).fit()
    assert_in_the_buffer(model)
    assert result.metrics["train_loss"] < 3
    assert not np.array_equal(np.asarray(result.weights["0.weight"], np.float64), values["0.weight"])


def test_parameters_of_one_dtype_lie_together():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2))
    model = TorchModel(module)
    assert model.weights.names == ("0.weight", "0.bias", "2.weight", "2.bias", "1.weight", "1.bias")


def test_tied_parameters_are_one_array():
    model = TorchModel(Tied())
    assert model.weights.names == ("encode.weight", "encode.bias", "decode.bias")
    model.weights["encode.weight"][:] = 0.25
    assert (model.module.decode.weight == 0.25).all()
    DefaultLearner(model, make_data(12), batch_size=4).fit()
    assert model.module.decode.weight is model.module.encode.weight
    assert_in_the_buffer(model)


def test_different_tensors_in_the_same_memory_are_refused():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = nn.Parameter(module[0].weight.detach().t())
    with pytest.raises(ConfigError, match=r"0\.weight and 1\.weight|1\.weight and 0\.weight"):
        TorchModel(module)


def test_tensors_side_by_side_in_one_storage_are_no_overlap():
    module = nn.Linear(3, 3)
    both = torch.arange(12.0)
    module.weight.data, module.bias.data = both[:9].view(3, 3), both[9:]
    assert TorchModel(module).weights["bias"].tolist() == [9.0, 10.0, 11.0]
    again = TorchModel(module)  # whose tensors lie in the buffer of the first
    assert again.weights["weight"][2].tolist() == [6.0, 7.0, 8.0]
    assert_in_the_buffer(again)


def test_a_lazy_module_is_refused():
    with pytest.raises(ConfigError, match=r"weight.*no shape yet"):
        TorchModel(nn.LazyLinear(3))


def test_buffers_outside_the_state_dict_are_left_out():
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.ones(2), persistent=False)
    module.register_buffer("scale", torch.tensor(3.0))
    module.register_buffer("nothing", None)
    assert TorchModel(module).weights.names == ("weight", "bias", "scale")


class Centred(nn.Module):
    """Keeps a running mean of its samples out of its state_dict, in place or in a new tensor each time."""

    def __init__(self, rebinds: bool) -> None:
        super().__init__()
        self.rebinds = rebinds
        self.linear = nn.Linear(6, 4)
        self.register_buffer("mean", torch.full((6,), 0.5), persistent=False)

    def forward(self, samples):
        if self.training:
            mean = 0.9 * self.mean + 0.1 * samples.mean(0)
            self.mean = mean if self.rebinds else self.mean.copy_(mean)
        return self.linear(samples - self.mean)


@pytest.mark.parametrize("rebinds", [False, True])
def test_no_client_trains_with_what_another_left_in_a_buffer_outside_the_state_dict(rebinds):
    learner = DefaultLearner(TorchModel(Centred(rebinds)), batch_size=8)
    start, digests = learner.get_weights(), []
    for learns in (learner, learner, copy.deepcopy(learner.model)):
        if isinstance(learns, TorchModel):
            learns = DefaultLearner(learns, batch_size=8)
        learns.set_weights(start)
        learns.bind(make_data(40), Context("a", 1, 0))
        digests.append(learns.fit().weights.sha256())
    assert digests == digests[:1] * 3


def test_a_buffer_that_the_module_rebinds_stays_in_the_weights():
    """S-AGG-02: `self.mean = ...` makes a new tensor; its value must not be lost, nor outlive set_weights."""
    torch.manual_seed(0)
    model = TorchModel(Rebinding())
    start = model.get_weights()
    data = make_data(8, shift=10.0)
    learner = DefaultLearner(model, data, batch_size=8)
    result = learner.fit()
    np.testing.assert_allclose(result.weights["mean"], 0.5 * data.x.mean(axis=0), rtol=1e-5)
    assert_in_the_buffer(model)
    trained = result.weights.copy()
    learner.set_weights(start)
    assert (model.module.mean == 0).all()
    assert np.array_equal(learner.fit().weights.buffer, trained.buffer)


def test_a_replaced_tensor_of_another_shape_is_an_error():
    model = TorchModel(Rebinding())
    model.module.mean = torch.zeros(3)
    with pytest.raises(ValueError, match=r"replaced mean, of shape \(6,\), by one of shape \(3,\)"):
        model.get_weights()


def test_a_copy_is_a_model_of_its_own():
    model = MLPModel(input_size=6, output_size=4)
    clone = copy.deepcopy(model)
    assert isinstance(clone, MLPModel)
    assert np.array_equal(clone.weights.buffer, model.weights.buffer)
    assert_in_the_buffer(clone)
    clone.weights[0][:] = 5.0
    assert (clone.module.hidden1.weight == 5.0).all()
    assert not (model.weights[0] == 5.0).any()
    assert_in_the_buffer(model)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(model)


def test_modules_without_weights_and_with_empty_ones():
    assert len(TorchModel(nn.ReLU()).weights) == 0
    module = nn.Linear(2, 2)
    module.nothing = nn.Parameter(torch.zeros(0, 3))
    model = TorchModel(module)
    assert model.weights["nothing"].shape == (0, 3)
    model.set_weights(model.get_weights())
    assert_in_the_buffer(model)


@pytest.mark.parametrize("make", [lambda seed: MLPModel(seed=seed), lambda seed: CNNModel((1, 8, 8), seed=seed)])
def test_initial_weights_follow_from_the_seed_alone(make):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make(3).get_weights()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    torch.rand(7)
    assert make(3).get_weights().sha256() == first.sha256()
    assert make(4).get_weights().sha256() != first.sha256()
    assert make(2**63 - 1).get_weights().sha256() != first.sha256()


def trainable_values(model: TorchModel) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())


def test_sizes_of_the_documented_models():
    """McMahan et al. 2017: 1,663,370 for the CNN. pfl-research's CIFAR-10 network, wrapped: 1,626,442."""
    assert trainable_values(MLPModel()) == 159_010
    assert MLPModel().weights.layout.num_values == 159_010
    assert trainable_values(MLPModel(hidden_sizes=(200, 200))) == 199_210  # the 2NN of the same paper
    assert trainable_values(CNNModel()) == 1_663_370
    cifar = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10))
    assert TorchModel(cifar).weights.layout.num_values == 1_626_442


@pytest.mark.parametrize(("shape", "image"), [
    ((64,), (1, 8, 8)), ((8, 8), (1, 8, 8)), ((3, 32, 32), (3, 32, 32)), ((1, 28, 28), (1, 28, 28)), ((1, 9, 5), (1, 9, 5))])
def test_the_cnn_takes_its_sizes_from_the_data(shape, image):
    settings = CNNModel.settings_from_data(shape, 7)
    assert settings["input_shape"] == image
    model = CNNModel(**settings)
    x = torch.rand(2, *shape)
    assert model.module(x).shape == (2, 7)
    assert torch.equal(model.module(x), model.module(x.reshape(2, -1)))  # flat or not


def test_the_cnn_computes_what_its_paper_says():
    """Convolution, ReLU, pooling, twice, then two dense layers: the paper's order, in torch's functions."""
    model = CNNModel((3, 12, 8), 5, seed=1)
    weights = {name: torch.tensor(array) for name, array in model.get_weights().items()}
    x = torch.rand(4, 3, 12, 8)
    hidden = x
    for layer in ("conv1", "conv2"):
        hidden = nn.functional.conv2d(hidden, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=2)
        hidden = nn.functional.max_pool2d(torch.relu(hidden), 2)
    hidden = torch.relu(hidden.flatten(1) @ weights["hidden.weight"].T + weights["hidden.bias"])
    expected = hidden @ weights["output.weight"].T + weights["output.bias"]
    torch.testing.assert_close(model.module(x), expected)


@pytest.mark.parametrize("build", [
    lambda: CNNModel((28, 28, 1)), lambda: CNNModel((1, 3, 3)), lambda: CNNModel((64,)), lambda: CNNModel(output_size=1),
    lambda: CNNModel(channels=(4,)), lambda: CNNModel(channels=(4, 4, 4)), lambda: CNNModel(dropout=1.0),
    lambda: MLPModel(input_size=0), lambda: MLPModel(hidden_sizes=(5, 0)),
    lambda: MLPModel(dropout=-0.1), lambda: CNNModel.settings_from_data((20,), 10),
    lambda: CNNModel.settings_from_data((8, 8), None)])
def test_impossible_sizes_are_refused(build):
    with pytest.raises(ConfigError, match=r"model_config|components\.model"):
        build()


def test_the_mlp_takes_its_sizes_from_the_data():
    assert MLPModel.settings_from_data((3, 4, 5), 7) == {"input_size": 60, "output_size": 7}
    assert MLPModel.settings_from_data((13,), None) == {"input_size": 13, "output_size": 1}
    model = MLPModel(**MLPModel.settings_from_data((3, 4, 5), 7), hidden_sizes=())
    assert model.module(torch.rand(2, 3, 4, 5)).shape == (2, 7)
    assert model.weights.names == ("output.weight", "output.bias")


def test_weights_travel_by_name():
    """A checkpoint of the module's own order fits, whatever the order of this layout."""
    model = TorchModel(with_norm())
    state = {name: tensor.numpy() + (0 if tensor.dtype == torch.int64 else 1)
             for name, tensor in model.module.state_dict().items()}
    model.set_weights(Weights.of(dict(reversed(state.items()))))
    for name, array in model.weights.items():
        assert np.array_equal(array, state[name])
