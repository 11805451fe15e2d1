"""What a run leaves behind: the round's record in every place that wants it, and checkpoints when they are due."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from federation.infra.checkpoint import Checkpoints, Snapshot
from federation.infra.progress import Progress
from federation.infra.run_folder import RunFolder
from federation.infra.tracker import NoTracker, Tracker


class Recorder:
    """Writes to whatever it was given: a run folder, a tracker, a progress display, checkpoints. Rank 0 only."""

    def __init__(self, folder: RunFolder | None = None, tracker: Tracker | None = None, progress: Progress | None = None,
                 checkpoints: Checkpoints | None = None) -> None:
        self.folder = folder
        self.tracker = tracker or NoTracker()
        self.progress = progress
        self.checkpoints = checkpoints
        self.last: Mapping[str, Any] = {}

    def record(self, row: Mapping[str, Any]) -> None:
        """Keep the record of one round, first of all in `metrics.jsonl`."""
        self.last = row
        if self.folder is not None:
            self.folder.log_metrics(row)
        self.tracker.log(row["round"], row)
        if self.progress is not None:
            self.progress.update(row)

    def checkpoint(self, number: int, snapshot: Callable[[], Snapshot], *, last: bool = False) -> None:
        """Save a checkpoint of round `number` if one is due; it is written in the background."""
        if self.checkpoints is not None and (last or self.checkpoints.due(number)):
            self.checkpoints.save(snapshot(), metric=self.last.get("accuracy"))

    def close(self) -> None:
        """Wait for what is being written, and close everything."""
        try:
            if self.checkpoints is not None:
                self.checkpoints.close()
        finally:
            self.tracker.close()
            if self.progress is not None:
                self.progress.close()
