"""Which samples belong to which client.

A partitioner is a function `f(labels, num_clients, rng_seed, *, settings) -> Partition` in the table PARTITIONERS;
one that has a parameter `columns` gets those of the training samples. It gives every sample to exactly one client, but
where it says otherwise; it is a function of its arguments alone (the same bits on every platform, see `draws`), and
never loops until luck strikes: what cannot be had is refused before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from federation.data.partition import Partition
from federation.data.partitioners.dirichlet import dirichlet
from federation.data.partitioners.given import file
from federation.data.partitioners.iid import iid
from federation.data.partitioners.label import label, shards
from federation.data.partitioners.mixtures import inner_dirichlet, pachinko
from federation.data.partitioners.natural import natural
from federation.data.partitioners.sizes import exponential, linear, log_normal, power_law, square

__all__ = ["PARTITIONERS", "dirichlet", "exponential", "file", "iid", "inner_dirichlet", "label", "linear", "log_normal",
           "natural", "pachinko", "power_law", "shards", "square"]

#: Name in a configuration (`data.partitioner`) -> function.
PARTITIONERS: MappingProxyType[str, Callable[..., Partition]] = MappingProxyType({
    partitioner.__name__: partitioner for partitioner in (
        iid, dirichlet, label, shards, power_law, log_normal, linear, square, exponential, inner_dirichlet, natural,
        pachinko, file)})
