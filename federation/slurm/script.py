"""A job's script: one of jobs/slurm, with what this job wants written into it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files

import msgspec


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks for. `directives` are options of sbatch by name ("" for those without a value)."""

    script: str = "fedavg"
    directives: Mapping[str, str] = {}
    #: What federation.launch is given.
    arguments: Sequence[str] = ()
    #: A shell script to source first, of a virtual environment.
    activate: str | None = None
    #: The run's folder; None for the script's own rule.
    output_dir: str | None = None
    #: Let the run outlive killed ranks, where Open MPI can.
    ulfm: bool = False


def render(job: Job) -> str:
    """The text of the script, ready for sbatch; it needs nothing of the shell that submits it."""
    text = (files("federation.slurm") / f"{job.script}.sh").read_text()
    shebang, _, rest = text.partition("\n")
    added = []
    for name, value in job.directives.items():
        line = f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}"
        found = re.search(rf"^#SBATCH --{re.escape(name)}(?:[= ].*)?$", rest, re.MULTILINE)
        if found is None:
            added.append(line)
        else:
            rest = rest[:found.start()] + line + rest[found.end():]
    settings = [f"set -- {shlex.join(job.arguments)}"]
    if job.output_dir is not None:
        settings.append(f"OUTPUT={shlex.quote(job.output_dir)}")
    if job.ulfm:
        settings.append("ULFM=yes")
    if job.activate is not None:
        settings.append(f"source {shlex.quote(job.activate)}")
    rest = rest.replace("set -euo pipefail\n", "set -euo pipefail\n\n# What this job was submitted with.\n"
                        + "\n".join(settings) + "\n", 1)
    return "\n".join([shebang, *added, rest])
