"""Every key of a configuration: its type, its range, its default and what it means, in one place.

To add a key, add a field: the checks, `--help`, docs/configuration.md and federation/examples/config.yaml follow from
it (`python -m federation.config_reference` writes the last two). A field marked `OUTSIDE` is left out of
`Config.digest`, because it does not change the model that a round ends with.
"""
# Annotations are read at run time, and as text they would be compiled at each reading.

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from federation.config_secret import Secret, is_secret_name, revealed

OUTSIDE = {"digest": False}
PATH = {"path": True}
Settings = dict[str, Any]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the configuration. Values are fixed; do not change the mappings inside."""

    def to_dict(self) -> dict[str, Any]:
        """The section as dictionaries, lists, text and numbers, under the names of the file; secrets show as `***`."""
        return {info.encode_name: plain(getattr(self, info.name)) for info in msgspec.structs.fields(self)}


class Components(Section, frozen=True, kw_only=True):
    """Which classes take part: registry names, or `package.module:Class`."""

    trainer: Annotated[str, Meta(description="Runs the rounds.", extra={"component": "trainer"})] = (
        "federated.trainer.default")
    learner: Annotated[str | None, Meta(description="Trains on one client's data. null: the one that the aggregator's "
                                        "rule needs, else federated.learner.default.",
                                        extra={"component": "learner", "default": "by aggregator"})] = None
    aggregator: Annotated[str, Meta(description="Turns the clients' updates into new weights.",
                                    extra={"component": "aggregator"})] = "federated.aggregator.fedavg"
    model: Annotated[str, Meta(description="What is trained.", extra={"component": "model"})] = "model.torch.mlp"


class AvailabilityConfig(Section, frozen=True, kw_only=True):
    """When clients can be drawn, for `sampling: availability`. Time starts at 0, in a unit of your choice."""

    trace: Annotated[str | None, Meta(extra=PATH, description="A CSV file with the header `client,start,end` and an interval a "
                                      "line: from when to when a client, given by its index, is available. null: every "
                                      "client is available once a day, at its own hour.")] = None
    period: Annotated[float | None, Meta(gt=0, description="The time after which all repeats. null: a trace is not "
                                         "repeated; without one, a day of 24.")] = None
    round_length: Annotated[float, Meta(gt=0, description="The time from a round to the next. 1: the unit of time is a "
                                        "round.")] = 1.0
    share: Annotated[float, Meta(gt=0, le=1, description="Without a trace: the part of a day that a client is "
                                 "available.")] = 0.5
    peak: Annotated[float, Meta(ge=0, le=1, description="Without a trace: when most are, as a part of a day.")] = 0.5
    spread: Annotated[float, Meta(ge=0, le=1, description="Without a trace: how far, as a part of a day, the middle of "
                                  "a client's hours may be from the peak.")] = 0.5


class LatencyConfig(Section, frozen=True, kw_only=True):
    """How long clients take by the virtual clock: (work_seconds + sample_seconds * samples) * slowness * variation."""

    kind: Annotated[Literal["constant", "uniform", "exponential", "lognormal"] | None,
                    Meta(description="How what a client takes varies from one training to the next. null: no "
                         "model.")] = None
    work_seconds: Annotated[float, Meta(ge=0, le=1e9, description="Seconds for a training.")] = 1.0
    sample_seconds: Annotated[float, Meta(ge=0, le=1e9, description="Seconds more for each of the client's "
                                          "samples.")] = 0.0
    spread: Annotated[float, Meta(ge=0, le=10, description="The variation. uniform: half the width, at most 1, around "
                                  "1; lognormal: the standard deviation of its logarithm, around a median of 1; "
                                  "constant and exponential (with mean 1) have none.")] = 0.0
    client_spread: Annotated[float, Meta(ge=0, le=10, description="How clients differ: the standard deviation of the "
                                         "logarithm of their slowness, which is drawn once for each, with a median of "
                                         "1.")] = 0.0


class CompressionConfig(Section, frozen=True, kw_only=True):
    """Clients' updates in fewer bytes, at some loss, which is the same in every mode."""

    codec: Annotated[Literal["none", "float16", "bfloat16", "int8", "topk"],
                     Meta(description="What a client's change of the model travels as. float16, bfloat16: half the bytes; int8: "
                          "a quarter, rounded at random so that the mean is right; topk: the largest values alone, a `fraction`, "
                          "with their places (8 bytes each); the others are added to the client's next change.")] = "none"
    fraction: Annotated[float, Meta(gt=0, le=1, description="topk: the share of the values that travels.")] = 0.01


