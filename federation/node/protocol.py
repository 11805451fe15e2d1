"""What the server's rank and the other ranks say to each other.

A round, seen from a rank: `WeightsFollow` and a broadcast (where it reads them in place, `WeightsFollow` alone, in one frame
with what comes next); `Fit`, answered with a `FitReport`; `Collect` and one reduction (or `FetchUpdate`, answered with an
`Update`, for each client whose row is wanted; or `Columnwise`, `Gram` and `Combine`, each followed by its collectives, for
rules that work on all rows); `Evaluate`, answered with an `EvaluateReport`. A rank can get more than one `Fit` in a round,
see Handout. Before `Fit` and `Evaluate`, `Move` brings clients that keep state to the rank where they are wanted. `Train` has
one client trained from weights of its own, without any round. `Call` runs one client's learner for a trainer of the user's own.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from federation.core.aggregator import Needs, Weighting
from federation.core.columns import Kernel
from federation.core.compression import Compression
from federation.data.manager import Part
from federation.infra.trace import Span
from node_comm.message import Message


class ClientRecord(msgspec.Struct, frozen=True, array_like=True):
    """A client that lives on the rank that says so."""

    client_id: str
    num_samples: int


class Hello(Message, frozen=True):
    """A rank introduces itself, and the clients that it brings along.

    `setup` names what must agree between ranks (configuration digest, library versions).
    """

    node_id: str
    clients: list[ClientRecord]
    setup: dict[str, str]


class Welcome(Message, frozen=True):
    """The server has registered the rank."""

    server_id: str


class Leave(Message, frozen=True):
    """A rank's clients leave the run."""


class WeightsFollow(Message, frozen=True):
    """New global weights; what clients proposed to keep is theirs now.

    `layout` is `Layout.to_dict`; its first `num_model` arrays are the model's, the others are shared beside it. The weights are
    to be read at `place` (see Transport), until those that follow; without one they travel beside this message, or come next,
    in a broadcast.
    """

    layout: dict[str, Any]
    num_model: int
    #: Over a network, what was proposed counts for these clients alone.
    keeps: list[str] | None = None
    place: bytes | None = None


class Fit(Message, frozen=True):
    """Train these clients, in this order, from the weights of the last broadcast.

    `total_samples` and `cohort_size` are those of the whole cohort: they set the scale of the exact sum, with the `peaks` of
    the weights in each array, which ranks look for themselves where they are not told. `weighs` says that the aggregator
    weighs each update by a rule of its own. `deadline` seconds after it has begun, a rank begins no further client; those
    are in no report. With `goes_on`, these clients are trained beside those of the order before, of the same round: sums
    and rows go on. With a `compression`, updates count as a receiver unpacks them; where they are to be fetched `packed`,
    they are kept for that. A report that `brings` the rank's sum says where it is, if that is one word.
    """

    round: int
    clients: list[str]
    config: dict[str, Any]
    needs: Needs
    weighting: Weighting
    weighs: bool
    reduction: Literal["exact", "float32", "float64"]
    total_samples: int
    cohort_size: int
    deadline: float | None = None
    compression: Compression = Compression()
    packed: bool = False
    brings: bool = False
    goes_on: bool = False
    peaks: list[float] | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """A client that has contributed.

    `divisor` is its part of what the sum is divided by, see Contribution; `keeps` says that it keeps state.
    """

    client_id: str
    num_samples: int
    seconds: float
    divisor: float
    keeps: bool


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """A client that has not: its code raised, or its update is not finite, in `parameter`."""

    client_id: str
    kind: Literal["failed", "diverged"]
    reason: str
    details: str
    parameter: str = ""


class FitReport(Message, frozen=True):
    """What a rank's share of a round came to.

    `metrics` is `MetricSum.to_dict`; `limbs` the number of words in the widest sum; `refused` names an update that
    does not fit the model, which ends the run (over a network, its client's part in the round). `spans` are what the rank did
    since it reported last, where a trace is wanted.
    A sum that was asked for with the report is to be read at `place`, until the next order; else it is beside the report.
    """

    outcomes: list[Outcome]
    problems: list[Problem]
    metrics: dict[str, Any]
    limbs: int
    seconds: float
    refused: str = ""
    spans: list[Span] = msgspec.field(default_factory=list)
    place: bytes | None = None


