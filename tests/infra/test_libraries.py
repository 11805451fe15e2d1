"""What C libraries are told: rules for products, and memory that stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from federation.infra.libraries import prepare

USERS_OWN = ("MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "MKL_CBWR")

#: Prints the pages that the system had to bring for twenty rounds of five arrays, as a step of training uses them: all are freed
#: before the next round.
STEPS = """
import os, resource, sys, threading
import numpy as np
from federation.infra.libraries import keep_memory, prepare
exec(sys.argv[1])

def step():
    arrays = [np.ones(megabytes << 18, np.float32) for megabytes in (4, 8, 8, 8, 4)]

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def train():
    faults(3)
    print(faults(20))

training = threading.Thread(target=train)
training.start()
training.join()
"""


def pages(said: str, **environ: str) -> int:
    """What STEPS prints after the program has done `said`."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(USERS_OWN)}
    done = subprocess.run([sys.executable, "-c", STEPS, said], env={**surroundings, **environ}, text=True, capture_output=True,
                          check=True, timeout=120)
    return int(done.stdout)


def test_rules_are_set_for_this_process_and_its_children() -> None:
    environ: dict[str, str] = {}
    prepare(environ)
    assert environ == {"MKL_CBWR": "AUTO,STRICT", "THP_MEM_ALLOC_ENABLE": "1"}


def test_rules_that_the_user_has_set_stay() -> None:
    environ = {"MKL_CBWR": "COMPATIBLE", "THP_MEM_ALLOC_ENABLE": "0"}
    prepare(environ)
    assert environ == {"MKL_CBWR": "COMPATIBLE", "THP_MEM_ALLOC_ENABLE": "0"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is told to glibc alone")
class TestMemory:
    def test_a_thread_s_steps_use_the_same_pages_again(self) -> None:
        """32 MiB are 8,192 pages, many of which the system brings anew at each step unless it is told otherwise."""
        assert pages("") > 20 * 100
        assert pages("prepare()") < 20 * 10

    @pytest.mark.parametrize(("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072"),
                                                 ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")])
    def test_a_user_s_own_way_stays(self, name: str, value: str) -> None:
        assert pages("prepare()", **{name: value}) > 20 * 100
        assert pages("keep_memory()", **{name: value}) < 20 * 10

    def test_large_arrays_are_given_back(self) -> None:
        """From 32 MiB on, at once: a model that is dropped is no longer part of the process."""
        program = """
import numpy as np
from federation.infra.libraries import prepare
prepare()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
model = np.ones(10 << 20, np.float32)
assert resident() > before + (35 << 20)
del model
assert resident() < before + (5 << 20)
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
