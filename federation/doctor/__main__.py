"""`python -m federation.doctor`: what matters before a long job, alone, under mpirun, or in a batch job.

Exit status: 0 where a run would work (warnings included), 1 where something would break it, 2 for usage and for a
configuration that is wrong in itself. Nothing is trained, and nothing is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import msgspec

from federation.config import Config, load_config
from federation.doctor.checks import examine
from federation.doctor.examination import PATIENCE, examine_world, within
from federation.doctor.facts import MPIFacts
from federation.doctor.finding import exit_status
from federation.doctor.probes.library import unstarted_mpi
from federation.doctor.probes.world import share
from federation.doctor.report import as_json, show
from federation.errors import ConfigError
from federation.infra.logger import configure, register_secret
from federation.launch import GRACE, choose_mode, report
from node_comm import Transport, Unavailable, launchers, memory

if TYPE_CHECKING:
    from node_comm.mpi import MPITransport


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed command line."""

    config: str | None = None
    set: tuple[str, ...] = ()
    json: bool = False

    @property
    def given(self) -> bool:
        """Whether there is a configuration to check."""
        return self.config is not None or bool(self.set)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)  # of many ranks, one says it


def parse(arguments: Sequence[str]) -> Options:
    """The options in `arguments`. `--help` prints, and exits with status 0. Raises ConfigError for anything else."""
    parser = _Parser(prog="python -m federation.doctor", allow_abbrev=False,
                     description="Look at this machine, or under mpirun or srun at all machines of the job, before a long run.",
                     epilog="exit status: 0 a run would work; 1 something would break it; 2 usage, or a wrong configuration")
    parser.add_argument("--config", metavar="FILE", help="the configuration of the run, in YAML: its data, model and folder "
                        "are looked at as well")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="append", default=[],
                        help="change keys of the configuration, as for federation.launch")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    found = parser.parse_args(arguments)
    return Options(config=found.config, set=tuple(word for group in found.set for word in group), json=found.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status, the same on every rank."""
    environ = dict(os.environ)  # as the launcher has made it; threads are set in the other one
    rank = launchers.launched_rank(environ) or 0
    try:
        options = parse(sys.argv[1:] if arguments is None else list(arguments))
        configure(rank, quiet=True)
        config = load_config(options.config, overrides=options.set)
        for secret in config.secrets():
            register_secret(secret)
        mode = choose_mode(config, environ)
    except ConfigError as error:
        if rank:
            time.sleep(GRACE)  # every rank has found the same; rank 0 says so, and the launcher ends the rest
        return report(error, rank)
    if mode != "mpi":
        return asyncio.run(consult(memory.world(1)[0], options, config, mode, unstarted_mpi(environ), environ))
    from node_comm import mpi

    try:
        with within(PATIENCE):
            transport = mpi.connect(max_chunk_bytes=config.transport.max_chunk_bytes)
        launchers.check_world(transport.size, environ, transport.library_version)
    except Unavailable as error:
        # Each process is alone then, and would say the same.
        facts = unstarted_mpi(environ, refusal=str(error))
        return asyncio.run(consult(memory.world(1)[0], options, config, mode, facts, environ, speaks=rank == 0))
    return asyncio.run(_in_world(transport, options, config, environ))


async def consult(transport: Transport, options: Options, config: Config, mode: str, mpi: MPIFacts,
                  environ: Mapping[str, str], speaks: bool = True) -> int:
    """Examine, and report from rank 0 (if it `speaks`); the exit status, on every rank."""
    facts = await examine_world(transport, config, mode, options.given, mpi, environ)
    status = 0
    if facts is not None:
        findings = examine(facts)
        status = exit_status(findings)
        if speaks and options.json:
            print(as_json(findings), flush=True)
        elif speaks:
            show(findings)
    status = await share(transport, status)
    await transport.close()
    return status


async def _in_world(transport: MPITransport, options: Options, config: Config, environ: Mapping[str, str]) -> int:
    """`consult` on one of several ranks. A fault ends the job: the other ranks would wait for this one for ever."""
    facts = MPIFacts(library=transport.library_version, launched=launchers.launched_size(environ),
                     thread_level=transport.thread_level, offers_ulfm=transport.offers_ulfm,
                     wants_ulfm=launchers.survives_lost_ranks(environ))
    try:
        return await consult(transport, options, config, "mpi", facts, environ)
    except BaseException as error:
        transport.abort(report(error, transport.rank))


if __name__ == "__main__":
    sys.exit(main())
