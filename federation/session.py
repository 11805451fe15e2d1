"""One run, seen from rank 0: its folder, its trainer, signals, and the result."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.assemble import Parts, versions
from federation.config import Config, dump_config, load_config
from federation.core.trainer import Trainer
from federation.core.weights import Weights
from federation.errors import CheckpointError, ConfigError, FederationError, TooFewClients, exits_are_errors
from federation.infra.checkpoint import Checkpoints, Snapshot, read
from federation.infra.monitor import Monitor
from federation.infra.progress import Progress
from federation.infra.recorder import Recorder
from federation.infra.run_folder import RunFolder
from federation.infra.trace import TraceFile
from federation.infra.tracker import make_tracker
from federation.infra.walltime import OutOfTime, WallTime, seconds_left
from federation.infra.watchdog import STOP_SIGNALS
from federation.node.server import ServerNode
from federation.survival import Resumable, Survival
from node_comm import CommError, Transport

logger = logging.getLogger(__name__)

#: Seconds that a signal waits for a round that counts already to be recorded.
PATIENCE = 5.0


class Stopped(FederationError):
    """A signal, or the end of the job's time, ended the run.

    `checkpoint` is the file to resume from, None where the trainer keeps none.
    """

    def __init__(self, name: str, checkpoint: Path | None, is_client: bool = False) -> None:
        self.checkpoint = checkpoint
        self.is_client = is_client
        if is_client:
            super().__init__(f"stopped by {name}; the server goes on without this client, which may come back")
            return
        kept = f"resume from {checkpoint} with --resume" if checkpoint else "this trainer keeps no checkpoint"
        super().__init__(f"stopped by {name}; {kept}")


@dataclass(frozen=True)
class RunResult:
    """How a run ended. On ranks other than 0, `weights` is None and the rest is empty."""

    weights: Weights | None = None
    weights_sha256: str = ""
    rounds_completed: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    output_dir: Path | None = None
    mode: str = ""
    world_size: int = 1
    #: How evenly the ranks were busy, in words; empty where one alone has trained.
    balance: str = ""


class Session:
    """Rank 0's run: takes the folder, and leads the world through the trainer. Close it whatever happens."""

    def __init__(self, config: Config, mode: str, resume: str | None = None, quiet: bool = False) -> None:
        self.config = config
        self.mode = mode
        self.folder = RunFolder(config.output_dir)
        self._resume = resume
        self._quiet = quiet
        self._began = time.monotonic()
        self._found: Snapshot | None = None

    def open(self) -> None:
        """Find what to resume from, and take the folder (which is left alone where every round is done already).

        Raises ConfigError for a folder that cannot be used, CheckpointError for a named checkpoint that cannot.
        """
        self._found = self._checkpoint_to_resume()
        if not self._finished:
            job = f"Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
            resume = self._resume is not None
            self.folder.prepare(dump_config(self.config), resume=resume, job=job,
                                overwrite=self.config.overwrite and not resume)

    @property
    def _finished(self) -> bool:
        """A run that was killed between its last checkpoint and its summary is not."""
        return (self._found is not None and self._found.round >= self.config.trainer_config.max_rounds
                and self.folder.has_summary)

    async def lead(self, parts: Parts, transport: Transport, threads: Mapping[str, int]) -> RunResult:
        """Run the trainer to its end, or to a signal or the end of the job's time (Stopped, once a checkpoint is written).

        `threads` are those that each library uses, for the summary.
        """
        config, server = self.config, parts.make_server(transport)
        if self._finished:
            result = self._nothing_left(transport)
            await server.start()
            with suppress(TooFewClients):  # over a network, some may never come, and have nothing to do here either
                await server.wait_for_clients(0, config.trainer_config.connect_timeout if server.is_open else None)
            await server.stop("every round is done already")
            return result
        recorder = self._recorder(server)
        try:
            trainer = parts.make_trainer(server, recorder)
            if self._resume is not None:
                self._go_on(trainer, recorder, self._found)
            await server.start()
            if transport.recoverable and transport.size > 1:
                logger.info("this run outlives the loss of ranks (%s)", "ULFM" if self.mode == "mpi" else "workers are replaced")
            survival = Survival(trainer, lambda: self._start_over(parts, server, recorder))
            with self._tracing(server):
                await self._run_or_stop(survival, recorder)
            trainer = survival.trainer
        except BaseException:
            try:
                recorder.close()
            except FederationError as error:  # what has ended the run is what is told, and has its exit status
                logger.error("%s", error)
            raise
        recorder.close()
        given = trainer.model.get_weights()
        weights = given if isinstance(given, Weights) else Weights.of(given)
        rounds = trainer.round if isinstance(trainer, Resumable) else config.trainer_config.max_rounds
        final = {key: value for key, value in recorder.last.items() if key not in ("round", "seconds")}
        balance = str(getattr(trainer, "balance", ""))
        result = RunResult(weights, weights.sha256(), rounds, final, self.folder.path, self.mode, transport.size, balance)
        self.folder.write_summary({
            "weights_sha256": result.weights_sha256, "rounds_completed": rounds, "final": final, "mode": self.mode,
            "world_size": transport.size, "num_clients": config.num_clients, "seed": config.seed,
            "threads": dict(threads), "balance": balance, "wall_s": time.monotonic() - self._began,
            "versions": versions()})
        return result

    @contextmanager
    def _tracing(self, server: ServerNode) -> Iterator[None]:
        """Write a trace of the block, where one is wanted."""
        if not self.config.timer.trace:
            yield
            return
        trace = TraceFile(self.folder.path / "trace.json", resume=self._resume is not None)
        server.trace = trace.write
        try:
            yield
        finally:
            trace.write(0, server.host.spans.take())
            trace.close()

    def _nothing_left(self, transport: Transport) -> RunResult:
        found = self._found
        assert found is not None
        logger.warning("%s: all %d rounds are done, nothing to train", self.folder.path, found.round)
        return RunResult(found.weights, found.weights.sha256(), found.round, found.metrics, self.folder.path, self.mode,
                         transport.size)

    def close(self) -> None:
        """Give the folder back."""
        self.folder.close()

    def _recorder(self, server: ServerNode) -> Recorder:
        config, folder = self.config, self.folder
        tracker = make_tracker(config.tracker.name, folder.tensorboard, config.tracker.settings(), config.tracker.required)
        checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep, every=config.checkpoint.every,
                                  asynchronous=config.checkpoint.async_,
                                  on_error="stop" if config.checkpoint.on_error == "raise" else "warn")
        address = config.transport.monitor
        monitor = None if address is None else Monitor(address, lambda: len(server.clients))
        progress = Progress(config.trainer_config.max_rounds, quiet=self._quiet)  # last: a bar must not outlive what fails
        return Recorder(folder, tracker, progress, checkpoints, run_id=folder.run_id, config_digest=config.digest(),
                        wall_time=WallTime(seconds_left(os.environ)), monitor=monitor)

    def _checkpoint_to_resume(self) -> Snapshot | None:
        if self._resume is None:
            return None
        if self._resume != "auto":
            path = Path(self._resume)
            if not path.exists():
                raise ConfigError(f"--resume: there is no {path}; give the path of a checkpoint, or auto for the newest one in "
                                  f"{self.folder.checkpoints}")
            found = read(path)
        else:
            latest = Checkpoints.latest_in(self.folder.checkpoints)
            if latest is None:
                logger.info("%s holds no checkpoint yet: starting from round 1", self.folder.path)
                return None
            found = latest[1]
        if found.config_digest != self.config.digest():
            raise ConfigError(self._differences(found))
        return found

    def _differences(self, found: Snapshot) -> list[str]:
        """What to tell a user who resumes with a configuration that would give another result."""
        try:
            before = load_config(self.folder.path / "config.yaml").to_dict()
        except ConfigError:
            before = {}
        changed = [f"{key}: {old!r} then, {new!r} now" for key, old, new in _changed(before, self.config.to_dict())
                   if not key.startswith(("checkpoint", "tracker", "output_dir"))]
        return [f"the checkpoint of round {found.round} comes from another configuration, so going on from it would give "
                f"the result of neither; start anew in another output_dir, or put these back:", *changed]

    def _start_over(self, parts: Parts, server: ServerNode, recorder: Recorder) -> Trainer:
        """A new trainer, that goes on from the last checkpoint."""
        trainer = parts.make_trainer(server, recorder)
        server.states.adopt({})
        self._go_on(trainer, recorder, recorder.latest())
        return trainer

    @staticmethod
    def _go_on(trainer: Trainer, recorder: Recorder, found: Snapshot | None) -> None:
        if found is None:
            recorder.resume_from(0, {})
            return
        if not isinstance(trainer, Resumable):
            raise CheckpointError(f"{type(trainer).__name__} cannot be resumed: it keeps no checkpoints")
        trainer.restore(found)
        recorder.resume_from(found.round, found.metrics)
        logger.info("resumed after round %d", found.round)

    @staticmethod
    def _last_checkpoint(trainer: Trainer, recorder: Recorder) -> Path | None:
        """One of the round that was recorded last; where a later one has begun to count already, that which is written."""
        if not isinstance(trainer, Resumable):
            return None
        return recorder.checkpoint_now(trainer.snapshot() if _is_recorded(trainer, recorder) else None)

    async def _run_or_stop(self, survival: Survival, recorder: Recorder) -> None:
        with stop_signals(ends_process=self.mode == "mpi") as stop:
            await self._run_until(stop, survival, recorder)

    async def _run_until(self, stop: asyncio.Future[signal.Signals], survival: Survival, recorder: Recorder) -> None:
        running = asyncio.ensure_future(_to_its_end(survival))
        try:
            waiting: set[asyncio.Future[Any]] = {running, stop}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                try:
                    await running
                except OutOfTime as end:
                    raise Stopped(str(end), recorder.checkpoint_now(None)) from None
                except CommError:
                    if not stop.done():
                        raise
                    # The signal went to all processes of the job, and the others have died of it.
                    raise Stopped(stop.result().name, self._last_checkpoint(survival.trainer, recorder)) from None
                return
            survival.ending = True
            await _until_recorded(survival, recorder, running)
            survival.trainer.server.host.stopping.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise Stopped(stop.result().name, self._last_checkpoint(survival.trainer, recorder))
        finally:
            running.cancel()


