"""What a run leaves behind: the round's record in every place that wants it, and checkpoints when they are due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from federation.infra.checkpoint import Checkpoints, Snapshot
from federation.infra.monitor import Monitor
from federation.infra.progress import Progress
from federation.infra.run_folder import RunFolder
from federation.infra.tracker import NoTracker, Tracker
from federation.infra.walltime import OutOfTime, WallTime


class Recorder:
    """Writes to whatever it was given: a run folder, a tracker, a progress display, checkpoints. Rank 0 only.

    `wall_time` limits the run: the round after which no other fits ends with a checkpoint, and `check_time` then raises.
    """

    def __init__(self, folder: RunFolder | None = None, tracker: Tracker | None = None, progress: Progress | None = None,
                 checkpoints: Checkpoints | None = None, run_id: str = "", config_digest: str = "",
                 wall_time: WallTime | None = None, monitor: Monitor | None = None) -> None:
        self.folder = folder
        self.tracker = tracker or NoTracker()
        self.progress = progress
        self.checkpoints = checkpoints
        self.monitor = monitor
        self.last: Mapping[str, Any] = {}
        self._run_id = run_id
        self._config_digest = config_digest
        self._wall_time = wall_time or WallTime()
        self._shortage: str | None = None

    def record(self, row: Mapping[str, Any]) -> None:
        """Keep the record of one round, first of all in `metrics.jsonl`."""
        self.last = row
        if self.folder is not None:
            self.folder.log_metrics(row)
        self.tracker.log(row["round"], row)
        if self.monitor is not None:
            self.monitor.record(row)
        if self.progress is not None:
            self.progress.update(row)
        self._wall_time.end_round()
        self._shortage = self._shortage_of_time()

    def check_time(self) -> None:
        """Before a round: raise OutOfTime where the job has no time for it. All that was trained is in a checkpoint."""
        self._wall_time.begin()
        if self.progress is not None:
            self.progress.begin()
        if self._shortage is not None and self.checkpoints is not None:
            raise OutOfTime(self._shortage)

    def has_time(self) -> bool:
        """Whether the job has time for another round after the one that is not recorded yet, as far as that is known."""
        return self._shortage is None and self._shortage_of_time(under_way=True) is None

    def is_due(self, number: int, *, last: bool = False) -> bool:
        """Whether round `number` ends with a checkpoint."""
        return self.checkpoints is not None and (last or self._shortage is not None or self.checkpoints.due(number))

    def checkpoint(self, snapshot: Snapshot, lends_weights: bool = False) -> None:
        """Save `snapshot`, of the round just recorded; it is written in the background. One that `lends_weights` does so until
        `settle`."""
        if self.checkpoints is not None:
            self.checkpoints.save(self._complete(snapshot), self._metric(), lends_weights)

    def settle(self) -> None:
        """Wait for what is being written."""
        if self.checkpoints is not None:
            self.checkpoints.flush()

    def checkpoint_now(self, snapshot: Snapshot | None) -> Path | None:
        """Write `snapshot` before this returns, for a run that is about to end; its path, None without checkpoints.

        Where there is no snapshot, the newest checkpoint stands, once what is being written is on the disk.
        """
        if self.checkpoints is None:
            return None
        if snapshot is None:
            latest = self.checkpoints.latest()
            return None if latest is None else latest[0]
        return self.checkpoints.save_now(self._complete(snapshot), metric=self._metric())

    def latest(self) -> Snapshot | None:
        """The newest checkpoint, once what is being written is on the disk; None where there is none."""
        latest = None if self.checkpoints is None else self.checkpoints.latest()
        return None if latest is None else latest[1]

    def resume_from(self, number: int, row: Mapping[str, Any]) -> None:
        """Forget what was recorded after round `number`, whose record is `row`."""
        self.last = row
        if self.folder is not None:
            self.folder.resume_from(number, row or None)
        self.tracker.resume_from(number)

    def close(self) -> None:
        """Wait for what is being written, and close everything, whichever of them fails."""
        try:
            if self.checkpoints is not None:
                self.checkpoints.close()
        finally:
            try:
                self.tracker.close()
            finally:
                if self.progress is not None:
                    self.progress.close()
                if self.monitor is not None:
                    self.monitor.close()

    def _shortage_of_time(self, under_way: bool = False) -> str | None:
        """See WallTime.shortage."""
        longest_write = self.checkpoints.longest_write if self.checkpoints is not None else 0.0
        return self._wall_time.shortage(longest_write, self.tracker.patience, under_way)

    def _metric(self) -> Any:
        """What the best checkpoint is chosen by."""
        return self.last.get("validation_accuracy", self.last.get("accuracy"))

    def _complete(self, snapshot: Snapshot) -> Snapshot:
        metrics = self.last if self.last.get("round") == snapshot.round else {}
        return replace(snapshot, metrics=metrics, run_id=self._run_id, config_digest=self._config_digest)