class TrainerConfig(Section, frozen=True, kw_only=True):
    """Rounds, cohorts and evaluation."""

    max_rounds: Annotated[int, Meta(ge=1, extra=OUTSIDE, description="Rounds to run. A finished run that is resumed "
                                    "with more goes on; with fewer or as many it is finished.")] = 20
    min_clients: Annotated[int, Meta(ge=1, extra=OUTSIDE, description="Clients that must be there to start (in mode "
                                     "server: `num_clients`), and must succeed for a round to count.")] = 1
    cohort_size: Annotated[int | None, Meta(ge=1, description="Clients drawn for each round; null: all, or what "
                                            "`fraction` says.")] = None
    fraction: Annotated[float | None, Meta(gt=0, le=1, description="Share of the clients drawn for each round, at "
                                           "least one; instead of `cohort_size`.")] = None
    sampling: Annotated[Literal["uniform", "weighted", "round_robin", "availability"],
                        Meta(description="How clients are drawn. uniform: every cohort is equally likely; weighted: "
                             "with probability by samples, without replacement; round_robin: in turn, in an order "
                             "shuffled once; availability: uniformly among those that are available.")] = "uniform"
    availability: Annotated[AvailabilityConfig, Meta(description="When clients can be drawn, for `sampling: "
                                                     "availability`.")] = AvailabilityConfig()
    over_select: Annotated[float | None, Meta(ge=1, description="Draw this many times the clients of a cohort (rounded "
                                              "up), so that the slowest are not waited for. clock virtual: the first "
                                              "`cohort_size` to finish count; real: all that report by the "
                                              "`deadline`.")] = None
    deadline: Annotated[float | None, Meta(gt=0, description="Seconds after which clients of a round that are late do "
                                           "not count. clock real: no further client is begun then, and one that has "
                                           "begun may finish.")] = None
    concurrency: Annotated[int | None, Meta(ge=1, description="Asynchronous training: clients that train at the same "
                                            "time; null: 10.")] = None
    clock: Annotated[Literal["virtual", "real"],
                     Meta(description="Which time decides who is late, and in asynchronous training who is done first. "
                          "virtual: that of `latency`, the same in every run and mode; real: that of the machine, so "
                          "that runs differ.")] = "virtual"
    latency: Annotated[LatencyConfig, Meta(description="How long clients take by the virtual clock.")] = LatencyConfig()
    eval_every: Annotated[int, Meta(ge=1, extra=OUTSIDE, description="Evaluate in every n-th round, and in the "
                                    "last.")] = 1
    evaluate: Annotated[Literal["server", "clients", "both", "none"],
                        Meta(extra=OUTSIDE, description="Where the global model is evaluated: on the server's test "
                             "data, on the clients' (needs `data.client_test_fraction`), on both, or not.")] = "server"
    local_parameters: Annotated[list[str], Meta(description="Names of the model's arrays, or patterns such as `bn*` and "
                                                "`output.*`, that stay with each client (FedBN, FedPer).")] = []
    compression: Annotated[CompressionConfig, Meta(description="Clients' updates in fewer bytes.")] = CompressionConfig()
    server_hosts_clients: Annotated[bool, Meta(extra=OUTSIDE, description="Let rank 0 train clients as well. It "
                                               "always does where it is alone.")] = False
    placement: Annotated[Literal["balanced", "last_rank"],
                         Meta(extra=OUTSIDE, description="How clients are shared among ranks. `last_rank`, all on one, "
                              "is the worst case, for tests.")] = "balanced"
    round_timeout: Annotated[float | None, Meta(gt=0, extra=OUTSIDE, description="Seconds that a step of a round may take; "
                                                "null: no limit. In mode server, a round then closes without the clients that "
                                                "are late; elsewhere, the run ends, or goes on without the rank where it "
                                                "outlives the loss of ranks.")] = None
    connect_timeout: Annotated[float, Meta(gt=0, extra=OUTSIDE, description="Seconds to wait for `min_clients` at the "
                                           "start; in mode server for `num_clients` then, and for `min_clients` "
                                           "where clients were lost later.")] = 60.0


