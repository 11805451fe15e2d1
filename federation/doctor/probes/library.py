"""The MPI library, without starting MPI: on a login node a start may end the process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping

from federation.doctor.facts import MPIFacts
from node_comm import launchers

#: Seconds that loading the library may take, on a slow file system.
PATIENCE = 60.0

_ASK = ("import mpi4py; mpi4py.rc.initialize = False; mpi4py.rc.finalize = False; from mpi4py import MPI; "
        "print(MPI.Get_library_version().rstrip(chr(0)))")


def unstarted_mpi(environ: Mapping[str, str], refusal: str = "") -> MPIFacts:
    """What there is to know of MPI in a process that does not start it; `refusal`, where it was tried, is why it cannot."""
    library = ""
    if not refusal:
        library, refusal = _library()
    return MPIFacts(library=library, refusal=refusal, launched=launchers.launched_size(environ))


def _library() -> tuple[str, str]:
    """The library's text, asked for by another process; or why there is none."""
    if importlib.util.find_spec("mpi4py") is None:
        return "", "mpi4py is not installed; the extra `mpi` brings it, and an MPI library"
    try:
        asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=PATIENCE, env=_plain())
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"mpi4py does not load ({error})"
    if asked.returncode != 0:
        reason = (asked.stderr.strip() or f"exit status {asked.returncode}").splitlines()[-1]
        return "", f"mpi4py does not load ({reason}); load your site's MPI module, or install the extra `mpi`"
    return asked.stdout.strip(), ""


def _plain() -> dict[str, str]:
    """The environment without what a launcher told this process, which the other one would take for itself."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("OMPI_COMM", "PMIX_", "PMI_", "PRTE_"))}
