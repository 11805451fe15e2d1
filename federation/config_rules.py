"""What must hold between keys. Each rule names the key to change; a rule whose keys were refused already is skipped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from federation.config_schema import (
    AvailabilityConfig,
    CompressionConfig,
    Config,
    LatencyConfig,
    TrackerConfig,
    TrainerConfig,
)
from federation.data.latency import Latency
from federation.data.sampling import cohort_size_of
from federation.errors import ConfigError
from node_comm.addresses import is_loopback

Sound = Callable[..., bool]
Broken = tuple[str, str]

_TRANSPORTS = {"serial": "memory", "parallel": "processes", "mpi": "mpi", "server": "grpc", "client": "grpc"}
_TRACKER_SETTINGS = {"mlflow": ("uri", "experiment", "run_name"),
                     "wandb": ("project", "entity", "mode", "run_name", "api_key")}
#: The modes in which a server and its clients have a configuration each.
NETWORK = ("server", "client", "distributed")
#: The alpha of FedDyn's learner, and of its aggregator, where none is given.
FEDDYN_ALPHA = 0.01
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):([0-9]+)")


def broken_rules(config: Config, sound: Sound) -> Iterator[Broken]:
    """The rules that `config` breaks, as (key, message); `sound(*keys)` says whether none of them was refused."""
    yield from broken_trainer_rules(config.trainer_config, sound)
    if config.mode != "client":
        yield from _clients(config, sound)
    if not config.data.enabled and config.mode not in ("server", "distributed") and sound("data", "data.enabled", "mode"):
        yield "data.enabled", ("false is for a server of a network, whose clients bring their own data; in mode "
                               f"{config.mode} clients train on the data of the configuration, so leave it out")
    yield from _evaluation(config, sound)
    yield from _clients_at_once(config, sound)
    yield from _feddyn(config, sound)
    yield from _steps(config, sound)
    yield from _learner(config, sound)
    yield from _fltrust(config, sound)
    yield from _sides(config, sound)
    yield from _transport(config, sound)
    if config.mode in NETWORK:
        yield from _network(config, sound)
    yield from _tracker(config.tracker, sound)


def broken_trainer_rules(config: TrainerConfig, sound: Sound) -> Iterator[Broken]:
    """The rules within `trainer_config`."""
    size, fraction, least = (f"trainer_config.{name}" for name in ("cohort_size", "fraction", "min_clients"))
    if config.cohort_size is not None and config.fraction is not None and sound(size, fraction):
        yield size, (f"{config.cohort_size}, and fraction: {config.fraction} as well; keep one of the two")
    elif config.cohort_size is not None and config.cohort_size < config.min_clients and sound(size, least):
        yield size, f"{config.cohort_size} is less than min_clients, {config.min_clients}; no round could count"
    given, share = config.compression, "trainer_config.compression.fraction"
    if given.codec != "topk" and given.fraction != CompressionConfig().fraction and sound(
            share, "trainer_config.compression", "trainer_config.compression.codec"):
        yield share, f"{given.fraction:g} is for codec: topk, and codec is {given.codec}; set codec: topk, or leave it out"
    if sound("trainer_config.sampling", "trainer_config.availability"):
        yield from _availability(config, sound)
    if sound("trainer_config.clock", "trainer_config.latency", "trainer_config.latency.kind"):
        yield from _latency(config, sound)
        yield from _lateness(config, sound)


def _availability(config: TrainerConfig, sound: Sound) -> Iterator[Broken]:
    given, default, path = config.availability, AvailabilityConfig(), "trainer_config.availability"
    if given != default and config.sampling != "availability":
        yield path, f"is for sampling: availability, and sampling is {config.sampling}; leave one of them out"
    if given.trace is not None and sound(f"{path}.trace"):
        for name in ("share", "peak", "spread"):
            if getattr(given, name) != getattr(default, name) and sound(f"{path}.{name}"):
                yield f"{path}.{name}", "describes days without a trace, and there is a trace; leave one of them out"


def _latency(config: TrainerConfig, sound: Sound) -> Iterator[Broken]:
    given, path = config.latency, "trainer_config.latency"
    if given.kind is None:
        if given != LatencyConfig():
            yield f"{path}.kind", "is missing: which of constant, uniform, exponential and lognormal is it?"
    elif config.clock == "real":
        yield path, "is for the virtual clock, and clock is real; leave one of them out"
    elif sound(*(f"{path}.{name}" for name in ("work_seconds", "sample_seconds", "spread", "client_spread"))):
        try:
            Latency(**given.to_dict())
        except ConfigError as error:
            for text in error.problems:
                yield path, text.removeprefix("latency: ")


def _lateness(config: TrainerConfig, sound: Sound) -> Iterator[Broken]:
    factor, deadline = "trainer_config.over_select", "trainer_config.deadline"
    is_unlimited = config.cohort_size is None and config.fraction is None
    if config.over_select is not None and is_unlimited and sound(factor, "trainer_config.cohort_size",
                                                                 "trainer_config.fraction"):
        yield factor, f"{config.over_select:g} times all clients cannot be drawn; set cohort_size or fraction as well"
    if config.clock == "virtual" and config.latency == LatencyConfig():
        for path, value in ((factor, config.over_select), (deadline, config.deadline)):
            if value is not None and sound(path):
                yield path, (f"{value:g}: the virtual clock needs to know how long clients take; set latency, such as "
                             "{kind: lognormal, spread: 0.5}, or clock: real")
    if config.clock == "real" and sound(factor, deadline):
        if config.over_select is not None and config.deadline is None:
            yield factor, (f"{config.over_select:g}: by the real clock all clients that report by the deadline count, "
                           "and there is no deadline; set it, or clock: virtual")
        if (config.deadline is not None and config.round_timeout is not None and config.round_timeout <= config.deadline
                and sound("trainer_config.round_timeout")):
            yield deadline, (f"{config.deadline:g} s is not before round_timeout, {config.round_timeout:g} s, which "
                             "ends the run; set a longer round_timeout, or none")


def _clients(config: Config, sound: Sound) -> Iterator[Broken]:
    trainer, total = config.trainer_config, config.num_clients
    size, fraction, least = (f"trainer_config.{name}" for name in ("cohort_size", "fraction", "min_clients"))
    if not sound("num_clients", "trainer_config"):
        return
    if trainer.min_clients > total and sound(least):
        yield least, f"{trainer.min_clients} is more than num_clients, {total}; wanted is at most num_clients"
    if trainer.cohort_size is not None and trainer.cohort_size > total and sound(size):
        yield size, f"{trainer.cohort_size} is more than num_clients, {total}; wanted is at most num_clients"
    if trainer.fraction is not None and trainer.cohort_size is None and sound(fraction, least):
        cohort = cohort_size_of(trainer.fraction, total)
        if cohort < trainer.min_clients <= total:
            yield fraction, (f"{trainer.fraction} of {total} clients is {cohort}, less than min_clients, "
                             f"{trainer.min_clients}; no round could count")


def _evaluation(config: Config, sound: Sound) -> Iterator[Broken]:
    where, share = "trainer_config.evaluate", "data.client_test_fraction"
    wanted = config.trainer_config.evaluate in ("clients", "both")
    has_own = config.data.partitioner == "natural"  # users may have test samples of their own
    if wanted and config.data.enabled and not has_own and config.data.client_test_fraction == 0 \
            and sound(where, share, "data"):
        yield where, (f"{config.trainer_config.evaluate} needs test data on the clients; set {share}, such as 0.2, or "
                      "evaluate: server")


def _clients_at_once(config: Config, sound: Sound) -> Iterator[Broken]:
    where = "learner_config.client_batch"
    size = config.learner_config.get("client_batch")
    if not isinstance(size, int) or size <= 1 or not sound(where, "mode", "components.trainer"):
        return
    if config.components.trainer == "federated.trainer.async":
        yield where, f"{size}: federated.trainer.async gives a rank one client at a time; leave it out, or train in rounds"
    if config.mode == "client" or (config.mode == "distributed" and config.role == "client"):
        yield where, f"{size}: a client of a network is one client; leave it out"


def _feddyn(config: Config, sound: Sound) -> Iterator[Broken]:
    """Over a network, the one who has the learner need not have the aggregator's settings."""
    ours, theirs = "learner_config.alpha", "aggregator_config.alpha"
    if not _is_wholly(config, "feddyn") or config.mode in NETWORK or not sound(ours, theirs, "mode", "components"):
        return
    own, given = (settings.get("alpha", FEDDYN_ALPHA) for settings in (config.learner_config, config.aggregator_config))
    if own != given:
        yield ours, f"{own} is not {theirs}, {given}; FedDyn's rule is about one number: give the same in both"