class TransformsConfig(Section, frozen=True, kw_only=True):
    """What happens to samples on their way to a learner. Draws are keyed by (seed, round, client)."""

    crop: Annotated[int, Meta(ge=0, description="Training images get a border of so many pixels of zeros, and are cut out "
                              "at a random place.")] = 0
    flip: Annotated[bool, Meta(description="Left and right change places in half of the training images.")] = False
    mean: Annotated[float | list[float], Meta(description="Taken off every value: a number, or one a channel.")] = 0.0
    std: Annotated[float | list[float], Meta(description="Every value is divided by it: a number, or one a "
                                             "channel.")] = 1.0
    noise: Annotated[float, Meta(ge=0, description="Feature skew: client i of N gets Gaussian noise of variance "
                                 "noise * (i + 1) / N on its samples.")] = 0.0
    rotations: Annotated[Literal[1, 2, 4], Meta(description="Feature skew: client i's images are turned by i modulo "
                                                "`rotations` quarter turns (2: half turns).")] = 1


class DataConfig(Section, frozen=True, kw_only=True):
    """What is learned from, and how it is split among the clients."""

    enabled: Annotated[bool, Meta(description="false, for a server of a network: clients bring their own data.")] = True
    dataset: Annotated[str, Meta(extra=PATH, description="A data set's name, the path of a file, or package.module:factory; see "
                                 "`python -m federation.data list` and docs/data.md.")] = "digits"
    root: Annotated[str | None, Meta(extra=OUTSIDE | PATH, description="Folder that data files are looked for in; null: the "
                                     "current one.")] = None
    cache: Annotated[str | None, Meta(extra=OUTSIDE | PATH, description="Folder in which data files are kept as arrays that all "
                                      "processes of a machine share; null: `~/.cache/federation` (or where XDG_CACHE_HOME "
                                      "says); off: every process has its own copy.")] = None
    dataset_config: Annotated[Settings, Meta(description="Settings of the data set.")] = {}
    partitioner: Annotated[str, Meta(description="How the training samples are split among the clients.")] = "iid"
    partitioner_config: Annotated[Settings, Meta(description="Settings of the partitioner, such as "
                                                 "`alpha: 0.3`.")] = {}
    test_fraction: Annotated[float, Meta(ge=0, lt=1, description="Share of the samples kept on the server as test "
                                         "data, where the data set has none of its own.")] = 0.2
    validation_fraction: Annotated[float, Meta(ge=0, lt=1, description="Share of the training samples kept on the server "
                                               "as validation data; metrics of these begin with `validation_`, and the best "
                                               "checkpoint is chosen by them.")] = 0.0
    client_test_fraction: Annotated[float, Meta(ge=0, lt=1, description="Share of its samples that each client keeps "
                                                "as test data.")] = 0.0
    client_validation_fraction: Annotated[float, Meta(ge=0, lt=1, description="Share of its samples that each client "
                                                      "keeps as validation data.")] = 0.0
    transforms: Annotated[TransformsConfig, Meta(description="What happens to samples on their way to a "
                                                 "learner.")] = TransformsConfig()


class CheckpointConfig(Section, frozen=True, kw_only=True, rename={"async_": "async"}):
    """Saving a run, so that `--resume` can go on with it."""

    every: Annotated[int, Meta(ge=1, description="Write one after every n-th round, and after the last.")] = 1
    keep: Annotated[int, Meta(ge=1, description="How many of the newest stay, beside the best.")] = 3
    async_: Annotated[bool, Meta(description="Write beside the training, not between two rounds.")] = True
    on_error: Annotated[Literal["raise", "warn"], Meta(description="What a checkpoint that cannot be written does: "
                                                       "end the run, or warn and go on.")] = "raise"


class TrackerConfig(Section, frozen=True, kw_only=True):
    """Where metrics go beside `metrics.jsonl`. `tracker: NAME` is short for `tracker: {name: NAME}`."""

    name: Annotated[Literal["auto", "none", "off", "tensorboard", "mlflow", "wandb"],
                    Meta(description="auto: tensorboard where it is installed. off is another word for none.")] = "auto"
    required: Annotated[bool, Meta(description="true: a tracker that fails ends the run, where it else is a "
                                   "warning.")] = False
    uri: Annotated[str | None, Meta(description="mlflow: the tracking server or file store.")] = None
    experiment: Annotated[str | None, Meta(description="mlflow: the experiment's name.")] = None
    project: Annotated[str | None, Meta(description="wandb: the project.")] = None
    entity: Annotated[str | None, Meta(description="wandb: the user or team.")] = None
    mode: Annotated[Literal["online", "offline"] | None, Meta(description="wandb: whether to send at once.")] = None
    run_name: Annotated[str | None, Meta(description="mlflow and wandb: what the run is called.")] = None
    api_key: Annotated[Secret | None, Meta(description="wandb: a secret, best given as '${env:WANDB_API_KEY}'.")] = None

    def settings(self) -> dict[str, Any]:
        """The settings that are given, by name, the secrets' values among them."""
        names = [info.name for info in msgspec.structs.fields(self) if info.name not in ("name", "required")]
        return revealed({name: getattr(self, name) for name in names if getattr(self, name) is not None})