class Collect(Message, frozen=True):
    """Enter one reduction for each of `limbs` words of the sum."""

    round: int
    limbs: int


class FetchSum(Message, frozen=True):
    """Send word `word` of your sum, which has `limbs` words."""

    round: int
    limbs: int
    word: int


class Sum(Message, frozen=True):
    """The word asked for; it travels beside this message."""


class FetchUpdate(Message, frozen=True):
    """Send the update of one client of this round, packed where `Fit` said so."""

    round: int
    client_id: str


class Update(Message, frozen=True):
    """The update asked for; the weights travel beside it."""

    metrics: dict[str, Any]


class Columnwise(Message, frozen=True):
    """Transpose the rows of these clients, which are on these ranks, and send what `kernel` makes of each column."""

    kernel: Kernel
    clients: list[str]
    ranks: list[int]


class Gram(Message, frozen=True):
    """Transpose the rows of these clients, which are on these ranks, and add up their inner products."""

    clients: list[str]
    ranks: list[int]


class Combine(Message, frozen=True):
    """Add up your rows of these clients, times these coefficients, for the `Collect` that follows; `cohort_size` rows in all."""

    coefficients: dict[str, float]
    cohort_size: int


class Combined(Message, frozen=True):
    """The number of words in that sum."""

    limbs: int


class Move(Message, frozen=True):
    """Send the state of clients to other ranks, and wait for that of those in `take`; then answer with `Moved`."""

    give: dict[str, int]
    take: list[str]


class Moved(Message, frozen=True):
    """The clients of `Move` are where they are wanted."""


class ClientState(Message, frozen=True):
    """What a client keeps; the arrays travel beside it, as one buffer of this layout (`Layout.to_dict`)."""

    client_id: str
    layout: dict[str, Any]


class FetchState(Message, frozen=True):
    """Send a copy of what a client keeps, as a `ClientState`; or of what it proposes to keep, once the round commits."""

    client_id: str
    proposed: bool = False


class Evaluate(Message, frozen=True):
    """Evaluate the weights of the last broadcast on these shards of the server's samples, and on these clients' data.

    `part` says on which samples, in both cases.
    """

    round: int
    shards: list[int]
    clients: list[str]
    part: Part = "test"


class EvaluateReport(Message, frozen=True):
    """Exact sums of the metrics (`MetricSum.to_dict`): over the shards, over the clients, and over the clients again
    with their own models, where they have some."""

    shards: dict[str, Any]
    clients: dict[str, Any]
    personal: dict[str, Any]
    problems: list[Problem]
    seconds: float
    spans: list[Span] = msgspec.field(default_factory=list)


class Train(Message, frozen=True):
    """Train one client from the weights beside this message. `number` keys its random draws, as a round's does."""

    client_id: str
    number: int
    config: dict[str, Any]


class Trained(Message, frozen=True):
    """What came of it; the client's weights travel beside it, unless there was a problem.

    `refused` names an update that does not fit the model, or a learner that cannot take part, which ends the run.
    """

    num_samples: int = 0
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    problem: Problem | None = None
    refused: str = ""


class Call(Message, frozen=True):
    """Call `method` of one client's learner, from the weights of the last broadcast."""

    client_id: str
    method: Literal["fit", "evaluate"]
    config: dict[str, Any]
    round: int


class Result(Message, frozen=True):
    """What the call returned; the weights of a fit travel beside it. `problem` where the client's code raised; `keeps`
    says that the client keeps state."""

    num_samples: int = 0
    keeps: bool = False
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    problem: Problem | None = None


class Shutdown(Message, frozen=True):
    """The run is over; the rank answers with `Leave` and ends."""

    reason: str


MESSAGES = (Hello, Welcome, Leave, WeightsFollow, Fit, FitReport, Collect, FetchSum, Sum, FetchUpdate, Update, Columnwise, Gram,
            Combine, Combined, Move, Moved, ClientState, FetchState, Evaluate, EvaluateReport, Train,
            Trained, Call, Result, Shutdown)