def _steps(config: Config, sound: Sound) -> Iterator[Broken]:
    """Learners that an aggregator cannot use with these settings; over a network, either may be the other side's."""
    given, rounds, last = config.learner_config, config.trainer_config.max_rounds, config.learner_config.get("lr_rounds")
    if config.mode in NETWORK or not sound("mode", "components", "learner_config"):
        return
    if config.components.aggregator == "federated.aggregator.fednova" and given.get("optimizer") == "adam":
        yield "learner_config.optimizer", ("adam is not for federated.aggregator.fednova, which has to know what a number of steps "
                                           "adds up to; use sgd")
    falls_to_0 = given.get("lr_schedule") == "cosine" and not given.get("lr_floor")
    if _is_wholly(config, "scaffold") and falls_to_0 and isinstance(last, int) and rounds >= max(2, last):
        yield "learner_config.lr_floor", (f"0: in round {max(2, last)} of {rounds} the rate is 0, by which SCAFFOLD divides; give "
                                          "one above 0, such as 0.01, or more lr_rounds")


def _learner(config: Config, sound: Sound) -> Iterator[Broken]:
    """Learners that need what this aggregator or trainer does not have; over a network, either may be the other side's."""
    learner, aggregator, trainer = config.components.learner, config.components.aggregator, config.components.trainer
    if config.mode in NETWORK or not sound("mode", "components", "components.learner"):
        return
    shares = "federated.aggregator.scaffold"
    if (learner == "federated.learner.scaffold" and aggregator.startswith("federated.") and aggregator != shares
            and sound("components.aggregator")):
        yield "components.learner", f"{learner} needs what {shares} shares, and {aggregator} does not; use that one"
    keeps = learner in ("federated.learner.ditto", "federated.learner.feddyn")
    if keeps and trainer == "federated.trainer.async" and sound("components.trainer"):
        yield "components.learner", (f"{learner} keeps something for each client, which {trainer} does not support; use "
                                     "federated.trainer.default")


