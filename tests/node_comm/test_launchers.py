"""What is concluded from launchers' variables, as the launchers set them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from node_comm import launchers
from node_comm.errors import Unavailable

ALLOCATION = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
              "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_NNODES": "2", "SLURM_NODEID": "0"}
STEP = ALLOCATION | {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
                     "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": "0", "PMIX_RANK": "2"}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}
LAUNCHED = {
    "Open MPI": OPEN_MPI, "MPICH": MPICH, "PMI alone": {"PMI_SIZE": "4"}, "local PMI": {"MPI_LOCALNRANKS": "4"},
    "Open MPI alone": {"OMPI_COMM_WORLD_SIZE": "4"}, "MVAPICH2": {"MV2_COMM_WORLD_SIZE": "4"},
    "jsrun": {"JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_RANK": "1"}, "flux": {"FLUX_JOB_SIZE": "4"},
    "srun": STEP, "srun alone": {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"},
    "srun, old names": {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, "PMIx": {"PMIX_RANK": "3"},
    "Open MPI in a job": ALLOCATION | OPEN_MPI, "MPICH in a step": STEP | MPICH,
    "mpirun -n 1 in each of four": {"OMPI_COMM_WORLD_SIZE": "1"} | MPICH,
}
ALONE = {
    "nothing": {}, "an allocation": ALLOCATION,
    "a batch script": ALLOCATION | {"SLURM_STEP_ID": "4294967291"},
    "a batch script, by name": ALLOCATION | {"SLURM_STEP_ID": "batch"},
    "an interactive step": ALLOCATION | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "4"},
    "sizes that are no numbers": {"PMI_SIZE": "", "OMPI_COMM_WORLD_SIZE": "many"},
}
ONE = {
    "srun -n 1": STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    "mpirun -n 1": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"},
    "mpirun -n 1, daemons in a step": STEP | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    "mpiexec -n 1": {"PMI_SIZE": "1", "PMI_RANK": "0"},
}


@pytest.mark.parametrize("environ", LAUNCHED.values(), ids=LAUNCHED)
def test_worlds_of_one_under_a_launcher_of_four_are_refused(environ: dict[str, str]) -> None:
    """S-HPC-01: both sizes, the library and a hint are named; a world of the right size passes."""
    assert launchers.launched_size(environ) == 4
    with pytest.raises(Unavailable) as caught:
        launchers.check_world(1, environ, "Some MPI 9.9\0\n")
    for words in ("started 4 or more", "size 1", "Some MPI 9.9", "srun --mpi=pmix", "mpirun"):
        assert words in str(caught.value)
    launchers.check_world(4, environ, "")


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE)
def test_an_allocation_is_no_launcher(environ: dict[str, str]) -> None:
    """S-HPC-03: variables of a job prove nothing about this process."""
    assert launchers.launched_size(environ) is None
    assert launchers.launched_rank(environ) is None
    assert launchers.local_rank(environ) is None
    assert launchers.local_size(environ) is None
    launchers.check_world(1, environ, "")


@pytest.mark.parametrize("environ", ONE.values(), ids=ONE)
def test_a_launcher_of_one_is_fine(environ: dict[str, str]) -> None:
    assert launchers.launched_size(environ) == 1
    launchers.check_world(1, environ, "")


@pytest.mark.parametrize(("environ", "rank", "local_rank", "local_size"), [
    (OPEN_MPI, 2, 0, 2), (MPICH, 2, 0, 2), (STEP, 3, 1, 2), (STEP | OPEN_MPI, 2, 0, 2),
    (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, 3, 1, 1), (STEP | {"SLURM_STEP_TASKS_PER_NODE": "some"}, 3, 1, None),
])
def test_ranks(environ: dict[str, str], rank: int, local_rank: int, local_size: int | None) -> None:
    assert launchers.launched_rank(environ) == rank
    assert launchers.local_rank(environ) == local_rank
    assert launchers.local_size(environ) == local_size


def test_fault_tolerance() -> None:
    assert launchers.survives_lost_ranks({"OMPI_MCA_mpi_ft_enable": "1"})
    assert not launchers.survives_lost_ranks({"OMPI_MCA_mpi_ft_enable": "0"})
    assert not launchers.survives_lost_ranks({})


def test_pretended_nodes() -> None:
    """Positive numbers that add up to the world; anything else is refused with what it should be."""
    assert launchers.pretended_nodes({}, 5) is None
    assert launchers.pretended_nodes({launchers.PRETENDED_NODES: "2,3"}, 5) == [2, 3]
    assert launchers.pretended_nodes({launchers.PRETENDED_NODES: " 1, 1 ,3"}, 5) == [1, 1, 3]
    for wrong in ("", "2", "2,2", "2,3,0", "2,-1,4", "2;3", "two,3"):
        with pytest.raises(Unavailable, match=rf"NODE_COMM_PRETENDED_NODES='{wrong}' must be .* this world's 5, such as 3,2"):
            launchers.pretended_nodes({launchers.PRETENDED_NODES: wrong}, 5)
    with pytest.raises(Unavailable, match="this world's 1, such as 1; or unset it"):
        launchers.pretended_nodes({launchers.PRETENDED_NODES: "2"}, 1)


def test_nothing_of_mpi_is_loaded() -> None:
    """S-HPC-03, S-PKG-01: importing the MPI transport, or asking about launchers, loads no MPI."""
    code = ("import sys, node_comm, node_comm.mpi, node_comm.launchers as launchers\n"
            "launchers.check_world(1, {'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '4'}, '')\n"
            "print([name for name in sys.modules if name.startswith('mpi4py')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
