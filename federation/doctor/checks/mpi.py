"""Whether the MPI library works, fits its launcher, and outlives a lost rank."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import WorldFacts
from federation.doctor.finding import Finding, ok, problem, warning


def check_mpi(facts: WorldFacts) -> Iterator[Finding]:
    """The library, its thread level, and the trap of many worlds of one rank."""
    mpi, subject = facts.mpi, "MPI"
    launched = mpi.launched or 1
    if mpi.refusal and (launched > 1 or facts.run.mode == "mpi"):
        yield problem(subject, mpi.refusal, f"mode mpi cannot run here, with {launched} processes started; modes serial and "
                      "parallel need no MPI" if launched == 1 else "until then, start one process, without a launcher")
    elif mpi.refusal:
        yield ok(subject, f"not here, so that modes serial and parallel are what can run: {mpi.refusal}")
    elif mpi.thread_level is None:
        yield ok(subject, f"{_first_line(mpi.library)}; not started (mpirun -n N python -m federation.doctor looks closer)")
    else:
        yield ok(subject, f"{_first_line(mpi.library)}, thread level {mpi.thread_level}, {len(facts.ranks)} ranks")


def check_lost_ranks(facts: WorldFacts) -> Iterator[Finding]:
    """Whether MPI goes on without a rank that is lost (ULFM)."""
    mpi, subject = facts.mpi, "lost ranks"
    if mpi.offers_ulfm is None or len(facts.ranks) == 1:
        return
    if mpi.wants_ulfm and not mpi.offers_ulfm:
        yield warning(subject, "the launcher was told to go on without lost ranks, which this MPI library cannot (no ULFM)",
                      "use a library with ULFM, such as Open MPI 5, or leave --with-ft out")
    elif mpi.wants_ulfm:
        yield ok(subject, "ULFM is in the library, and this launch has it on")
    elif mpi.offers_ulfm:
        yield ok(subject, "a lost rank ends the job, and --resume goes on with it (ULFM is in the library, off in this "
                          "launch; mpirun --with-ft ulfm has it on)")
    else:
        yield ok(subject, "a lost rank ends the job, and --resume goes on with it (the library has no ULFM)")


def _first_line(library: str) -> str:
    return library.strip().partition("\n")[0].partition(", package")[0]