def _fltrust(config: Config, sound: Sound) -> Iterator[Broken]:
    """Its root client is to be in every cohort. Over a network, clients have names of their own, and come and go."""
    if (config.components.aggregator != "federated.aggregator.fltrust" or config.mode in NETWORK
            or not sound("components", "components.aggregator", "mode", "num_clients", "trainer_config")):
        return
    trainer, total, where = config.trainer_config, config.num_clients, "aggregator_config.root_client"
    root = config.aggregator_config.get("root_client")
    if isinstance(root, str) and root not in map("client_{}".format, range(total)) and sound(where):
        yield where, f"{root} is none of the clients, which are client_0 to client_{total - 1}"
    sizes = {"cohort_size": trainer.cohort_size, "fraction": trainer.fraction and cohort_size_of(trainer.fraction, total)}
    for name, size in sizes.items():
        if size is not None and size < total and sound(f"trainer_config.{name}"):
            yield f"trainer_config.{name}", (f"{getattr(trainer, name)} draws {size} of {total} clients, and FLTrust needs its "
                                             "root client in every cohort; leave it out")


def _is_wholly(config: Config, rule: str) -> bool:
    """Whether both sides of a rule are the built-in ones."""
    names = config.components
    return names.aggregator == f"federated.aggregator.{rule}" and names.learner in (None, f"federated.learner.{rule}")


def _sides(config: Config, sound: Sound) -> Iterator[Broken]:
    if not sound("role", "mode"):
        return
    if config.mode == "distributed" and config.role is None:
        yield "mode", "distributed needs role: server or role: client as well; or name mode server or client"
    if config.mode in ("server", "client") and config.role not in (config.mode, None):
        yield "role", f"{config.role} contradicts mode {config.mode}; leave role out, or change one of them"
    if config.mode not in NETWORK and config.role == "client":
        yield "role", f"client goes with mode client or distributed, not with mode {config.mode}"


