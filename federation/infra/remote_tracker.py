"""MLflow and Weights & Biases, kept off the critical path: they talk to a network that may not answer."""

from __future__ import annotations

import importlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.infra.logger import register_secret
from federation.infra.tracker import NoTracker, ScalarFilter, Tracker

logger = logging.getLogger(__name__)

_PATIENCE_S = 30.0  # for a required tracker to start, and for any to send the rest at the end
_QUEUE_ROUNDS = 10_000  # rounds that may wait for a slow server before they are dropped


class Background:
    """Runs the tracker that `make` gives in a thread of its own, so that no call here ever waits for it.

    A failure is one warning, after which nothing more is recorded; where the tracker is `required`, it is a
    FederationError: at once when it does not start within 30 s, else at the next call. So are rounds that are lost
    because the tracker does not keep up.
    """

    patience = _PATIENCE_S

    def __init__(self, name: str, make: Callable[[], Tracker], required: bool) -> None:
        self._name = name
        self._required = required
        self._error: BaseException | None = None
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_QUEUE_ROUNDS)
        self._started = threading.Event()
        self._dropped = False
        self._is_closing = False
        # A daemon: a tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(make,), name=f"tracker-{name}", daemon=True)
        self._thread.start()
        if required:
            if not self._started.wait(_PATIENCE_S):
                raise FederationError(f"tracker {name}, which is required, did not start within {_PATIENCE_S:.0f} s")
            self._raise()

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        kept = dict(metrics)
        self._put(lambda tracker: tracker.log(round, kept))

    def resume_from(self, round: int) -> None:
        self._put(lambda tracker: tracker.resume_from(round))

    def close(self) -> None:
        """Send the rest, for at most 30 s."""
        if self._thread.is_alive():
            self._is_closing = True
            self._put(None)
            self._thread.join(_PATIENCE_S)
            if self._thread.is_alive():
                self._lose(f"not all was sent after {_PATIENCE_S:.0f} s, and is given up")
        self._raise()

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        self._raise()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if call is not None and not self._dropped:
                self._dropped = True
                self._lose("does not keep up, rounds are dropped")

    def _lose(self, what: str) -> None:
        if self._required:
            raise FederationError(f"tracker {self._name}, which is required, failed: {what}")
        logger.warning("tracker %s: %s", self._name, what)

    def _raise(self) -> None:
        if self._required and self._error is not None:
            raise FederationError(f"tracker {self._name}, which is required, failed: {self._error}") from self._error

    def _run(self, make: Callable[[], Tracker]) -> None:
        tracker: Tracker = NoTracker()
        call: Callable[[Tracker], None] | None = lambda _: None  # noqa: E731 - the first turn makes the tracker
        try:
            tracker = make()
            self._started.set()
            while call is not None:
                # A queue that was full has had no room for the None that ends it.
                call = None if self._is_closing and self._calls.empty() else self._calls.get()
                if call is not None:
                    call(tracker)
            tracker.close()
        except Exception as error:  # whatever a third party raises
            self._error = error
            if not self._required:
                name, kind = self._name, type(error).__name__
                logger.warning("tracker %s failed and is off from here on: %s: %s", name, kind, error)
                logger.debug("tracker %s", name, exc_info=error)
        finally:
            self._started.set()


class MlflowTracker:
    """One MLflow run, for Background. A resumed run is a run of its own, tagged with the round that it goes on from.

    uri: of the tracking server or database; default: a database file in `folder`. The experiment is created where
    it does not exist, also when two jobs do that in the same moment.
    """

    patience = math.inf

    def __init__(
        self, folder: Path, uri: str | None = None, experiment: str = "federation", run_name: str | None = None
    ) -> None:
        mlflow = importlib.import_module("mlflow")
        self._metric: Any = importlib.import_module("mlflow.entities").Metric
        if uri is None:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            try:
                identity = self._client.create_experiment(experiment)
            except mlflow.exceptions.MlflowException:
                found = self._client.get_experiment_by_name(experiment)
                if found is None:
                    raise
        self._run: str = self._client.create_run(
            found.experiment_id if found is not None else identity, run_name=run_name
        ).info.run_id
        self._scalars = ScalarFilter()

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        values = [self._metric(tag, value, now, round) for tag, value in self._scalars(metrics).items()]
        self._client.log_batch(self._run, metrics=values)

    def resume_from(self, round: int) -> None:
        self._client.set_tag(self._run, "resumed_from_round", str(round))

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandbTracker:
    """One Weights & Biases run, for Background. A resumed run is a run of its own, with `resumed_from_round` in its config.

    mode: online, offline or disabled; default: what wandb's own settings say.
    """

    patience = math.inf

    def __init__(
        self,
        folder: Path,
        project: str = "federation",
        entity: str | None = None,
        run_name: str | None = None,
        mode: str | None = None,
        api_key: str | None = None,
    ) -> None:
        wandb: Any = importlib.import_module("wandb")
        if api_key is not None:
            register_secret(api_key)
            wandb.login(key=api_key)
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(project=project, entity=entity, name=run_name, mode=mode, dir=str(folder))
        self._scalars = ScalarFilter()

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        self._run.log(self._scalars(metrics), step=round)

    def resume_from(self, round: int) -> None:
        self._run.config.update({"resumed_from_round": round})

    def close(self) -> None:
        self._run.finish()
