"""What the environment says about the launcher that started this process: sizes and ranks, before MPI is loaded.

All functions are pure: they read the mapping that they are given, usually ``os.environ``. Only what a launcher sets
for each process that it starts counts. A Slurm *job* (SLURM_JOB_ID, SLURM_NTASKS) proves nothing: a batch script and
everything it starts inherits those. A Slurm *step* (srun) has a small step number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from node_comm.errors import Unavailable


class _Launcher(NamedTuple):
    """The variables by which a launcher tells a process its place; `sizes` may be lower bounds."""

    name: str
    sizes: Sequence[str]
    ranks: Sequence[str]
    local_sizes: Sequence[str]
    local_ranks: Sequence[str]


#: Tells a child of `processes.World` its place among the children.
WORKER = "NODE_COMM_WORKER"
#: Has the MPI ranks of one machine behave as if they were on several, for tests and measurements.
PRETENDED_NODES = "NODE_COMM_PRETENDED_NODES"

_MPI_LAUNCHERS = (
    _Launcher("Open MPI's mpirun", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_RANK",),
              ("OMPI_COMM_WORLD_LOCAL_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    _Launcher("MVAPICH2's mpirun", ("MV2_COMM_WORLD_SIZE",), ("MV2_COMM_WORLD_RANK",),
              ("MV2_COMM_WORLD_LOCAL_SIZE",), ("MV2_COMM_WORLD_LOCAL_RANK",)),
    _Launcher("an MPICH-like mpiexec (PMI)", ("PMI_SIZE", "MPI_LOCALNRANKS"), ("PMI_RANK",),
              ("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE"), ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID")),
    _Launcher("jsrun", ("JSM_NAMESPACE_SIZE",), ("JSM_NAMESPACE_RANK",),
              ("JSM_NAMESPACE_LOCAL_SIZE",), ("JSM_NAMESPACE_LOCAL_RANK",)),
    _Launcher("flux run", ("FLUX_JOB_SIZE",), ("FLUX_TASK_RANK",), (), ("FLUX_TASK_LOCAL_ID",)),
    _Launcher("a launcher that speaks PMIx", (), ("PMIX_RANK",), (), ()),
    _Launcher("a world of processes", (), (), (), (WORKER,)),
)
_SRUN = _Launcher("srun", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), ("SLURM_PROCID",),
                  (), ("SLURM_LOCALID",))
#: Slurm's step numbers for batch scripts, interactive shells and the like begin here; steps of srun count from 0.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


def launched_size(environ: Mapping[str, str]) -> int | None:
    """How many processes the launcher started (at least), or None where no launcher started this one."""
    found = _launched(environ)
    return None if found is None else found[1]


def launched_rank(environ: Mapping[str, str]) -> int | None:
    """This process's rank among those that the launcher started, or None where no launcher tells."""
    return _first_told(environ, "ranks")


def local_rank(environ: Mapping[str, str]) -> int | None:
    """This process's rank among those on the same host, or None where no launcher tells."""
    return _first_told(environ, "local_ranks")


def local_size(environ: Mapping[str, str]) -> int | None:
    """How many processes the launcher started on this host, or None where no launcher tells."""
    told = _first_told(environ, "local_sizes")
    if told is None and _in_srun_step(environ):
        return _tasks_on_this_host(environ)
    return told


def survives_lost_ranks(environ: Mapping[str, str]) -> bool:
    """Whether Open MPI's launcher was told to let a job outlive a rank (``mpirun --with-ft ulfm``)."""
    return environ.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes", "t", "y")


def pretended_nodes(environ: Mapping[str, str], size: int) -> list[int] | None:
    """The ranks of each machine that a world of `size` is to be taken apart into, e.g. ``2,3``; None where it is not.

    Raises Unavailable where NODE_COMM_PRETENDED_NODES is anything but positive numbers that add up to `size`.
    """
    text = environ.get(PRETENDED_NODES)
    if text is None:
        return None
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if 0 in sizes or sum(sizes) != size:
        raise Unavailable(f"{PRETENDED_NODES}={text!r} must be the ranks of each machine, positive numbers that add up to "
                          f"this world's {size}, such as {size - size // 2}{f',{size // 2}' if size > 1 else ''}; or unset it")
    return sizes


def check_world(size: int, environ: Mapping[str, str], library: str) -> None:
    """Raise Unavailable where MPI reports a world of one, but a launcher started more processes than that.

    Each of them would believe that it is rank 0. `library` is the MPI library's version text.
    """
    found = _launched(environ)
    if size != 1 or found is None or found[1] <= 1:
        return
    launcher, launched = found
    raise Unavailable(
        f"{launcher} started {launched} or more processes, but in each of them MPI sees a world of size {size}: the "
        f"launcher and the MPI library do not know each other.\n"
        f"The MPI library is: {library.strip()}\n"
        f"Under Slurm, try `srun --mpi=pmix` (`srun --mpi=list` shows what there is); elsewhere, use the mpirun that "
        f"belongs to this MPI library (in a virtual environment, the one in its bin folder). To run a single "
        f"process, start it without a launcher.")


def _launched(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The launcher that claims most processes, and how many; None without a launcher."""
    claims = [(launcher.name, claim) for launcher in _MPI_LAUNCHERS if (claim := _claim(environ, launcher)) is not None]
    if not claims and _in_srun_step(environ):  # mpirun starts its daemons by srun, and their step is none of ours
        claims = [(_SRUN.name, claim) for claim in [_claim(environ, _SRUN)] if claim is not None]
    return max(claims, key=lambda claim: claim[1], default=None)


def _claim(environ: Mapping[str, str], launcher: _Launcher) -> int | None:
    """How many processes there must be by this launcher's variables."""
    for name in launcher.sizes:
        size = _number(environ, name)
        if size is not None:
            return size
    rank = next((rank for name in launcher.ranks if (rank := _number(environ, name)) is not None), None)
    return None if rank is None else rank + 1


def _first_told(environ: Mapping[str, str], what: str) -> int | None:
    for launcher in (*_MPI_LAUNCHERS, *([_SRUN] if _in_srun_step(environ) else [])):
        for name in getattr(launcher, what):
            number = _number(environ, name)
            if number is not None:
                return number
    return None


def _in_srun_step(environ: Mapping[str, str]) -> bool:
    step = _number(environ, "SLURM_STEP_ID")
    if step is None:
        step = _number(environ, "SLURM_STEPID")
    return step is not None and step < _FIRST_SPECIAL_STEP


def _tasks_on_this_host(environ: Mapping[str, str]) -> int | None:
    """Slurm lists tasks by host, e.g. ``4(x2),3`` in SLURM_STEP_TASKS_PER_NODE; SLURM_NODEID says which is ours."""
    node = _number(environ, "SLURM_NODEID")
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        count, _, times = part.partition("(x")
        if not count.isdecimal() or not (times.rstrip(")") or "1").isdecimal():
            return None
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node] if node is not None and node < len(counts) else None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() else None
