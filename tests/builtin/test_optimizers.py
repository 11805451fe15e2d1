"""The torch optimisers against torch.optim, step for step."""

from __future__ import annotations

import pytest
import torch

from federation.builtin.steps.contract import StepSettings
from federation.builtin.steps.optimizers import Adam, Optimizer, Sgd

SHAPES = ((7, 13), (13,), (), (3, 5, 2), (1,))


def both(settings: StepSettings, dtype: torch.dtype = torch.float32):
    """Ours and torch's, on equal parameters of their own."""
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    theirs = [torch.nn.Parameter(tensor.clone()) for tensor in ours]
    optimizer: Optimizer
    if settings.optimizer == "adam":
        optimizer = Adam(ours)
        oracle = torch.optim.Adam(theirs, lr=settings.client_lr, weight_decay=settings.weight_decay)
    else:
        optimizer = Sgd(ours)
        oracle = torch.optim.SGD(theirs, lr=settings.client_lr, momentum=settings.momentum,
                                 weight_decay=settings.weight_decay)
    optimizer.begin(settings)
    return ours, optimizer, theirs, oracle


SETTINGS = [StepSettings("sgd", 0.1), StepSettings("sgd", 0.1, momentum=0.9),
            StepSettings("sgd", 0.05, weight_decay=0.3), StepSettings("sgd", 0.01, momentum=0.5, weight_decay=0.1),
            StepSettings("sgd", 0.0, momentum=0.9), StepSettings("adam", 0.01), StepSettings("adam", 0.1, weight_decay=0.2)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("absent", ["never", "sometimes"])
def test_the_same_bits_as_torch(settings, dtype, absent):
    """Parameters that get no gradient in a step are left alone, and their momentum and step count with them."""
    ours, optimizer, theirs, oracle = both(settings, dtype)
    generator = torch.Generator().manual_seed(1)
    for step in range(9):
        gradients = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        given = [None if absent == "sometimes" and (step + index) % 3 == 0 else gradient
                 for index, gradient in enumerate(gradients)]
        kept = [None if gradient is None else gradient.clone() for gradient in given]
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step(given)
        oracle.step()
        for mine, wanted in zip(ours, theirs, strict=True):
            assert torch.equal(mine, wanted.detach())
        for gradient, before in zip(given, kept, strict=True):  # autograd's own: two may be one tensor
            assert gradient is None or torch.equal(gradient, before)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_begin_forgets_all(settings):
    """A second client's steps are those of a new optimiser, also after settings with other state."""
    ours, optimizer, _, _ = both(settings)
    start = [tensor.clone() for tensor in ours]
    for _ in range(3):
        optimizer.step([torch.ones_like(tensor) for tensor in ours])
    first = [tensor.clone() for tensor in ours]
    for tensor, value in zip(ours, start, strict=True):
        tensor.copy_(value)
    optimizer.begin(settings)
    for _ in range(3):
        optimizer.step([torch.ones_like(tensor) for tensor in ours])
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(ours, first, strict=True))


def test_expanded_and_shared_gradients():
    """Autograd may hand out one tensor twice, and tensors whose elements share memory."""
    ours, optimizer, theirs, oracle = both(StepSettings("sgd", 0.1, momentum=0.9, weight_decay=0.1))
    for _ in range(3):
        given = [torch.tensor(2.0).expand(shape) for shape in SHAPES]
        given[3] = given[3] if SHAPES[3] != SHAPES[0] else given[0]
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step(given)
        oracle.step()
    assert all(torch.equal(mine, wanted.detach()) for mine, wanted in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("make", [Sgd, Adam])
def test_nothing_to_do(make):
    make([]).step([])
    parameter = torch.ones(3)
    optimizer = make([parameter])
    optimizer.begin(StepSettings(momentum=0.9) if make is Sgd else StepSettings("adam"))
    optimizer.step([None])
    assert torch.equal(parameter, torch.ones(3))