def _network(config: Config, sound: Sound) -> Iterator[Broken]:
    transport, tls = config.transport, config.transport.tls
    if not sound("transport", "transport.tls", "transport.insecure"):
        return
    if transport.address is None and sound("transport.address", "mode"):
        yield "transport.address", f"is missing: mode {config.mode} needs the server's address, as host:port"
    is_server = config.mode == "server" or (config.mode == "distributed" and config.role == "server")
    is_client = "client" in (config.mode, config.role) and not is_server
    is_near = transport.address is not None and is_loopback(transport.address)
    if is_server and not transport.insecure and not is_near and not (tls.cert and tls.key) and sound(
            "transport.tls.cert", "transport.tls.key", "transport.address"):
        yield "transport.tls", ("a server that others can reach needs cert and key (python -m federation.certs makes some); "
                                "where everyone may read the network's traffic, say transport.insecure: true")
    if is_client and config.client_id is None and sound("client_id"):
        yield "client_id", ("is missing: the index of this client's share of the data (0, 1, ...), or a name where the data "
                            "are its own")
    if is_client and isinstance(config.client_id, int) and config.client_id >= config.num_clients and sound(
            "client_id", "num_clients"):
        yield "client_id", (f"{config.client_id} is no share of num_clients: {config.num_clients}, which are 0 to "
                            f"{config.num_clients - 1}")
    if is_server and config.trainer_config.server_hosts_clients and sound("trainer_config.server_hosts_clients"):
        yield "trainer_config.server_hosts_clients", "true is for MPI; over a network, clients train where they are"
    if is_server and config.components.trainer == "federated.trainer.async" and sound("components.trainer"):
        yield "components.trainer", "federated.trainer.async does not work over a network yet; use rounds, or MPI"
    if transport.token is not None and transport.token.is_masked:
        yield "transport.token", "*** is how a saved configuration shows it; give it again, best as '${env:NAME}'"


def _transport(config: Config, sound: Sound) -> Iterator[Broken]:
    transport, tls = config.transport, config.transport.tls
    if transport.address is not None and sound("transport.address"):
        match = _ADDRESS.fullmatch(transport.address)
        if match is None:
            yield "transport.address", f"{transport.address} is not of the form host:port, such as node1:9000"
        elif match[1] != str(int(match[1])) or not 1 <= int(match[1]) <= 65535:
            yield "transport.address", (f"{transport.address} has no port from 1 to 65535, written without leading "
                                        "zeros")
    if transport.monitor is not None and sound("transport.monitor"):
        if _ADDRESS.fullmatch(transport.monitor) is None:
            yield "transport.monitor", f"{transport.monitor} is not of the form host:port, such as 127.0.0.1:9100"
        elif config.mode not in ("server", "distributed") and sound("mode"):
            yield "transport.monitor", f"is for mode server, and this is mode {config.mode}; leave it out"
    if transport.insecure and (tls.ca or tls.cert or tls.key) and sound("transport.insecure", "transport.tls"):
        yield "transport.insecure", "true contradicts transport.tls; keep one of the two"
    if bool(tls.cert) != bool(tls.key) and sound("transport.tls", "transport.tls.cert", "transport.tls.key"):
        missing = "key" if tls.cert else "cert"
        yield f"transport.tls.{missing}", "is missing: cert and key go together"
    needed = _TRANSPORTS.get(config.mode)
    if needed and transport.mode not in ("auto", needed) and sound("mode", "transport.mode"):
        yield "transport.mode", f"{transport.mode} contradicts mode {config.mode}, which needs {needed}; leave it out"


def _tracker(tracker: TrackerConfig, sound: Sound) -> Iterator[Broken]:
    if not sound("tracker", "tracker.name"):
        return
    allowed = _TRACKER_SETTINGS.get(tracker.name, ())
    for name in ("uri", "experiment", "project", "entity", "mode", "run_name", "api_key"):
        if getattr(tracker, name) is not None and name not in allowed:
            owners = " or ".join(owner for owner, names in _TRACKER_SETTINGS.items() if name in names)
            yield f"tracker.{name}", f"is a setting of {owners}, and the tracker is {tracker.name}"
    if tracker.uri is not None and re.match(r"[^/@]+://[^/@]*:[^/@]*@", tracker.uri):
        yield "tracker.uri", ("holds a password, which would be saved with the run; mlflow takes it from the "
                              "environment, as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
