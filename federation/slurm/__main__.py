"""`python -m federation.slurm submit --config c.yaml --nodes 4 ...`: write a job's script and give it to Slurm.

Exit status: 0 submitted (or printed); 1 sbatch refused; 2 usage, or a wrong configuration.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from federation.command_line import Parser
from federation.config import Config, load_config
from federation.config_value import Misfit, fit_path
from federation.errors import ConfigError
from federation.slurm.script import Job, render

#: What fedavg_gpu.sh adds to what it is given.
SET_FOR_GPUS = {"learner_config.device": "cuda", "trainer_config.server_hosts_clients": "true"}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m federation.slurm", allow_abbrev=False, description="Jobs for Slurm.")
    submit = parser.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser(
        "submit", allow_abbrev=False, help="write a job's script and submit it",
        description="Write a script for a run under MPI (jobs/slurm/fedavg.sh, or fedavg_gpu.sh with --gpus-per-node), and "
                    "submit it. Before its time is up, or when it is preempted, the job writes a checkpoint and goes back "
                    "into the queue.",
        epilog="exit status: 0 submitted, or printed; 1 sbatch refused; 2 usage, or a wrong configuration")
    add = submit.add_argument
    add("--config", metavar="FILE", help="the configuration, in YAML")
    add("--set", metavar="KEY=VALUE", nargs="+", action="append", default=[], help="change keys of the configuration")
    add("--output_dir", "--output-dir", metavar="DIR",
        help="the run's folder, which all nodes see (default: runs/<job name>-<job id>, whatever the configuration's output_dir "
             "is); a run that is there goes on")
    add("--nodes", type=_count, metavar="N", help="nodes (default: 2)")
    add("--ntasks-per-node", "--ntasks_per_node", type=_count, metavar="N", help="ranks on each node (default: 8, or 4 with GPUs)")
    add("--cpus-per-task", "--cpus_per_task", type=_count, metavar="N", help="cores for each rank (default: 1, or 8 with GPUs)")
    add("--gpus-per-node", "--gpus_per_node", type=_count, metavar="N", help="train on so many GPUs of each node")
    add("--time", metavar="TIME", help="the most that the job may take at a time, such as 2:00:00 (default)")
    add("--job-name", "--job_name", metavar="NAME", help="the job's name (default: that of the configuration's file)")
    for name in ("account", "partition", "qos", "mem-per-cpu"):
        add(f"--{name}", metavar=name.upper().replace("-", "_"), help=f"sbatch's --{name}")
    add("--sbatch", metavar="OPTION", action="append", default=[],
        help="any other option of sbatch, such as --sbatch=--exclusive; may be repeated")
    add("--ulfm", action="store_true", help="let the run outlive killed ranks (Open MPI 5 and later)")
    add("--dry_run", "--dry-run", action="store_true", help="print the script, and submit nothing")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 1")
    return int(word)


def job_of(given: argparse.Namespace) -> Job:
    """The job that the options ask for. Raises ConfigError with all that is wrong with them and the configuration."""
    overrides = [word for group in given.set for word in group]
    config: Config = load_config(given.config, overrides=overrides)
    directives = {name: str(value) for name in ("nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "account",
                                                "partition", "qos", "mem-per-cpu")
                  if (value := getattr(given, name.replace("-", "_"))) is not None}
    directives = {"job-name": _name_of(given), **directives}
    problems = []
    for option in given.sbatch:
        name, _, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not name:
            problems.append(f"--sbatch={option}: give the option in full, such as --sbatch=--exclusive")
        elif name in ("array", "wrap"):
            problems.append(f"--sbatch={option}: this job is one run; see jobs/slurm/sweep.sh for an array")
        elif name == "job-name":
            problems.append(f"--sbatch={option}: give --job-name to this command, which names the script by it")
        elif name in directives:
            problems.append(f"--sbatch={option}: --{name} is given as well; keep one")
        directives[name] = value
    keys = {word.partition("=")[0] for word in overrides}
    if "output_dir" in keys:
        problems.append("--set: output_dir: the script names the run's folder; give --output_dir to this command")
    folder = None if given.output_dir is None else fit_path(given.output_dir)
    if isinstance(folder, Misfit):
        problems.append(f"--output_dir: {given.output_dir} {folder.reason.partition(';')[0]}; write it out")
    if given.gpus_per_node:
        problems += [f"--set: {key}: with --gpus-per-node the script sets it itself, to {value}, and a key may be given once; "
                     "leave it out" for key, value in SET_FOR_GPUS.items() if key in keys]
    if config.mode not in ("auto", "mpi"):
        problems.append(f"mode: {config.mode} is not for a job of several ranks; leave it out, or say mpi")
    if (given.nodes or 2) * (given.ntasks_per_node or 8) < 2:
        problems.append("--nodes and --ntasks-per-node: rank 0 serves and the others train, so there must be 2 ranks or more")
    if given.config is not None and "\n" in given.config:
        problems.append("--config: a file with a line break in its name cannot be in a script")
    if problems:
        raise ConfigError(problems)
    arguments = ["--config", str(Path(given.config).resolve())] if given.config else []
    arguments += ["--set", *overrides] if overrides else []
    activate = Path(sys.prefix) / "bin" / "activate"
    return Job(script="fedavg_gpu" if given.gpus_per_node else "fedavg", directives=directives, arguments=arguments,
               activate=str(activate) if sys.prefix != sys.base_prefix and activate.exists() else None,
               output_dir=None if folder is None else str(Path(str(folder)).resolve()), ulfm=given.ulfm)


def _name_of(given: argparse.Namespace) -> str:
    name = given.job_name or (re.sub(r"[^\w.-]", "_", Path(given.config).stem) if given.config else "fedavg")
    if not all(letter.isalnum() or letter in "._-" for letter in name):
        raise ConfigError(f"--job-name: {name!r} names files as well: letters, digits, '.', '_' and '-' only")
    return name


def submit(job: Job, folder: Path) -> int:
    """Write the script into `folder` and submit it; its number is printed. Returns the exit status."""
    program = shutil.which("sbatch")
    if program is None:
        raise ConfigError("sbatch is not on PATH: submit from a login node of the cluster, or use --dry_run")
    path = folder / f"{job.directives['job-name']}.slurm.sh"
    try:
        path.write_text(render(job))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; call this in a folder that takes the job's script and "
                          "its log") from error
    done = subprocess.run([program, str(path)], check=False, capture_output=True, text=True)
    print((done.stdout + done.stderr).strip())
    if done.returncode:
        print(f"sbatch refused {path}", file=sys.stderr)
        return 1
    print(f"script {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        given = _parser().parse_args(arguments)
        job = job_of(given)
        if given.dry_run:
            print(render(job), end="")
            return 0
        return submit(job, Path(os.getcwd()))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
