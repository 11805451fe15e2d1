"""Which of torch's operations give a client the same numbers at every place of a group.

In a group, one operation computes for all clients together: a product of matrices is a batch of products, and an activation
runs through the values of all clients as if they were one array. On a CPU, some operations have two formulas: one for whole
vector registers, and another for the last values of an array, which fill none, or for values with gaps between them.
Sigmoid, SiLU, GELU, ELU and softplus are such. Their last bits would tell at which place a client was trained.
tests/builtin/test_places.py tries every operation named here, in groups of several sizes, and shows that three of those do
fail. GPUs have one formula, and the same bits are no promise there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

#: Names in torch.ops.aten, those that work in place without their last underscore.
SAME_AT_EVERY_PLACE = frozenset({
    # values are moved, or made
    "_to_copy", "_unsafe_view", "arange", "cat", "clone", "constant_pad_nd", "expand", "gather", "new_full", "ones",
    "ones_like", "permute", "promote_types", "scalar_tensor", "scatter", "select", "select_backward", "slice",
    "slice_backward", "squeeze", "transpose", "unsqueeze", "view", "where", "zeros_like",
    # each value by itself, rounded once
    "add", "clamp_min", "div", "leaky_relu", "leaky_relu_backward", "mul", "ne", "neg", "reciprocal", "relu", "sub",
    "threshold_backward",
    # each value by itself, by one formula wherever it stands
    "tanh", "tanh_backward",
    # each client's values by themselves
    "_log_softmax", "_log_softmax_backward_data", "avg_pool2d", "avg_pool2d_backward", "bmm", "convolution",
    "convolution_backward", "embedding", "embedding_dense_backward", "max_pool2d_with_indices",
    "max_pool2d_with_indices_backward", "mean", "native_group_norm", "native_layer_norm", "native_layer_norm_backward", "sum",
})


def operations(call: Callable[[], object]) -> set[str]:
    """The names of the operations that `call` runs, as they are in SAME_AT_EVERY_PLACE."""
    found: set[str] = set()
    with _Names(found):
        call()
    return found


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        namespace, _, name = str(func._schema.name).partition("::")
        self._found.add(name.removesuffix("_") if namespace == "aten" else f"{namespace}.{name}")
        return func(*args, **(kwargs or {}))
