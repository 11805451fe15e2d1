"""Everything that federation raises on purpose.

    FederationError                 one class to catch
    +-- ConfigError                 bad configuration or usage; lists every problem found (exit status 2)
    +-- DataError                   a data set or a partition cannot be had as asked
    +-- CheckpointError             a checkpoint cannot be written, read or verified
    +-- UpdateError                 an update does not fit the model
    |   +-- Diverged                it holds NaN or infinity
    +-- ClientError                 a client's own code raised; carries its traceback
    +-- RoundError                  a round cannot be completed (too few clients, no samples, time is up)
        +-- TooFewClients           they have been waited for as long as is allowed

`node_comm` has a tree of its own, below CommError.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: What code of a user's own may raise. A sys.exit in it, as in a script, is no end of the run.
FAULTS = (Exception, SystemExit)


class FederationError(Exception):
    """Base of every error of this package."""


class ConfigError(FederationError):
    """Bad configuration or usage. `problems` holds one sentence each; all that were found, not only the first."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(FederationError):
    """A data set or a partition cannot be had as asked."""


class CheckpointError(FederationError):
    """A checkpoint cannot be written, read or verified; the message names the file."""


class UpdateError(FederationError):
    """An update does not fit the model: names the client, the parameter, and what was given and wanted."""


class Diverged(UpdateError):
    """An update that holds NaN or infinity in `parameter`, sent by `client_id`."""

    def __init__(self, client_id: str, parameter: str) -> None:
        self.client_id = client_id
        self.parameter = parameter
        super().__init__(f"the update of {client_id} holds NaN or infinity in {parameter!r}")


class ClientError(FederationError):
    """The code of client `client_id` raised; `traceback` is its traceback as text."""

    def __init__(self, client_id: str, traceback: str) -> None:
        self.client_id = client_id
        self.traceback = traceback
        super().__init__(f"{client_id} failed:\n{traceback}")


class RoundError(FederationError):
    """A round cannot be completed; the global model is as it was before it."""


class TooFewClients(RoundError):
    """Not enough clients have come in time. Another attempt would only wait once more."""


@contextmanager
def exits_are_errors() -> Iterator[None]:
    """Raise an `exit_error` in the place of a SystemExit in the block."""
    try:
        yield
    except SystemExit as leaving:
        raise exit_error(leaving) from leaving


def exit_error(leaving: SystemExit) -> FederationError:
    """What a sys.exit is in code that a run calls, such as an aggregator: not the end of the run, with a status that may be 0, but
    an error that says where it was."""
    where = "a component"
    for frame in traceback.extract_tb(leaving.__traceback__)[-1:]:
        where = f"{frame.name} ({frame.filename}, line {frame.lineno})"
    return FederationError(f"{where} ends the program by sys.exit({leaving.code!r}), and the run is not over: raise an exception "
                           "that says what is wrong")
