"""The checkpoints of a run: when they are due, written beside the training, and which are kept.

The file format is in `federation.infra.checkpoint_file`. Only rank 0 makes a Checkpoints.
"""

from __future__ import annotations

import contextvars
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from federation.core.weights import Weights
from federation.errors import CheckpointError
from federation.infra.checkpoint_file import Snapshot, read, read_metric, write
from federation.infra.folder_lock import process_is_alive
from federation.infra.state_tree import copy_state

__all__ = ["Checkpoints", "Snapshot", "read", "write"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"round_(\d+)\.h5")
_TEMPORARY = re.compile(r"\.round_\d+\.h5\.(?P<host>.+)\.(?P<pid>\d+)\.tmp")


class Checkpoints:
    """Keeps the newest `keep` checkpoints in `folder`, and the best, named `round_000010.h5`.

    every: rounds between checkpoints; 0 for none but those that are asked for.
    asynchronous: `save` returns once it has copied the snapshot; a thread writes the copy. There is one copy, and one
        write at a time: a save that comes while the last is being written waits for it, so none is ever left out.
    on_error: what a write that failed does at the next call: "stop" raises it, "warn" logs it, and the run goes on.

    The process that makes one is the only writer of `folder` (see `RunFolder`). Usable as a context manager.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int = 3,
        every: int = 1,
        asynchronous: bool = True,
        on_error: Literal["stop", "warn"] = "stop",
    ) -> None:
        if keep < 1 or every < 0:
            raise ValueError(f"keep is {keep} and must be 1 or more, every is {every} and must be 0 or more")
        self.folder = Path(folder)
        self._keep = keep
        self._every = every
        self._asynchronous = asynchronous
        self._on_error = on_error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copy: Snapshot | None = None
        self._own_weights: Weights | None = None  # copied, of the last snapshot that lent none
        self._metrics: dict[Path, float | None] = {}
        #: Seconds that the longest write has taken so far.
        self.longest_write = 0.0

    def due(self, round: int) -> bool:
        """Whether `round` ends with a checkpoint."""
        return self._every > 0 and round % self._every == 0

    def path_of(self, round: int) -> Path:
        return self.folder / f"round_{round:06d}.h5"

    def save(self, snapshot: Snapshot, metric: float | None = None, lends_weights: bool = False) -> None:
        """Write `snapshot`, whose arrays may change as soon as this returns. `metric` ranks it, higher is better.

        One that `lends_weights` has its weights written from where they are: they may change once `flush` has returned.
        Raises CheckpointError, at once, for state that cannot be stored, and for the failure of an earlier write.
        """
        snapshot = _ranked(snapshot, metric)
        self.flush()
        if not self._asynchronous:
            self._settle(lambda: self._write(snapshot))
            return
        earlier = self._copy
        weights = snapshot.weights
        if not lends_weights:
            weights = self._own_weights = copy_state(weights, self._own_weights, "model")
        self._copy = replace(
            snapshot,
            weights=weights,
            server=copy_state(snapshot.server, earlier and earlier.server, "server"),
            clients=copy_state(snapshot.clients, earlier and earlier.clients, "clients"),
        )
        # The thread's log lines carry the round of the caller.
        self._writing = self._thread.submit(contextvars.copy_context().run, self._write, self._copy)

    def save_now(self, snapshot: Snapshot, metric: float | None = None) -> Path:
        """Write `snapshot` and return its path once it is on the disk; for a run that is about to end.

        Raises CheckpointError when that fails, whatever `on_error` says; the failure of an earlier write is logged.
        """
        snapshot = _ranked(snapshot, metric)
        try:
            self.flush()
        except CheckpointError as error:
            logger.warning("%s", error)
        self._write(snapshot)
        return self.path_of(snapshot.round)

    def flush(self) -> None:
        """Wait until all that was saved is on the disk. Raises CheckpointError for a write that failed."""
        if self._writing is not None:
            try:
                self._settle(self._writing.result)
            finally:
                if self._writing.done():  # not so when a signal interrupted the wait
                    self._writing = None

    def close(self) -> None:
        """`flush`, and end the thread. May be called again."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def latest(self) -> tuple[Path, Snapshot] | None:
        """The newest whole checkpoint, as `latest_in`, once what is being written is there; removes leftovers."""
        self.flush()
        self._remove_leftovers()
        return self.latest_in(self.folder)

    @staticmethod
    def latest_in(folder: str | os.PathLike[str]) -> tuple[Path, Snapshot] | None:
        """The newest checkpoint in `folder` that reads and verifies, with its path; None where there is none at all.

        Warns about each newer one that is damaged, by path and reason. Changes nothing. Raises CheckpointError where
        there are checkpoints and none is whole: beginning anew is not for us to decide.
        """
        found = sorted(_checkpoints(Path(folder)), reverse=True)
        for number, path in found:
            try:
                snapshot = read(path)
                if snapshot.round != number:
                    raise CheckpointError(f"the checkpoint {path} is misnamed: it is of round {snapshot.round}")
            except CheckpointError as error:
                logger.warning("%s", error)
            else:
                return path, snapshot
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {folder} can be used; see the warnings. Remove them to "
                "begin anew."
            )
        return None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _settle(self, action: Callable[[], None]) -> None:
        try:
            action()
        except CheckpointError as error:
            if self._on_error == "stop":
                raise
            logger.warning("%s", error)

    def _write(self, snapshot: Snapshot) -> None:
        path, began = self.path_of(snapshot.round), time.monotonic()
        write(path, snapshot)
        self.longest_write = max(self.longest_write, time.monotonic() - began)
        logger.debug("wrote %s", path)
        self._metrics[path] = snapshot.metric
        try:
            self._remove_old(snapshot.round)
            self._remove_leftovers()
        except OSError as error:
            logger.warning("cannot tidy up %s: %s", self.folder, error)

    def _remove_old(self, newest: int) -> None:
        """Remove all but the newest `keep` and the best, and later rounds, which a resume has taken back."""
        found = sorted(_checkpoints(self.folder))
        current = [path for number, path in found if number <= newest]
        ranked = [(metric, at) for at, path in enumerate(current) if (metric := self._metric(path)) is not None]
        kept = {*current[-self._keep :], *([current[max(ranked)[1]]] if ranked else [])}
        for number, path in found:
            if path not in kept:
                if number > newest:
                    logger.info("removing %s: the run was resumed before it", path)
                path.unlink(missing_ok=True)
                self._metrics.pop(path, None)

    def _metric(self, path: Path) -> float | None:
        if path not in self._metrics:
            self._metrics[path] = read_metric(path)
        return self._metrics[path]

    def _remove_leftovers(self) -> None:
        """Remove temporary files of writers that died; those of a process that lives on this host are left alone."""
        for path in self.folder.glob(".round_*.tmp"):
            match = _TEMPORARY.fullmatch(path.name)
            if match is None:
                continue
            elsewhere = match["host"] != socket.gethostname()
            # One of our own id is ours from before a restart: we are not writing while we are here.
            if elsewhere or int(match["pid"]) == os.getpid() or not process_is_alive(int(match["pid"])):
                logger.info("removing %s, which a process left that died while writing", path)
                path.unlink(missing_ok=True)


def _ranked(snapshot: Snapshot, metric: float | None) -> Snapshot:
    """`snapshot` with its rank, and with a copy of its metrics in which text stands for what cannot be stored.

    Metrics may come from anyone's code, and training does not depend on them: they are no reason to stop a run.
    """
    metrics: dict[str, Any] = {}
    for name, value in snapshot.metrics.items():
        try:
            metrics[str(name)] = copy_state(value)
        except CheckpointError:
            metrics[str(name)] = str(value)
    rank = snapshot.metric if metric is None else float(metric)
    return replace(snapshot, metrics=metrics, metric=None if rank is None or math.isnan(rank) else rank)


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("round_*.h5"):
        match = _NAME.fullmatch(path.name)
        if match is not None and path.is_file():
            yield int(match[1]), path