@contextmanager
def stop_signals(ends_process: bool = False) -> Iterator[asyncio.Future[signal.Signals]]:
    """A future that holds the first signal to stop that comes during the block; then signals are the program's own again.

    After one that `ends_process`, as it does a rank of MPI, others are ignored for good: by default, one would end this rank before
    it has told the other ranks, and the job would not have this rank's status.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def ask(received: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(received)

    former = {received: signal.getsignal(received) for received in STOP_SIGNALS}
    handled = [received for received in STOP_SIGNALS if _handle(loop, received, ask)]
    try:
        yield stop
    finally:
        for received in handled:
            if ends_process and stop.done():
                signal.signal(received, signal.SIG_IGN)
                continue
            loop.remove_signal_handler(received)
            signal.signal(received, former[received] or signal.SIG_DFL)


async def _to_its_end(survival: Survival) -> None:
    """Run the trainer. A sys.exit in it, or in the aggregator, would end the loop, with what is told to other ranks."""
    with exits_are_errors():
        await survival.run()


def _is_recorded(trainer: Resumable, recorder: Recorder) -> bool:
    return bool(trainer.round == recorder.last.get("round", 0))


async def _until_recorded(survival: Survival, recorder: Recorder, running: asyncio.Future[None]) -> None:
    """Let a round whose weights count already be evaluated and recorded: after a resume, that is not made up for.

    The trainer may become another one meanwhile, where a loss that came before is still being made good.
    """
    limit = time.monotonic() + PATIENCE
    while isinstance(trainer := survival.trainer, Resumable) and not _is_recorded(trainer, recorder) and not running.done() \
            and time.monotonic() < limit:
        await asyncio.sleep(0.01)


def _changed(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves that differ between two configurations: key, old value, new value."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _changed(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield path, before, now


def _handle(loop: asyncio.AbstractEventLoop, received: signal.Signals, ask: Any) -> bool:
    """Install `ask` for a signal; not possible, and not wanted, when a program runs this outside its main thread."""
    try:
        loop.add_signal_handler(received, ask, received)
    except (RuntimeError, ValueError):
        return False
    return True
