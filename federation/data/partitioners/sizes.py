"""Quantity skew: samples dealt at random, whatever their labels, in sizes that differ from client to client."""

from __future__ import annotations

import numpy as np

from federation.core.random import stream
from federation.data.draws import exp, log, normals, shuffled, uniforms
from federation.data.partition import Partition
from federation.data.partitioners.apportion import apportion, at_least, least_size, number, offsets_of


def power_law(labels: np.ndarray, num_clients: int, rng_seed: int, *, exponent: float = 1.5, min_size: int = 1,
              allow_empty: bool = False) -> Partition:
    """Sizes in proportion to draws of a Pareto distribution, P(X > x) = x^-exponent for x of at least 1.

    The smaller the exponent, the more samples a few clients have. `min_size` and `allow_empty` are as for `dirichlet`.
    Raises DataError for an exponent outside 0.1 .. 100, and where there are too few samples.
    """
    exponent = number("exponent", exponent, 0.1, 100)
    least = least_size(len(labels), num_clients, min_size, allow_empty)
    return _dealt(len(labels), -log(uniforms(_sizes_stream(rng_seed), num_clients)) / exponent, rng_seed, least)


def log_normal(labels: np.ndarray, num_clients: int, rng_seed: int, *, sigma: float = 1.0, min_size: int = 1,
               allow_empty: bool = False) -> Partition:
    """Sizes in proportion to exp(sigma z), z standard normal (0: equal sizes). Settings else as for `power_law`.

    Raises DataError for sigma outside 0 .. 10, and where there are too few samples.
    """
    sigma = number("sigma", sigma, 0, 10)
    least = least_size(len(labels), num_clients, min_size, allow_empty)
    return _dealt(len(labels), sigma * normals(_sizes_stream(rng_seed), num_clients), rng_seed, least)


def linear(labels: np.ndarray, num_clients: int, rng_seed: int, *, min_size: int = 1,
           allow_empty: bool = False) -> Partition:
    """Client k of 1 .. num_clients has samples in proportion to k. `min_size` and `allow_empty` as for `dirichlet`."""
    least = least_size(len(labels), num_clients, min_size, allow_empty)
    return _shared(len(labels), np.arange(1.0, num_clients + 1), rng_seed, least)


def square(labels: np.ndarray, num_clients: int, rng_seed: int, *, min_size: int = 1,
           allow_empty: bool = False) -> Partition:
    """Client k of 1 .. num_clients has samples in proportion to k^2. `min_size` and `allow_empty` as for `dirichlet`."""
    least = least_size(len(labels), num_clients, min_size, allow_empty)
    return _shared(len(labels), np.arange(1.0, num_clients + 1) ** 2, rng_seed, least)


def exponential(labels: np.ndarray, num_clients: int, rng_seed: int, *, rate: float = 1.0, min_size: int = 1,
                allow_empty: bool = False) -> Partition:
    """Client k of 1 .. num_clients has samples in proportion to exp(rate k): from about 700 / rate clients on, all but
    the last ones have `min_size`. `min_size` and `allow_empty` as for `dirichlet`.

    Raises DataError for a rate outside 0 .. 100.
    """
    rate = number("rate", rate, 0, 100)
    least = least_size(len(labels), num_clients, min_size, allow_empty)
    return _dealt(len(labels), rate * np.arange(1.0, num_clients + 1), rng_seed, least)


def _sizes_stream(rng_seed: int) -> np.random.Generator:
    return stream(rng_seed, "partition_sizes")


def _dealt(num_samples: int, log_shares: np.ndarray, rng_seed: int, least: int) -> Partition:
    return _shared(num_samples, exp(log_shares - log_shares.max()), rng_seed, least)


def _shared(num_samples: int, shares: np.ndarray, rng_seed: int, least: int) -> Partition:
    sizes = at_least(apportion(shares, np.array(num_samples)), least)
    return Partition(shuffled(stream(rng_seed, "partition"), num_samples), offsets_of(sizes))
