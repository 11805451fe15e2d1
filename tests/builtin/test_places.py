"""Operations that give a client the same bits at every place of a group, and some that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import grad_and_value, vmap

from federation.builtin.steps import places
from federation.builtin.steps.torch_losses import weighted_loss
from tests.builtin.torch_parts import NETWORKS, images, model_of

HAS_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

Group = Callable[[list[int]], list[list[torch.Tensor]]]


def group_of(module: nn.Module, width: int, clients: int) -> Group:
    """For clients of these numbers: the gradients of each, and its loss, out of one call for all of them."""
    names = [name for name, _ in module.named_parameters()]
    draws = torch.Generator().manual_seed(1)
    values = [[parameter.detach() * (1 + index % 3) + 0.1 * torch.randn(parameter.shape, generator=draws)
               for index in range(clients)] for parameter in module.parameters()]
    x = [torch.randn(5, width, generator=draws) * (0.3 + index % 4) for index in range(clients)]
    y = [torch.randint(0, 5, (5,), generator=draws) for _ in range(clients)]
    weights = [torch.tensor([1.0] * (5 - index % 5) + [0.0] * (index % 5)) for index in range(clients)]
    call = vmap(grad_and_value(weighted_loss(module, names, "cross_entropy")))

    def compute(chosen: list[int]) -> list[list[torch.Tensor]]:
        stacked = [torch.stack([each[index] for index in chosen]) for each in values]
        gradients, losses = call(stacked, *(torch.stack([each[index] for index in chosen]) for each in (x, y, weights)))
        return [[gradient[place] for gradient in (*gradients, losses)] for place in range(len(chosen))]

    return compute


def differing(module: nn.Module, width: int, size: int, clients: int = 20, groups: int = 40) -> int:
    """How many results, of groups of clients drawn by lot, are not those of the first time."""
    compute, draws = group_of(module, width, clients), torch.Generator().manual_seed(2)
    first: dict[int, list[torch.Tensor]] = {}
    count = 0
    for _ in range(groups):
        chosen = torch.randint(0, clients, (size,), generator=draws).tolist()
        for index, found in zip(chosen, compute(chosen), strict=True):
            wanted = first.setdefault(index, found)
            count += any(not torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    return count


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_have_the_same_bits_at_every_place(name, size):
    assert differing(model_of(name).module, NETWORKS[name][1], size) == 0


@pytest.mark.skipif(not HAS_VECTORS, reason="has no vector registers to fill")
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.SiLU, nn.GELU])
def test_some_activations_do_differ(activation):
    """Why they are not in the list, and that the test above can fail."""
    torch.manual_seed(0)
    module = images(nn.Conv2d(1, 3, 3), activation())
    module(torch.zeros(2, 49))
    assert differing(module, 49, 3) > 0


#: Of one tensor, or of two.
BY_VALUE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": lambda x, y: torch.add(x, y, alpha=0.3), "div": lambda x, y: x / y, "mul": lambda x, y: x * y,
    "sub": lambda x, y: x - 0.7 * y, "reciprocal": lambda x, y: x.reciprocal(), "clamp_min": lambda x, y: x.clamp_min(0.1),
    "relu": lambda x, y: x.relu(), "threshold_backward": lambda x, y: torch.ops.aten.threshold_backward(x, y, 0),
    "leaky_relu": lambda x, y: torch.nn.functional.leaky_relu(x, 0.01), "neg": lambda x, y: -x,
    "leaky_relu_backward": lambda x, y: torch.ops.aten.leaky_relu_backward(x, y, 0.01, False), "ne": lambda x, y: x != y,
    "tanh": lambda x, y: x.tanh(), "tanh_backward": lambda x, y: torch.ops.aten.tanh_backward(x, y.tanh()),
}


def values_that_depend_on_where_they_stand(call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> int:
    """Of 20000, in pieces of seven, which fill no register, and with gaps between them, against all in one."""
    draws = torch.Generator().manual_seed(3)
    x, y = (3 * torch.randn(20_000, generator=draws) for _ in range(2))
    together = call(x, y)
    pieces = torch.cat([call(*pair) for pair in zip(x.split(7), y.split(7), strict=True)])
    apart = call(*(torch.stack([each, each], 1)[:, 0] for each in (x, y)))
    return int((pieces != together).sum() + (apart != together).sum())


@pytest.mark.parametrize("name", BY_VALUE)
def test_values_have_the_same_bits_wherever_they_stand(name):
    assert name in places.SAME_AT_EVERY_PLACE
    assert values_that_depend_on_where_they_stand(BY_VALUE[name]) == 0


@pytest.mark.skipif(not HAS_VECTORS, reason="has no vector registers to fill")
@pytest.mark.parametrize("call", [torch.sigmoid, nn.functional.silu, nn.functional.gelu])
def test_values_of_some_activations_depend_on_where_they_stand(call):
    assert values_that_depend_on_where_they_stand(lambda x, y: call(x)) > 0


def test_every_operation_of_the_list_is_tried():
    """In the networks above, forward and backward, with both losses: there is no promise that no test looks at."""
    met: set[str] = set()
    for name in NETWORKS:
        module, width = model_of(name).module, NETWORKS[name][1]
        for kind, targets in (("cross_entropy", torch.zeros(2, 5, dtype=torch.int64)), ("mse", torch.zeros(2, 5, 5))):
            values = [torch.stack([parameter.detach()] * 2) for parameter in module.parameters()]
            call = vmap(grad_and_value(weighted_loss(module, [key for key, _ in module.named_parameters()], kind)))
            met |= places.operations(lambda call=call, values=values, targets=targets, width=width: call(
                values, torch.ones(2, 5, width), targets, torch.ones(2, 5)))
    assert met >= places.SAME_AT_EVERY_PLACE, sorted(places.SAME_AT_EVERY_PLACE - met)
