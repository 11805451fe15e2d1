"""Start a run, in any mode: `python -m federation.launch`, or `federation.run(config)` from a program.

Exit status: 0 done; 1 failed while running; 2 bad configuration or usage; 75 stopped by a signal after a checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NoReturn

from federation.builtin.table import COMPONENTS
from federation.command_line import parse, resolve_options
from federation.config import Config, load_config, load_config_from_dict
from federation.errors import ConfigError, DataError, FederationError, exit_error, exits_are_errors
from federation.infra.logger import configure, redact, register_secret
from federation.infra.progress import say
from federation.infra.threads import apply_threads, available_cores, resolve_threads
from federation.infra.watchdog import STOP_SIGNALS, Watchdog
from node_comm import CommError, Transport, launchers
from node_comm.output import flush_output

logger = logging.getLogger("federation.launch")  # __name__ is __main__ for the command, whose log would be nobody's

DONE, FAILED, BAD_CONFIG, STOPPED = 0, 1, 2, 75
THREADS = "OMP_NUM_THREADS"  #: where `apply_threads` leaves the number, for this process and its children
GRACE = 3.0  #: seconds that a rank leaves rank 0 to say what is wrong, before it says so itself


class Interrupt:
    """What a signal does before a run listens, and after one has stopped it: ends what goes on, such as a tracker's farewell.

    By default, a second signal would end the process with a status for which no job is requeued; and Ctrl-C, which asyncio takes
    over where Python's own function answers it, would wait for the end of what is computed, such as data.
    """

    #: Nothing is left to be ended; to Ctrl-C, the program still listens.
    deaf = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.deaf and number != signal.SIGINT:
            return
        self.deaf = True
        raise KeyboardInterrupt(signal.Signals(number).name)


interrupt = Interrupt()


def run(config: Any, *, resume: str | None = None, quiet: bool = True) -> Any:
    """Run `config` (a path, a mapping or a Config) to its end; the one synchronous door. Returns a RunResult.

    Under `mpirun` every rank calls this. Raises ConfigError for a bad configuration, other FederationErrors and
    CommErrors for a run that fails, `session.Stopped` after a signal.
    """
    if isinstance(config, Mapping):
        config = load_config_from_dict(config)
    elif isinstance(config, str | os.PathLike):
        config = load_config(os.fspath(config))
    return run_in(choose_mode(config, os.environ), config, resume=resume, quiet=quiet)


@exits_are_errors()  # of a component: else a program that calls this, or the command, would end with its status
def run_in(mode: str, config: Config, *, resume: str | None = None, quiet: bool = True) -> Any:
    """`run` in a mode that is known to fit the world that this process is in."""
    match mode:
        case "serial":
            return _run_serial(config, resume, quiet)
        case "parallel":
            return _run_parallel(config, resume, quiet)
        case "mpi":
            return _run_mpi(config, resume, quiet)
        case "server":
            from federation.network import run_server

            _set_threads(config, workers=1)
            return run_server(config, resume, quiet, _lead)
        case "client":
            from federation.network import run_client

            _set_threads(config, workers=1)
            return run_client(config, int(os.environ[THREADS]))
    raise AssertionError(mode)


def choose_mode(config: Config, environ: Mapping[str, str]) -> str:
    """The mode that `config.mode` means here. ConfigError where it contradicts the MPI launcher."""
    launched = launchers.launched_size(environ) or 1
    if config.mode == "auto":
        return "mpi" if launched > 1 else "serial"
    if config.mode != "mpi" and launched > 1:
        raise ConfigError(f"mode {config.mode!r} was asked for, but an MPI launcher started {launched} processes, which "
                          f"would each run everything. Either drop the launcher, or use --mode mpi (or auto)")
    return str(config.mode)


def _run_serial(config: Config, resume: str | None, quiet: bool) -> Any:
    from node_comm import memory

    _set_threads(config, workers=1)
    return asyncio.run(_lead(config, "serial", memory.world(1)[0], resume, quiet))


def _run_parallel(config: Config, resume: str | None, quiet: bool) -> Any:
    from node_comm import processes

    workers = config.num_workers or available_cores()
    _set_threads(config, workers)

    async def lead() -> Any:
        world = processes.World(workers + 1, work, (config,), env={THREADS: os.environ[THREADS]},
                                preload=needed_modules(config))
        async with world as transport:
            return await _lead(config, "parallel", transport, resume, quiet)

    return asyncio.run(lead())


def needed_modules(config: Config) -> list[str]:
    """What every worker imports, as far as that is known without importing it."""
    names = (config.components.trainer, config.components.learner, config.components.aggregator, config.components.model)
    places = [COMPONENTS[name] for name in names if name in COMPONENTS]
    return ["federation.command_line", "federation.assemble", "federation.session", *(place.partition(":")[0] for place in places)]


async def work(transport: Transport, config: Config) -> None:
    """A worker process of parallel mode."""
    _mask_secrets(config)
    configure(transport.rank, config.log.level, form=config.log.format)
    await _follow(config, transport)


def _run_mpi(config: Config, resume: str | None, quiet: bool) -> Any:
    from node_comm import mpi

    rank = launchers.launched_rank(os.environ) or 0
    if rank:
        for received in STOP_SIGNALS:
            signal.signal(received, signal.SIG_IGN)  # rank 0 decides, and ends the others
    _set_threads(config, workers=launchers.local_size(os.environ) or 1)
    patience = config.trainer_config.round_timeout
    watchdog = Watchdog(patience) if rank and patience and launchers.survives_lost_ranks(os.environ) else None
    transport = mpi.connect(max_chunk_bytes=config.transport.max_chunk_bytes)

    async def this_rank() -> Any:
        # Ends the job from in here: asyncio.run would first wait for the thread that may still be training.
        try:
            launchers.check_world(transport.size, os.environ, transport.library_version)
            if transport.rank == 0:
                return await _lead(config, "mpi", transport, resume, quiet)
            watched = asyncio.create_task(watchdog.keep_beating()) if watchdog is not None else None
            result = await _follow(config, transport)
            if watched is not None:
                watched.cancel()
            return result
        except BaseException as error:
            _end_job(transport, error)

    return asyncio.run(this_rank())


async def _lead(config: Config, mode: str, transport: Transport, resume: str | None, quiet: bool) -> Any:
    """Rank 0."""
    from federation.session import Session

    with closing(Session(config, mode, resume, quiet)) as session:
        session.open()
        from federation.assemble import assemble

        parts = assemble(config)
        threads = apply_threads(int(os.environ[THREADS]))  # again, for the libraries that have come with the parts
        return await session.lead(parts, transport, threads)


async def _follow(config: Config, transport: Transport) -> Any:
    """Any other rank."""
    from federation.assemble import assemble
    from federation.session import RunResult

    with exits_are_errors():  # they would be taken for a process that has died
        parts = assemble(config)
        apply_threads(int(os.environ[THREADS]))
        await parts.make_client(transport).serve()
    return RunResult(mode=config.mode, world_size=transport.size)


def _end_job(transport: Any, error: BaseException) -> NoReturn:
    """End all ranks, since the others would wait for this one for ever. Rank 0 speaks first; it has mostly been told."""
    if transport.rank:
        time.sleep(GRACE)
    status = report(error, rank=transport.rank)
    transport.abort(status)
    raise AssertionError("the job outlived its abort")


def report(error: BaseException, rank: int = 0) -> int:
    """Say on stderr what ended the run, once; returns the exit status that goes with it."""
    from federation.session import Stopped

    who = f"rank {rank}: " if rank else ""
    if isinstance(error, KeyboardInterrupt):
        error = _interrupted(error)
    if isinstance(error, SystemExit):
        error = exit_error(error)
    match error:
        case ConfigError():
            for problem in error.problems:
                print(f"{who}{redact(problem)}", file=sys.stderr)
            status = BAD_CONFIG
        case Stopped():
            print(f"{who}{error}", file=sys.stderr)
            status = STOPPED if error.checkpoint or error.is_client else FAILED
        case KeyboardInterrupt():
            print(f"{who}stopped by {error.args[0] if error.args else signal.SIGINT.name}", file=sys.stderr)
            status = FAILED
        case DataError():
            print(f"{who}{redact(str(error))}", file=sys.stderr)
            status = BAD_CONFIG
        case FederationError() | CommError():
            print(f"{who}{type(error).__name__}: {redact(str(error))}", file=sys.stderr)
            logger.debug("traceback", exc_info=error)
            status = FAILED
        case MemoryError():
            print(f"{who}out of memory{f': {error}' if str(error) else ''}", file=sys.stderr)
            logger.debug("traceback", exc_info=error)
            status = FAILED
        case _:
            text = "".join(traceback.format_exception(error))
            print(f"{who}{redact(text)}", file=sys.stderr)
            status = FAILED
    flush_output()
    return status


def _interrupted(second: KeyboardInterrupt) -> BaseException:
    """The stop that was being answered when another signal came; `second` itself where there was none."""
    from federation.session import Stopped

    earlier: BaseException | None = second
    while earlier is not None and not isinstance(earlier, Stopped):
        earlier = earlier.__context__
    return earlier or second


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    rank = launchers.launched_rank(os.environ) or 0
    try:
        options = parse(sys.argv[1:] if arguments is None else list(arguments))
        configure(rank, quiet=options.quiet)
        config = resolve_options(options)
        _mask_secrets(config)
        configure(rank, config.log.level, options.quiet, config.log.format)
        if options.dry_run:
            if rank == 0:
                from federation.dry_run import describe

                print(describe(config, choose_mode(config, os.environ), os.environ))
            return DONE
        result = run(config, resume=options.resume, quiet=options.quiet)
    except (Exception, KeyboardInterrupt) as error:
        interrupt.deaf = True  # what happens next is known, and only to be said
        if rank:
            time.sleep(GRACE)  # every rank found the same fault; rank 0 says so, and the launcher ends the rest
        return report(error, rank)
    if rank == 0 and not options.quiet:
        say(summary(result))
    return DONE


def summary(result: Any) -> str:
    """The last words of a run."""
    if result.mode == "client":
        return "the run is over"
    accuracy = result.metrics.get("accuracy")
    reached = "" if accuracy is None else f", accuracy {accuracy:.4f}"
    balance = f"{result.balance}\n" if result.balance else ""
    return (f"{result.rounds_completed} rounds in mode {result.mode} on {result.world_size} ranks{reached}\n{balance}"
            f"weights_sha256 {result.weights_sha256}\nfolder {result.output_dir}")


def _mask_secrets(config: Config) -> None:
    for secret in config.secrets():
        register_secret(secret)


def _set_threads(config: Config, workers: int) -> None:
    apply_threads(resolve_threads(config.threads, workers, os.environ, available_cores()))


def leave(status: int) -> NoReturn:
    """End the process now, also when a client is still training on its thread (after a signal, or a failure)."""
    flush_output()
    if status == DONE:
        sys.exit(DONE)
    os._exit(status)


if __name__ == "__main__":
    for number in STOP_SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, interrupt)
    leave(main())