class TlsConfig(Section, frozen=True, kw_only=True):
    """Certificates, as paths of PEM files."""

    ca: Annotated[str | None, Meta(extra=PATH, description="The authority that signed the other side's certificate; null: the "
                                   "system's.")] = None
    cert: Annotated[str | None, Meta(extra=PATH, description="This side's certificate; a server needs one.")] = None
    key: Annotated[str | None, Meta(extra=PATH, description="This side's private key.")] = None


class TransportConfig(Section, frozen=True, kw_only=True):
    """How ranks, and servers and clients, reach each other."""

    mode: Annotated[Literal["auto", "memory", "processes", "mpi", "grpc"],
                    Meta(description="auto: what the run's mode needs. Any other must agree with it.")] = "auto"
    max_chunk_bytes: Annotated[int, Meta(ge=64, lt=2**31, description="Largest piece that one MPI call moves, in "
                                         "bytes.")] = 2**30
    address: Annotated[str | None, Meta(description="host:port of the server, in modes server and client.")] = None
    tls: Annotated[TlsConfig, Meta(description="Certificates.")] = TlsConfig()
    token: Annotated[Secret | None, Meta(description="A secret that clients show to the server.")] = None
    tokens: Annotated[dict[str, Secret], Meta(description="On the server: a secret for each client, by its name (a share of "
                                              "the partition is called client_0, client_1, ...).")] = {}
    clients: Annotated[list[str] | None, Meta(description="On the server: the names that may come in. null: any.")] = None
    patience: Annotated[float | None, Meta(gt=0, description="On a client: how long it tries to reach a server that is not "
                                           "there, or waits for one that does not answer when it comes, in seconds. null: for "
                                           "ever.")] = 60.0
    resume_seconds: Annotated[float, Meta(ge=0, description="On the server: how long a client whose connection is cut may take to "
                                          "come back, and go on in the middle of a message. After that it is lost.")] = 10.0
    compression: Annotated[Literal["none", "zstd"], Meta(description="zstd: what this side sends over a network is made smaller, "
                                                         "without loss; see also "
                                                         "`trainer_config.compression`.")] = "none"
    monitor: Annotated[str | None, Meta(description="On the server: host:port at which /metrics (for Prometheus) and /health are "
                                        "served, in clear and to everyone; best 127.0.0.1:9100. null: nowhere.")] = None
    max_message_bytes: Annotated[int, Meta(ge=1, description="On the server: the largest array that is taken from a client "
                                           "whose size is not known before.")] = 2**30
    insecure: Annotated[bool, Meta(description="true: without TLS, readable for the whole network.")] = False


