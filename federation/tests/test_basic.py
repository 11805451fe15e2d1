"""A self-test of an installation, alone or under mpirun:

    python -m federation.tests.test_basic
    mpirun -n 4 python -m federation.tests.test_basic

It says what it found, and checks that a tiny run gives the same bits in serial mode, in two worker processes and,
under mpirun, in this MPI world. Exit status 0 when all of them agree, 1 when not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import federation
from federation import kernels
from federation.config import load_config_from_dict
from federation.infra.threads import apply_threads, available_cores
from federation.launch import report, run_in
from node_comm import launchers

LIBRARIES = ("numpy", "h5py", "torch", "scikit-learn", "mpi4py", "openmpi", "tensorboard")


def findings() -> Iterator[tuple[str, str]]:
    """What this installation consists of, as (name, what was found)."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "federation", f"{importlib.metadata.version('federation-hpc')} in {Path(federation.__file__).parent}"
    yield "kernels", f"{kernels.variant()} (of {', '.join(kernels.variants())})"
    for name in LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"
    if importlib.util.find_spec("h5py") is not None:
        import h5py

        yield "HDF5", h5py.version.hdf5_version
    yield "cores", f"{available_cores()} for this process; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    yield "launcher", f"{launchers.launched_size(os.environ) or 'none'}"


def mpi_findings() -> Iterator[tuple[str, str]]:
    """The MPI library, and whether a lost rank could be survived. Loads MPI, so it comes last."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        yield "MPI library", f"none ({error})"
        return
    yield "MPI library", MPI.Get_library_version().split("\0")[0].splitlines()[0]
    try:
        MPI.COMM_WORLD.Is_revoked()
        told = "on" if launchers.survives_lost_ranks(os.environ) else "off in this launch (mpirun --with-ft ulfm)"
        yield "ULFM", f"in the library, {told}"
    except NotImplementedError:
        yield "ULFM", "not in the library: a lost rank ends the job"


def threads_findings() -> Iterator[tuple[str, str]]:
    """Compute threads of each library that the runs have loaded."""
    in_use = apply_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield "threads", ", ".join(f"{name} {count}" for name, count in in_use.items()) or "no library to ask"


def tiny(folder: Path, mode: str) -> Any:
    """A run of a second: 5 clients, 3 rounds, on made-up data."""
    return load_config_from_dict({
        "mode": mode, "output_dir": str(folder / mode), "num_clients": 5, "num_workers": 2, "seed": 11, "tracker": "none",
        "components": {"model": "model.numpy.linear"},
        "data": {"dataset": "synthetic", "partitioner": "dirichlet", "partitioner_config": {"alpha": 0.5}},
        "trainer_config": {"max_rounds": 3, "cohort_size": 3, "min_clients": 1}})


def main() -> int:
    """Print what was found and what agrees; returns the exit status."""
    ranks = launchers.launched_size(os.environ) or 1
    first = (launchers.launched_rank(os.environ) or 0) == 0
    digests = {}
    with tempfile.TemporaryDirectory(prefix="federation-test-") as temporary:
        folder = Path(temporary)
        if first:
            for name, found in findings():
                print(f"{name:14s} {found}", flush=True)
            for mode in ("serial", "parallel"):
                digests[mode] = run_in(mode, tiny(folder, mode)).weights_sha256
        if ranks > 1:
            result = run_in("mpi", tiny(folder, "mpi"))
            if first:
                digests[f"mpi, {ranks} ranks"] = result.weights_sha256
    if not first:
        return 0
    for name, found in (*threads_findings(), *mpi_findings()):
        print(f"{name:14s} {found}", flush=True)
    for mode, digest in digests.items():
        print(f"{mode:14s} {digest}")
    same = len(set(digests.values())) == 1
    print("ok: the same bits everywhere" if same else "FAILED: the modes differ, so this installation is not to be trusted")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        status = main()
    except Exception as error:
        status = report(error)
    sys.exit(status)
