"""Where a torch model is trained: on the CPU, or on one of this host's GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from federation.errors import ConfigError
from node_comm import launchers

_CUDA = re.compile(r"cuda(?::(\d+))?")


def is_device_name(name: object) -> bool:
    """Whether `name` is one of auto, cpu, cuda and cuda:N."""
    return isinstance(name, str) and (name in ("auto", "cpu") or _CUDA.fullmatch(name) is not None)


def choose_device(name: str, environ: Mapping[str, str]) -> torch.device:
    """The device that `name` stands for in this process.

    "cuda" is the GPU of this process's rank among those on the same host (as `environ` tells it, see
    node_comm.launchers; the first GPU where no launcher tells), counted round where there are more ranks than GPUs.
    "auto" is the same where there is a GPU, else the CPU. "cuda:N" is that one in every process.

    Raises ConfigError for another name, and for a GPU that is not there.
    """
    if not is_device_name(name):
        raise ConfigError(f"learner_config: device={name!r} is not one of auto, cpu, cuda, cuda:N (N from 0)")
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise ConfigError(f"learner_config: device={name!r}, but torch finds no GPU here; use device: auto, which takes "
                          "one where there is one, or device: cpu")
    number = (launchers.local_rank(environ) or 0) % count
    if ":" in name:
        number = int(name.partition(":")[2])
    if number >= count:
        raise ConfigError(f"learner_config: device={name!r}, but this host has {count} GPUs, from cuda:0 to "
                          f"cuda:{count - 1}; use one of them, or device: cuda, which goes by local rank")
    return torch.device("cuda", number)