class LogConfig(Section, frozen=True, kw_only=True):
    """What is said on standard error while a run goes on."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"],
                     Meta(description="From which level on rank 0 speaks. The others speak from WARNING on; DEBUG opens all of "
                          "them. `--quiet` means WARNING.")] = "INFO"
    format: Annotated[Literal["text", "json"], Meta(description="text: for people; json: an object a line, with time, rank, round, "
                                                    "level, logger and message.")] = "text"


class TimerConfig(Section, frozen=True, kw_only=True):
    """Where the time goes."""

    trace: Annotated[bool, Meta(description="Write a trace of every rank's phases into the run's folder.")] = False


class Config(Section, frozen=True, kw_only=True):
    """A whole configuration, checked, with its defaults filled in."""

    role: Annotated[Literal["server", "client"] | None,
                    Meta(extra=OUTSIDE | {"default": "by mode"}, description="Which side of a run across machines this "
                         "is. null: client in mode client, else server.")] = None
    mode: Annotated[Literal["auto", "serial", "parallel", "mpi", "server", "client", "distributed"],
                    Meta(extra=OUTSIDE, description="auto: mpi under an MPI launcher with more than one rank, else "
                         "serial. distributed: server or client, as role says.")] = "auto"
    num_clients: Annotated[int, Meta(ge=1, lt=2**31, description="Clients that the data are split among.")] = 10
    client_id: Annotated[int | str | None, Meta(ge=0, extra=OUTSIDE, description="In mode client: the index of its "
                                                "share of the data, or a name where its data are its own.")] = None
    seed: Annotated[int, Meta(ge=0, lt=2**63, description="All randomness follows from it.")] = 0
    components: Annotated[Components, Meta(description="Which classes take part.")] = Components()
    trainer_config: Annotated[TrainerConfig, Meta(description="Rounds, cohorts, evaluation.")] = TrainerConfig()
    learner_config: Annotated[Settings, Meta(description="Settings of the learner: the keyword arguments of its "
                                             "class.")] = {}
    aggregator_config: Annotated[Settings, Meta(description="Settings of the aggregator.")] = {}
    model_config: Annotated[Settings, Meta(description="Settings of the model. Sizes that are left out are taken "
                                           "from the data.")] = {}
    data: Annotated[DataConfig, Meta(description="What is learned from.")] = DataConfig()
    reduction: Annotated[Literal["exact", "float32", "float64"],
                         Meta(description="How updates are summed. exact: 64-bit fixed point, the same bits in any "
                              "order; float32: half the bytes.")] = "exact"
    on_divergence: Annotated[Literal["drop", "raise"], Meta(description="What NaN or infinity in a client's "
                                                            "update does: leave it out with a warning, or end the "
                                                            "run.")] = "drop"
    threads: Annotated[int | Literal["auto"], Meta(ge=1, le=4096, description="Compute threads for each process. auto follows "
                                                   "OMP_NUM_THREADS and the cores, and bits may depend on it.")] = 1
    num_workers: Annotated[int | None, Meta(ge=1, le=4096, extra=OUTSIDE, description="Processes in mode parallel; null: the "
                                            "cores that this process may use.")] = None
    output_dir: Annotated[str, Meta(extra=OUTSIDE | PATH | {"default": "runs/<name of the file>"},
                                    description="The run's folder, from the current one.")] = "runs/run"
    overwrite: Annotated[bool, Meta(extra=OUTSIDE, description="true: a new run takes the place of another in its "
                                    "folder.")] = False
    checkpoint: Annotated[CheckpointConfig, Meta(extra=OUTSIDE, description="Saving a run.")] = CheckpointConfig()
    tracker: Annotated[TrackerConfig, Meta(extra=OUTSIDE, description="Where metrics go: a name, or these keys.")] = (
        TrackerConfig())
    transport: Annotated[TransportConfig, Meta(extra=OUTSIDE, description="How processes reach each other.")] = (
        TransportConfig())
    timer: Annotated[TimerConfig, Meta(extra=OUTSIDE, description="Where the time goes.")] = TimerConfig()
    log: Annotated[LogConfig, Meta(extra=OUTSIDE, description="What is said on standard error.")] = LogConfig()
    plugins: Annotated[list[str], Meta(extra=OUTSIDE, description="Modules, or .py files, to import: they register "
                                       "components.")] = []

    def digest(self) -> str:
        """SHA-256, in hex, of what decides the model after a round: equal digests give equal bits.

        Left out are the fields marked `OUTSIDE` (where, how and how long the run is executed, watched and saved) and
        secrets.
        """
        text = json.dumps(_decisive(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def secrets(self) -> list[str]:
        """The values of all secrets here, for a log that has to mask them."""
        return sorted({secret.reveal() for secret in _secrets(self) if not secret.is_masked})


def plain(value: object) -> Any:
    """`value` as dictionaries, lists, text and numbers; secrets as what stands for them."""
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, Secret):
        return value.shown
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def is_outside(kind: type[Section], name: str) -> bool:
    """Whether field `name` of section `kind` is left out of the digest."""
    metadata = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
    return any((item.extra or {}).get("digest") is False for item in metadata if isinstance(item, Meta))


def _decisive(value: object) -> Any:
    if isinstance(value, Section):
        return {info.encode_name: _decisive(getattr(value, info.name)) for info in msgspec.structs.fields(value)
                if not is_outside(type(value), info.name)}
    if isinstance(value, Mapping):
        return {key: _decisive(item) for key, item in value.items() if not is_secret_name(key)}
    return plain(value)


def _secrets(value: object) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, Section):
        for info in msgspec.structs.fields(value):
            yield from _secrets(getattr(value, info.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item)
