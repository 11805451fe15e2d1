"""Where the samples of a data set come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.data.cache import ArrayCache
from federation.data.content import Checked, check
from federation.data.dataset import Dataset
from federation.data.formats.raw import Content


@dataclass(frozen=True)
class Request:
    """What is asked of a source: a data set by its name, with its files in `root`, its draws keyed by `seed`."""

    name: str
    root: Path = Path(".")
    seed: int = 0


@dataclass(frozen=True, eq=False)
class DataProvider:
    """One data set, not read yet.

    `read` returns its content, or raises DataError. `files` are what it reads: with `facts` (JSON values, all else that
    the content depends on) they are the key of the copy that is converted once for all processes; without files, every
    process reads for itself. `task` and `num_classes` are what the user says of the samples, see `content.check`.
    """

    name: str
    read: Callable[[], Content | Dataset]
    files: tuple[Path, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    num_classes: int | None = None

    def dataset(self, cache: ArrayCache | None = None) -> tuple[Dataset, bool]:
        """The data set, and whether it has a test set of its own. Raises DataError."""
        if cache is not None and self.files:
            stored = cache.get(Path(self.name).name, self._key(), self._make)
            facts = stored.facts
            found = Checked(stored.arrays, facts["num_classes"], facts["scale"])
            return found.dataset(self.name, is_stored=True), found.has_test
        content = self.read()
        if isinstance(content, Dataset):
            return content, True
        found = self._checked(content)
        return found.dataset(self.name, is_stored=False), found.has_test

    def _key(self) -> dict[str, Any]:
        """Files count by place, size and time of change, so that a file that was replaced is converted again."""
        files = [[str(path), status.st_size, status.st_mtime_ns]
                 for path, status in ((path.resolve(), path.stat()) for path in self.files)]
        return {"files": files, "facts": dict(self.facts), "task": self.task, "num_classes": self.num_classes}

    def _make(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        content = self.read()
        assert isinstance(content, Content), "what is read from files is no Dataset yet"
        found = self._checked(content)
        return found.arrays, {"num_classes": found.num_classes, "scale": found.scale}

    def _checked(self, content: Content) -> Checked:
        return check(content, self.name, task=self.task, num_classes=self.num_classes)
