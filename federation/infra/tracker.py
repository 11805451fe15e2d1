"""Where the numbers of a run go besides metrics.jsonl: TensorBoard, MLflow, Weights & Biases, or nowhere.

Only rank 0 makes a tracker. The step of every value is the round, for training and evaluation alike.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from federation.errors import ConfigError, FederationError
from federation.infra.event_file import EventFile
from federation.infra.json_values import as_float

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes one mapping of metrics a round. Nested mappings are flattened: `seconds/fit`."""

    #: The most seconds for which `close` waits for somebody else.
    patience: float

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        """Record `metrics` at step `round`. Text and None are no scalars and are not sent; NaN is."""

    def resume_from(self, round: int) -> None:
        """Forget what was recorded after `round`; called before the first `log`."""

    def close(self) -> None:
        """Bring everything to its place. May be called again."""


class NoTracker:
    """Records nothing."""

    patience = 0.0

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        pass

    def resume_from(self, round: int) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoardTracker:
    """One event file in `folder`, which appears with the first round and is gone on with after a resume."""

    patience = 0.0

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._file: EventFile | None = None
        self._scalars = ScalarFilter()

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = EventFile(self._folder)
        self._file.write(round, self._scalars(metrics))

    def resume_from(self, round: int) -> None:
        self.close()
        self._file = EventFile(self._folder, resume_from=round)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ScalarFilter:
    """Flattens metrics to `{"tag": float}`, without `round`, which is the step.

    None is a missing value and text is no scalar: neither is taken. A warning says so, once a key, for text among
    the metrics themselves; what is nested below them, such as the reasons of failures, is a record and not a metric.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
        scalars: dict[str, float] = {}
        for name, value in metrics.items():
            tag = f"{prefix}{name}"
            if tag == "round":
                continue
            if isinstance(value, Mapping):
                scalars.update(self(value, f"{tag}/"))
            elif (number := as_float(value)) is not None:
                scalars[tag] = number
            elif value is not None and not prefix and tag not in self._warned:
                self._warned.add(tag)
                logger.warning("metric %s is a %s, which the tracker does not take", tag, type(value).__name__)
        return scalars


class Guarded:
    """A tracker of a third party. Its first failure is a warning, after which it records no more: the numbers are in
    metrics.jsonl anyway. Where it is `required`, the failure is a FederationError instead.
    """

    def __init__(self, name: str, tracker: Tracker, required: bool) -> None:
        self._name = name
        self._tracker = tracker
        self._required = required
        self.patience = tracker.patience

    def log(self, round: int, metrics: Mapping[str, Any]) -> None:
        self._attempt(lambda: self._tracker.log(round, metrics))

    def resume_from(self, round: int) -> None:
        self._attempt(lambda: self._tracker.resume_from(round))

    def close(self) -> None:
        self._attempt(self._tracker.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if self._required:
                raise FederationError(f"tracker {self._name}, which is required, failed: {error}") from error
            logger.warning("tracker %s failed and is off from here on: %s: %s", self._name, type(error).__name__, error)
            logger.debug("tracker %s", self._name, exc_info=error)
            self._tracker = NoTracker()


def make_tracker(
    name: str = "auto", folder: Path = Path("tensorboard"), settings: Mapping[str, Any] | None = None,
    required: bool = False,
) -> Tracker:  # fmt: skip
    """The tracker called `name`: auto, tensorboard, mlflow, wandb or none.

    auto: tensorboard where it is installed, else none; the log says which.
    folder: where it may keep files.
    settings: of mlflow (uri, experiment, run_name) and wandb (project, entity, run_name, mode, api_key).
    required: failures end the run. Without, they are warnings, and training never waits for a tracker.

    Raises ConfigError for an unknown name or setting, and where the package of a tracker asked for by name is missing
    or broken; FederationError where a required tracker does not start.
    """
    folder, settings = Path(folder), dict(settings or {})
    if name not in _SETTINGS:
        raise ConfigError(f"tracker {name!r} is not known. Give one of {', '.join(_SETTINGS)}.")
    unknown = sorted(set(settings) - set(_SETTINGS[name]))
    if unknown:
        allowed = ", ".join(_SETTINGS[name]) or "none"
        raise ConfigError(f"tracker {name} has no setting {', '.join(unknown)}. Settings of {name}: {allowed}.")
    if name == "none":
        return NoTracker()
    if name == "auto":
        try:
            importlib.import_module(_PACKAGES["tensorboard"])
        except Exception as error:  # a broken installation raises whatever it likes
            logger.info("tracker: none, as tensorboard cannot be used here (%s)", error)
            return NoTracker()
        logger.info("tracker: tensorboard, in %s", folder)
        name = "tensorboard"
    try:
        importlib.import_module(_PACKAGES[name])
    except Exception as error:
        raise ConfigError(
            f"tracker {name} needs the package {name}, which cannot be imported ({type(error).__name__}: {error}). "
            f"Install it with pip install {name}, or choose another tracker."
        ) from error
    if name == "tensorboard":
        return Guarded(name, TensorBoardTracker(folder), required)

    from federation.infra.remote_tracker import Background, MlflowTracker, WandbTracker

    if name == "mlflow":
        return Background(name, lambda: MlflowTracker(folder, **settings), required)
    return Background(name, lambda: WandbTracker(folder, **settings), required)


_PACKAGES = {"tensorboard": "tensorboard.compat.proto.event_pb2", "mlflow": "mlflow", "wandb": "wandb"}
_SETTINGS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "tensorboard": (),
    "mlflow": ("uri", "experiment", "run_name"),
    "wandb": ("project", "entity", "run_name", "mode", "api_key"),
    "none": (),
}
