"""Configurations as a user writes them: what is taken, what is refused, and what is said then."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import traceback

import msgspec
import pytest
import yaml

from federation.builtin.aggregators.feddyn import FedDynAggregator
from federation.builtin.learners.feddyn import FedDynLearner
from federation.builtin.table import COMPONENTS, LEARNERS, NEEDY
from federation.config import (
    Config,
    Secret,
    TrainerConfig,
    dump_config,
    load_config,
    load_config_from_dict,
    trainer_config,
)
from federation.config_rules import FEDDYN_ALPHA
from federation.config_settings import RESERVED, setting_parameters
from federation.errors import ConfigError
from federation.registry.registry import registry

PLAIN = "tests.config_parts:PlainLearner"


@pytest.fixture
def load(tmp_path):
    """Loads a configuration from text, as c.yaml in a folder of its own."""
    def load_text(text, **sources):
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, **sources)
    return load_text


@pytest.fixture
def problems(load):
    """The problems that a configuration text has, the folder's name left out."""
    def find(text, **sources):
        if "learner_config" in text and "components" not in text:
            text += f"\ncomponents: {{learner: '{PLAIN}'}}\n"
        with pytest.raises(ConfigError) as caught:
            load(text, **sources)
        return [text[text.find("c.yaml"):] if "c.yaml" in text else text for text in caught.value.problems]
    return find


# -- numbers, words, null --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("written", "value"), [("1e-3", 0.001), ("1E5", 100000.0), ("1.e3", 1000.0), ("7", 7.0)])
def test_numbers_in_exponent_form(load, written, value):
    """S-CONF-01: in typed keys and in free sections alike."""
    config = load(f"trainer_config: {{round_timeout: {written}}}\ncomponents: {{learner: '{PLAIN}'}}\n"
                  f"learner_config: {{client_lr: {written}}}\n")
    assert config.trainer_config.round_timeout == value
    assert type(config.trainer_config.round_timeout) is float
    assert config.learner_config["client_lr"] == value


@pytest.mark.parametrize(("text", "expected"), [
    ("seed: 010", "c.yaml:1: seed: 010 has a leading zero"),
    ("trainer_config:\n  round_timeout: 12:30", "c.yaml:2: trainer_config.round_timeout: 12:30 is sexagesimal"),
    ("num_workers: 08080", "c.yaml:1: num_workers: 08080 has a leading zero"),
    ("learner_config: {port: 08080}", "c.yaml:1: learner_config.port: 08080 has a leading zero"),
    ("data: {partitioner_config: {alpha: 1_0}}", "c.yaml:1: data.partitioner_config.alpha: 1_0 has an underscore"),
    ("client_id: 010", "c.yaml:1: client_id: 010 has a leading zero"),
    ("threads: 0x2", "c.yaml:1: threads: 0x2 is not decimal"),
    ("seed: 1e3", "c.yaml:1: seed: 1e3 is not an integer; write 1000"),
    ("seed: 0.5", "c.yaml:1: seed: 0.5 is not an integer"),
])
def test_doubtful_numbers_are_refused_with_key_text_and_reason(problems, text, expected):
    """S-CONF-01: refused, not taken as 8, as text or as 750."""
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_doubtful_numbers_are_text_for_a_text_key_and_in_quotes(load):
    config = load(f"output_dir: 010\ndata: {{root: 12:30}}\ncomponents: {{learner: '{PLAIN}'}}\n"
                  "learner_config: {note: '010'}\n")
    assert (config.output_dir, config.data.root, config.learner_config["note"]) == ("010", "12:30", "010")


@pytest.mark.parametrize(("text", "key", "written", "allowed"), [
    ("mode: yes", "mode", "yes", "serial"),
    ("mode: Serial", "mode", "Serial", "serial"),
    ("components: {aggregator: on}", "components.aggregator", "on", "federated.aggregator.fedavg"),
    ("data: {partitioner: no}", "data.partitioner", "no", "dirichlet"),
    ("tracker: yes", "tracker.name", "yes", "tensorboard"),
    ("tracker: null", "tracker.name", "null", "none"),
    ("reduction: off", "reduction", "off", "exact"),
    ("data: {dataset: digts}", "data.dataset", "digts", "digits"),
    ("data: {dataset: no}", "data.dataset", "no", "digits"),
    ("components: {model: true}", "components.model", "true", "package.module:Class"),
])
def test_words_stay_words(problems, text, key, written, allowed):
    """S-CONF-02: a name key gets the word as written, and the message has key, word and allowed names."""
    (found,) = problems(text)
    assert found.startswith(f"c.yaml:1: {key}: ")
    assert written in found
    assert allowed in found
    assert "False" not in found


@pytest.mark.parametrize("written", ["off", "none", "'off'", "{name: off}"])
def test_tracker_off_is_none(load, written):
    """S-CONF-02: the documented word for no tracker."""
    assert load(f"tracker: {written}").tracker.name == "none"


@pytest.mark.parametrize("written", ["yes", "no", "on", "off", "Yes", "y", "1", "0", "'true'", "null"])
def test_only_true_and_false_are_truth_values(problems, written):
    """S-CONF-02."""
    (found,) = problems(f"overwrite: {written}")
    assert found.startswith(f"c.yaml:1: overwrite: {written}")
    assert "wanted is true or false" in found


@pytest.mark.parametrize("text", [
    "num_clients: true", "num_clients: '8'", "num_clients: 8.0", "num_clients: null", "num_clients:",
    "num_clients: eight",
    "num_clients: [8]", "num_clients: {n: 8}", "num_clients: .nan", "num_clients: 0", "num_clients: -3", "seed: -1",
    "seed: 9223372036854775808", "trainer_config: {max_rounds: '8'}", "trainer_config: {max_rounds: 0}",
    "trainer_config: {fraction: 0.0}", "trainer_config: {fraction: 1.5}", "trainer_config: {fraction: .nan}",
    "trainer_config: {fraction: '0.5'}", "trainer_config: {fraction: 50%}", "trainer_config: {round_timeout: .inf}",
    "trainer_config: {cohort_size: 0}", "trainer_config: {evaluate: both sides}", "trainer_config: 5",
    "trainer_config: [1]",
    "data: {test_fraction: 1}", "data: {test_fraction: -0.1}", "data: digits", "components: federated.learner.default",
    "learner_config: 3", "learner_config: [a]", "learner_config: {client_lr: .nan}",
    "learner_config: {client_lr: -.inf}",
    "plugins: mine", "plugins: {a: b}", "plugins: [1]", "output_dir: 5", "output_dir: true", "output_dir: ''",
    "output_dir: null",
    "data: {root: [a]}", "threads: 0", "threads: all", "checkpoint: {keep: 0}", "checkpoint: {async: yes}",
    "timer: {trace: 1}",
    "num_clients: 100000000000000000000", "num_clients: 3000000000", "num_workers: 1000000", "threads: 1000000",
    "trainer_config: {max_rounds: 100000000000000000000}", "learner_config: {batch_size: 100000000000000000000}",
    "num_clients: 1e400", "overwrite: 1", "transport: {address: node1}", "transport: {address: 'node1:0'}",
    "transport: {address: 'node1:70000'}", "transport: {address: 'node1:08080'}", "transport: {tls: on}",
    "transport: {max_chunk_bytes: 2147483648}", "tracker: {uri: 'http://me:pw@host', name: mlflow}",
])
def test_wrong_types_and_ranges_are_refused_at_load(problems, text):
    """S-CONF-05, S-PART-07: with line and key path; the value is shown."""
    (found,) = problems(text)
    path = text.partition(":")[0]
    assert found.startswith(f"c.yaml:1: {path}")


def test_a_section_with_nothing_below_means_its_defaults(load):
    """S-CONF-05: as documented."""
    empty = load("learner_config:\ntrainer_config:\ndata:\ncomponents: ~\ntracker:\ntransport:\n  tls:\nplugins: []\n")
    assert empty == load("seed: 0")


@pytest.mark.parametrize(("text", "word"), [
    ("", "is empty"), ("# nothing\n", "is empty"), ("---\n", "is empty"), ("- seed: 1\n", "a list at the top level"),
    ("seed\n", "a single value at the top level"), ("'seed: 1'\n", "a single value"),
    ("trainer_config:\n\tmax_rounds: 5\n", "tab"),
])
def test_files_that_hold_no_keys(problems, text, word):
    """S-CONF-05: an empty file, a list, a word, a tab."""
    (found,) = problems(text)
    assert found.startswith("c.yaml")
    assert word in found


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"confg\.yaml: there is no such file; did you mean config\.yaml\?"):
        load_config(tmp_path / "confg.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_no_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfseed: 4\n")
    assert load_config(tmp_path / "c.yaml").seed == 4


# -- keys ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "path", "meant"), [
    ("num_client: 5", "num_client", "num_clients"),
    ("num_rounds: 5", "num_rounds", "trainer_config.max_rounds"),
    ("max_rounds: 5", "max_rounds", "trainer_config.max_rounds"),
    ("trainer_config: {max_round: 5}", "trainer_config.max_round", "max_rounds"),
    ("trainer_config: {partitioner: iid}", "trainer_config.partitioner", "data.partitioner"),
    ("aggregator: {name: fedprox, muu: 0.1}", "aggregator", "components.aggregator"),
    ("learner:", "learner", "components.learner"),
    ("data: {dataset: synthetic, dataset_config: {num_sample: 5}}", "data.dataset_config.num_sample", "num_samples"),
    ("transport: {tls: {crt: x}}", "transport.tls.crt", "cert"),
    ("Seed: 3", "Seed", "seed"),
    ("checkpoint: {async_: true}", "checkpoint.async_", "async"),
    ("data: {partitioner: dirichlet, partitioner_config: {alfa: 3}}", "data.partitioner_config.alfa", "alpha"),
    ("aggregator_config: {weigting: uniform}", "aggregator_config.weigting", "weighting"),
    ("client_lr: 0.1", "client_lr", "learner_config.client_lr?"),
    ("trainer_config: {local_epochs: 3}", "trainer_config.local_epochs", "learner_config.local_epochs?"),
    ("data: {partitioner: dirichlet, alpha: 3}", "data.alpha", "data.partitioner_config.alpha?"),
    ("aggregator_config: {client_lr: 0.1}", "aggregator_config.client_lr", "learner_config.client_lr?"),
    ("learner_config: {max_rounds: 3}", "learner_config.max_rounds", "trainer_config.max_rounds?"),
    ("trainer_config: {hidden_sizes: [3]}", "trainer_config.hidden_sizes", "model_config.hidden_sizes?"),
])
def test_unknown_keys_stop_the_run(problems, text, path, meant):
    """S-CONF-04: at any depth, with the nearest known key."""
    (found,) = problems(text)
    assert found.startswith(f"c.yaml:1: {path}: unknown ")
    assert f"did you mean {meant}" in found


def test_settings_reach_the_configuration_that_is_written(load):
    """S-CONF-04: the effective configuration shows the value used, and tells two runs apart."""
    texts = [f"data: {{partitioner: dirichlet, partitioner_config: {{alpha: {alpha}}}}}" for alpha in (0.1, 100)]
    low, high = (load(text) for text in texts)
    assert yaml.safe_load(dump_config(low))["data"]["partitioner_config"] == {"alpha": 0.1}
    assert yaml.safe_load(dump_config(high))["data"]["partitioner_config"] == {"alpha": 100}
    assert low.digest() != high.digest()


def test_duplicates_are_reported_beside_everything_else(problems):
    """S-CONF-03, S-CONF-05: one message for all problems of a file."""
    found = problems("seed: 1\nmode: yes\nseed: 2\nnum_clients: 'x'\ntrainer_config: {max_rounds: 1, max_rounds: 2}\n"
                     "components: {aggregator: federated.aggregator.fedavg2}\naggregator_config: {a: 1}\nfoo: 1\n")
    assert [one.split(": ")[:2] for one in found] == [
        ["c.yaml:3", "seed"], ["c.yaml:5", "trainer_config.max_rounds"], ["c.yaml:2", "mode"],
        ["c.yaml:4", "num_clients"],
        ["c.yaml:8", "foo"], ["c.yaml:6", "components.aggregator"]]


def test_components_are_checked_even_if_the_file_has_other_problems(problems):
    found = problems(f"seed: x\ncomponents:\n  learner: {PLAIN}\nlearner_config:\n  client_lr: fast\n  momentum: 1\n")
    assert [one.split(": ")[:2] for one in found] == [
        ["c.yaml:1", "seed"], ["c.yaml:5", "learner_config.client_lr"], ["c.yaml:6", "learner_config.momentum"]]


def test_merge_control(load):
    """S-CONF-03: anchors on a key of their own, and on a known one."""
    config = load("base: &base\n  max_rounds: 5\n  min_clients: 2\ntrainer_config:\n  <<: *base\n  max_rounds: 8\n")
    assert (config.trainer_config.max_rounds, config.trainer_config.min_clients) == (8, 2)
    config = load("data: {partitioner_config: &p {min_size: 2}, dataset_config: {}}\n"
                  "aggregator_config: {}\nx-data: &q {a: 1}\nlearner_config: {x: *q}\n"
                  f"components: {{learner: '{PLAIN}'}}\n".replace("{x: *q}", "{extra: *q}"))
    assert config.data.partitioner_config == {"min_size": 2}
    assert config.learner_config == {"extra": {"a": 1}}


@pytest.mark.parametrize("text", [
    "trainer_confg: &t {max_rounds: 5}\ntrainer_config: *t\n",
    "base: &base {max_rounds: 5}\n",
    "x-base: {max_rounds: 5}\n",
    "base: &base {a: 1}\ntrainer_config: {base: *base}\n",
])
def test_a_key_that_is_no_shelf_is_unknown(problems, text):
    """S-CONF-04: a misspelt key does not hide behind an anchor, and an anchor that nothing uses has no effect."""
    (found,) = problems(text)
    assert "unknown key" in found


# -- combinations ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "path"), [
    ("trainer_config: {cohort_size: 3, fraction: 0.5}", "trainer_config.cohort_size"),
    ("num_clients: 3\ntrainer_config: {min_clients: 4}", "trainer_config.min_clients"),
    ("num_clients: 3\ntrainer_config: {cohort_size: 4}", "trainer_config.cohort_size"),
    ("trainer_config: {cohort_size: 2, min_clients: 3}", "trainer_config.cohort_size"),
    ("trainer_config: {fraction: 0.2, min_clients: 3}", "trainer_config.fraction"),
    ("trainer_config: {evaluate: clients}", "trainer_config.evaluate"),
    ("trainer_config: {evaluate: both}", "trainer_config.evaluate"),
    ("trainer_config: {over_select: 1.3, latency: {kind: constant}}", "trainer_config.over_select"),
    ("trainer_config: {over_select: 1.3, cohort_size: 3}", "trainer_config.over_select"),
    ("trainer_config: {over_select: 1.3, fraction: 0.5, clock: real}", "trainer_config.over_select"),
    ("trainer_config: {over_select: 0.9, fraction: 0.5}", "trainer_config.over_select"),
    ("trainer_config: {deadline: 3}", "trainer_config.deadline"),
    ("trainer_config: {deadline: 0, clock: real}", "trainer_config.deadline"),
    ("trainer_config: {deadline: 3, clock: real, round_timeout: 3}", "trainer_config.deadline"),
    ("trainer_config: {clock: real, latency: {kind: constant}}", "trainer_config.latency"),
    ("trainer_config: {deadline: 3, latency: {spread: 0.5}}", "trainer_config.latency.kind"),
    ("trainer_config: {latency: {kind: uniform, spread: 1.5}}", "trainer_config.latency"),
    ("trainer_config: {latency: {kind: constant, spread: 0.5}}", "trainer_config.latency"),
    ("trainer_config: {latency: {kind: constant, work_seconds: 0}}", "trainer_config.latency"),
    ("trainer_config: {latency: {kind: constant, work_seconds: -1}}", "trainer_config.latency.work_seconds"),
    ("trainer_config: {latency: {kind: gaussian}}", "trainer_config.latency.kind"),
    ("trainer_config: {compression: {fraction: 0.1}}", "trainer_config.compression.fraction"),
    ("trainer_config: {compression: {codec: int8, fraction: 0.1}}", "trainer_config.compression.fraction"),
    ("trainer_config: {sampling: robin}", "trainer_config.sampling"),
    ("trainer_config: {availability: {share: 0.3}}", "trainer_config.availability"),
    ("trainer_config: {sampling: weighted, availability: {period: 3}}", "trainer_config.availability"),
    ("trainer_config: {sampling: availability, availability: {trace: missing.csv}}", "trainer_config.availability.trace"),
    ("trainer_config: {sampling: availability, availability: {trace: pyproject.toml, share: 0.3}}",
     "trainer_config.availability.share"),
    ("trainer_config: {sampling: availability, availability: {share: 0}}", "trainer_config.availability.share"),
    ("mode: client\nclient_id: 1", "transport.address"),
    ("mode: client\ntransport: {address: 'a:1'}", "client_id"),
    ("mode: client\nclient_id: 10\ntransport: {address: 'a:1'}", "client_id"),
    ("mode: server\ntransport: {address: '127.0.0.1:1'}\ntrainer_config: {server_hosts_clients: true}",
     "trainer_config.server_hosts_clients"),
    ("mode: server\ntransport: {address: '127.0.0.1:1'}\ncomponents: {trainer: federated.trainer.async, "
     "aggregator: federated.aggregator.fedasync}", "components.trainer"),
    ("mode: client\nclient_id: 1\ntransport: {address: 'a:1'}\nlearner_config: {client_batch: 8}", "learner_config.client_batch"),
    ("components: {trainer: federated.trainer.async, aggregator: federated.aggregator.fedasync}\n"
     "learner_config: {client_batch: 8}", "learner_config.client_batch"),
    ("components: {learner: federated.learner.fedprox}\nlearner_config: {client_batch: 8}", "learner_config.client_batch"),
    ("learner_config: {client_batch: 0.5}", "learner_config.client_batch"),
    ("components: {aggregator: federated.aggregator.feddyn}\naggregator_config: {alpha: 0.1}", "learner_config.alpha"),
    ("components: {aggregator: federated.aggregator.feddyn, learner: federated.learner.feddyn}\n"
     "aggregator_config: {alpha: 0.1}\nlearner_config: {alpha: 0.2}", "learner_config.alpha"),
    ("mode: client\nrole: server\nclient_id: a\ntransport: {address: 'a:1'}", "role"),
    ("role: client", "role"),
    ("role: client\nmode: serial", "role"),
    ("mode: distributed\ntransport: {address: 'a:1', insecure: true}", "mode"),
    ("mode: server\ntransport: {address: 'a:1'}", "transport.tls"),
    ("mode: server\ntransport: {address: 'a:1', tls: {cert: x}}", "transport.tls.key"),
    ("transport: {tls: {key: x}}", "transport.tls.cert"),
    ("transport: {insecure: true, tls: {ca: x}}", "transport.insecure"),
    ("mode: mpi\ntransport: {mode: memory}", "transport.mode"),
    ("tracker: {name: wandb, uri: x}", "tracker.uri"),
    ("tracker: {api_key: x}", "tracker.api_key"),
    ("components: {aggregator: federated.aggregator.fednova}\nlearner_config: {optimizer: adam}", "learner_config.optimizer"),
    ("components: {aggregator: federated.aggregator.scaffold}\nlearner_config: {lr_schedule: cosine, lr_rounds: 20}",
     "learner_config.lr_floor"),
    ("components: {learner: federated.learner.scaffold}", "components.learner"),
    ("components: {learner: federated.learner.ditto, trainer: federated.trainer.async, aggregator: federated.aggregator.fedbuff}",
     "components.learner"),
])
def test_impossible_combinations(problems, text, path):
    found = problems(text)
    assert [one for one in found if f": {path}: " in one], found
    assert len(found) <= 2


@pytest.mark.parametrize("text", [
    "{cohort_size: 3, over_select: 1.3, latency: {kind: exponential}}",
    "{fraction: 0.3, over_select: 1.3, deadline: 2, latency: {kind: lognormal, spread: 0.5, client_spread: 1}}",
    "{deadline: 2.5, clock: real}", "{deadline: 2, clock: real, round_timeout: 60}",
    "{cohort_size: 3, over_select: 1.3, clock: real, deadline: 5}", "{latency: {kind: uniform, spread: 1}}",
    "{sampling: availability}", "{sampling: availability, availability: {period: 10, round_length: 0.5, share: 0.3}}",
    "{sampling: availability, availability: {trace: pyproject.toml, period: 4}}", "{sampling: weighted}",
    "{sampling: round_robin, cohort_size: 3}",
])
def test_cohorts_and_clocks_that_go_together(load, text):
    config = load(f"trainer_config: {text}")
    assert load_config_from_dict(yaml.safe_load(dump_config(config))) == config


def test_a_rate_that_would_be_0_after_the_last_round(load):
    scaffold = "components: {aggregator: federated.aggregator.scaffold}\nlearner_config: "
    for settings in ("{lr_schedule: cosine, lr_rounds: 21}", "{lr_schedule: cosine, lr_rounds: 20, lr_floor: 0.01}"):
        load(scaffold + settings)


@pytest.mark.parametrize(("more", "said"), [
    ({"trainer_config": {"cohort_size": 9}}, r"trainer_config\.cohort_size: 9 draws 9 of 10 clients, and FLTrust needs its root"),
    ({"trainer_config": {"fraction": 0.5}}, r"trainer_config\.fraction: 0\.5 draws 5 of 10 clients, and FLTrust needs its root"),
    ({"aggregator_config": {"root_client": "client_10"}}, r"client_10 is none of the clients, .* client_0 to client_9"),
    ({"aggregator_config": {"root_client": "client_01"}}, r"root_client: client_01 is none of the clients")])
def test_fltrust_needs_its_root_client_in_every_cohort(more, said):
    """A run would end in the first round without it, after the training."""
    given = {"components": {"aggregator": "federated.aggregator.fltrust"}, "aggregator_config": {"root_client": "client_9"}}
    for whole in ({}, {"trainer_config": {"cohort_size": 10}}, {"trainer_config": {"fraction": 1.0}}):
        load_config_from_dict(given | whole)
    with pytest.raises(ConfigError, match=said):
        load_config_from_dict(given | more)
    network = {"mode": "server", "transport": {"address": "127.0.0.1:9000"}, "aggregator_config": {"root_client": "hospital"}}
    load_config_from_dict(given | network | {"trainer_config": {"cohort_size": 9}})


def test_feddyn_takes_one_alpha_where_one_file_has_both(load):
    feddyn = "components: {aggregator: federated.aggregator.feddyn}\n"
    for settings in ("", "aggregator_config: {alpha: 0.01}", "aggregator_config: {alpha: 1}\nlearner_config: {alpha: 1.0}",
                     "mode: server\ntransport: {address: '127.0.0.1:1'}\naggregator_config: {alpha: 0.1}"):
        load(feddyn + settings)
    for component in (FedDynAggregator, FedDynLearner):
        assert inspect.signature(component).parameters["alpha"].default == FEDDYN_ALPHA


def test_rules_about_refused_values_are_not_added(problems):
    """One mistake, one problem."""
    assert len(problems("num_clients: 'x'\ntrainer_config: {cohort_size: 20, min_clients: 15}")) == 1
    assert len(problems("trainer_config: {cohort_size: 'x', fraction: 0.1, min_clients: 1}")) == 1


@pytest.mark.parametrize(("fraction", "clients", "least", "fits"), [
    (0.29, 100, 29, True), (0.29, 100, 30, False), (0.1, 5, 1, True), (1.0, 7, 7, True), (0.7, 10, 7, True),
])
def test_a_fraction_is_the_decimal_that_it_is_written_as(load, fraction, clients, least, fits):
    """S-PART-07: 0.29 of 100 is 29, and 0.1 of 5 is 1."""
    text = f"num_clients: {clients}\ntrainer_config: {{fraction: {fraction}, min_clients: {least}}}"
    if fits:
        assert load(text).trainer_config.fraction == fraction
    else:
        with pytest.raises(ConfigError, match="is 29, less than min_clients, 30"):
            load(text)


@pytest.mark.parametrize(("text", "mode", "role"), [
    ("seed: 1", "auto", "server"),
    ("role: server\nmode: serial", "serial", "server"),
    ("mode: client\nclient_id: hospital\ntransport: {address: 'host:9000'}", "client", "client"),
    ("mode: distributed\nrole: client\nclient_id: 9\ntransport: {address: '[::1]:9000'}", "client", "client"),
    ("mode: distributed\nrole: server\ntransport: {address: 'a:1', insecure: true}", "server", "server"),
    ("mode: server\ntransport: {address: 'a:1', tls: {cert: c, key: k}}", "server", "server"),
])
def test_mode_and_role(load, text, mode, role):
    config = load(text)
    assert (config.mode, config.role) == (mode, role)


# -- sources ---------------------------------------------------------------------------------------------------------

def test_precedence(load):
    """Option > --set > file > default."""
    text = "seed: 1\nnum_clients: 11\ntrainer_config: {max_rounds: 21, min_clients: 2}\n"
    config = load(text, overrides=["seed=2", "trainer_config.max_rounds=22"], options={"seed": 3, "mode": None})
    assert (config.seed, config.num_clients, config.mode) == (3, 11, "auto")
    assert (config.trainer_config.max_rounds, config.trainer_config.min_clients) == (22, 2)


def test_overrides_are_yaml():
    config = load_config_from_dict({}, overrides=[
        f"components.learner={PLAIN}", "learner_config={betas: [0.5, 1e-3]}", "learner_config.client_lr=1e-3",
        "tracker.required=true", "learner_config.note='010'", "learner_config.local_steps=~", " seed =5"])
    assert config.learner_config == {"betas": [0.5, 0.001], "client_lr": 0.001, "note": "010", "local_steps": None}
    assert (config.tracker.required, config.seed) == (True, 5)


def test_a_short_tracker_and_a_long_one_go_together(load):
    config = load("tracker: wandb\n", overrides=["tracker.project=p"])
    assert (config.tracker.name, config.tracker.project) == ("wandb", "p")
    config = load("tracker: {name: wandb, project: p}\n", overrides=["tracker=none"])
    assert (config.tracker.name, config.tracker.project) == ("none", None)


def test_an_override_assigns(load):
    """A section after --set takes the place of the file's; a key in it is reached by its dotted name."""
    text = (f"components: {{learner: '{PLAIN}'}}\nlearner_config: {{client_lr: 1, note: a}}\n"
            "trainer_config: {fraction: 0.5}\n")
    assert load(text, overrides=["learner_config={note: b}"]).learner_config == {"note": "b"}
    assert load(text, overrides=["learner_config.note=b"]).learner_config == {"client_lr": 1, "note": "b"}
    assert load(text, overrides=["learner_config="]).learner_config == {}
    assert load(text, overrides=["trainer_config={}"]).trainer_config == TrainerConfig()
    config = load(text, overrides=["learner_config={}", "learner_config.local_epochs=2"])
    assert config.learner_config == {"local_epochs": 2}


@pytest.mark.parametrize(("override", "expected"), [
    ("seed=010", "--set: seed: 010 has a leading zero"),
    ("seed", "--set: seed: is not of the form dotted.key=value"),
    ("=3", "--set: is not of the form"),
    ("a..b=3", "--set: a..b: is not of the form"),
    ("sed=3", "--set: sed: unknown key; did you mean seed?"),
    ("trainer_config.fraction=1.5", "--set: trainer_config.fraction: 1.5 is out of range"),
    ("mode=yes", "--set: mode: yes is not known"),
    ("learner_config={a: 1, a: 2}", "--set: learner_config.a: given twice"),
    ("mode=[a", "--set: mode: bad YAML syntax"),
    ("learner_config=!!python/name:os.system ''", "--set: learner_config: the tag !!python/name:os.system is refused"),
    ("seed=", "--set: seed: nothing: wanted is an integer"),
])
def test_overrides_that_are_refused(override, expected):
    with pytest.raises(ConfigError) as caught:
        load_config_from_dict({}, overrides=[override])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(expected)


def test_an_override_given_twice():
    with pytest.raises(ConfigError, match="--set: seed: given twice"):
        load_config_from_dict({}, overrides=["seed=1", "seed=2"])


def test_a_dotted_key_in_a_file_is_told_how_to_be_written(problems):
    """Its path is that of a key that exists: "unknown key" alone would blame the name."""
    (found,) = problems("trainer_config.max_rounds: 5\n")
    assert found.startswith("c.yaml:1: trainer_config.max_rounds: unknown key; dots are for --set: write it in a section, as "
                            "trainer_config: {max_rounds: ...} (known here: role")
    (found,) = problems("data: {transforms.crop: 4}\n")
    assert found.startswith("c.yaml:1: data.transforms.crop: unknown key; dots are for --set: write it in a section, as "
                            "transforms: {crop: ...} (known")


def test_an_item_of_a_list_is_named_once_and_with_its_line(problems):
    text = "learner_config:\n  note: a\n  milestones:\n  - 1\n  - {}\n"
    assert problems(text.format("010")) == [
        "c.yaml:5: learner_config.milestones[1]: 010 has a leading zero, which makes it octal to some YAML readers; write it "
        "without (put it in quotes if it is meant as text)"]
    assert problems(text.format("'10'")) == ["c.yaml:5: learner_config.milestones[1]: '10' is text: wanted is an integer"]


def test_an_override_that_would_undo_one_before_it():
    """Else `--set tracker.project=p tracker=wandb` would lose the project, and say nothing."""
    with pytest.raises(ConfigError, match=r"--set: data: takes the place of data.dataset, which is given before it"):
        load_config_from_dict({}, overrides=["data.dataset=synthetic", "data={}"])
    with pytest.raises(ConfigError, match=r"--set: tracker: takes the place of tracker.project"):
        load_config_from_dict({}, overrides=["tracker.project=p", "tracker=wandb"])
    config = load_config_from_dict({}, overrides=["tracker=wandb", "tracker.project=p"])
    assert (config.tracker.name, config.tracker.project) == ("wandb", "p")


def test_a_value_where_a_section_belongs_is_not_hidden_by_an_override(problems):
    """`data: mnist` is no data set, whatever --set says of the section: it would train on the default one."""
    assert problems("data: mnist\n", overrides=["data.root=/x"]) == [
        "c.yaml:1: data: not a section, but --set gives a key in it: wanted is a section (keys and values)"]
    assert problems("trainer_config:\n  latency: slow\n", overrides=["trainer_config.latency.kind=constant"]) == [
        "c.yaml:2: trainer_config.latency: not a section, but --set gives a key in it: wanted is a section (keys and values)"]
    assert len(problems("seed: 1\n", overrides=["data=mnist", "data.root=/x"])) == 1


@pytest.mark.parametrize("mode", ["auto", "serial", "parallel", "mpi", "client"], ids="mode {}".format)
def test_only_a_server_of_a_network_has_no_data(mode):
    """Elsewhere nobody could train: the run would wait a minute for clients, and say that none came."""
    text = {"data": {"enabled": False}, "mode": mode, "client_id": 0,
            "transport": {"address": "127.0.0.1:9000"} if mode == "client" else {}}
    with pytest.raises(ConfigError, match=f"data.enabled: false is for a server of a network.* mode {mode}"):
        load_config_from_dict(text)
    server = load_config_from_dict(text | {"mode": "server", "transport": {"address": "127.0.0.1:9000"}})
    assert not server.data.enabled


PATHS = ("output_dir", "data.root", "data.cache", "trainer_config.availability.trace", "transport.tls.ca", "transport.tls.cert",
         "transport.tls.key")


def test_paths_begin_at_home(tmp_path, monkeypatch):
    """A shell leaves `~` alone in --output_dir=~/runs, and nobody wants a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    overrides = [f"{path}=~/file" for path in PATHS]
    config = load_config_from_dict({"trainer_config": {"sampling": "availability"}}, overrides=overrides)
    for path in PATHS:
        found = config
        for name in path.split("."):
            found = getattr(found, name)
        assert found == str(tmp_path / "file")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("written", ["$SCRATCH/runs", "/scratch/${USER}"])
def test_paths_with_variables_are_refused(path, written):
    """They would name a folder called $SCRATCH, which is made where nobody looks."""
    with pytest.raises(ConfigError) as caught:
        load_config_from_dict({}, overrides=[f"{path}={written}"])
    assert caught.value.problems[0].startswith(f"--set: {path}: {written} holds a variable of the environment")


@pytest.mark.parametrize("name", ["x.npz", "table.csv", "arrays/"])
def test_the_file_of_a_data_set_is_a_path(tmp_path, monkeypatch, name):
    """`~` and variables in it are those of every path; a name that is none is left alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    more = {"dataset_config": {"target": "y"}} if name == "table.csv" else {}
    assert load_config_from_dict({"data": {"dataset": f"~/{name}", **more}}).data.dataset == f"{tmp_path}/{name}"
    with pytest.raises(ConfigError, match=r"data\.dataset: .*holds a variable of the environment"):
        load_config_from_dict({"data": {"dataset": f"$SCRATCH/{name}", **more}})
    assert load_config_from_dict({"data": {"dataset": "hf:ylecun/mnist"}}).data.dataset == "hf:ylecun/mnist"


def test_mappings_are_checked_as_files_are():
    with pytest.raises(ConfigError) as caught:
        load_config_from_dict({"num_clients": True, "seed": "8", "trainer_config": {"fraction": float("nan")},
                               "tracker": False, "data": {"root": 3}, "learner_config": {"schedule": lambda step: 0.1},
                               "mode": None, "reduction": 3, "components": {"learner": PLAIN}})
    assert [one.partition(": ")[0] for one in caught.value.problems] == [
        "learner_config.schedule", "num_clients", "seed", "trainer_config.fraction", "tracker.name", "data.root",
        "mode",
        "reduction"]
    with pytest.raises(ConfigError, match="not list"):
        load_config_from_dict([("seed", 1)])


def test_mappings_take_what_a_program_has(tmp_path):
    import numpy as np

    config = load_config_from_dict({"seed": np.int64(3), "trainer_config": {"round_timeout": 5}, "output_dir": tmp_path,
                                    "plugins": ()})
    assert (config.seed, config.trainer_config.round_timeout, config.output_dir) == (3, 5.0, str(tmp_path))


def test_the_name_gives_the_folder(load):
    assert load("seed: 1").output_dir == "runs/c"
    assert load("seed: 1\noutput_dir: elsewhere").output_dir == "elsewhere"
    assert load_config_from_dict({}, name="sweep").output_dir == "runs/sweep"
    assert load("seed: 1", options={"output_dir": "x"}).output_dir == "x"


# -- round trip and digest -------------------------------------------------------------------------------------------

def test_what_is_written_reads_back(load, tmp_path):
    config = load(f"mode: mpi\ncomponents: {{learner: '{PLAIN}'}}\n"
                  "learner_config:\n  note: 'off'\n  betas: [1e-3, .5]\n"
                  "  extra: {a: ~, b: '12:30', '<<': '~', 'true': true, c: 1e-3, d: '1e-3', e: [[], {}], f: 'a: b'}\n"
                  "trainer_config: {fraction: 0.29}\ndata: {root: '010'}\ncheckpoint: {async: false}\nplugins: []\n")
    text = dump_config(config)
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(tmp_path / "again.yaml") == config
    assert load_config_from_dict(config.to_dict()) == config
    assert load_config_from_dict(yaml.safe_load(text)) == config, "a YAML 1.1 reader sees the same values"
    assert pickle.loads(pickle.dumps(config)) == config


DECIDES = ["seed: 1", "num_clients: 11", "components: {model: model.numpy.linear}", "trainer_config: {fraction: 0.5}",
           "trainer_config: {cohort_size: 5}", "trainer_config: {sampling: weighted}",
           "trainer_config: {sampling: availability, availability: {share: 0.3}}",
           "trainer_config: {deadline: 3, clock: real}", "trainer_config: {latency: {kind: constant}}",
           "data: {dataset: synthetic}", "data: {partitioner: dirichlet}",
           "data: {test_fraction: 0.1}", "data: {client_test_fraction: 0.1}", "reduction: float32",
           "on_divergence: raise",
           "threads: 2", "data: {partitioner_config: {min_size: 2}}"]
DECIDES_NOT = ["mode: parallel", "num_workers: 3", "output_dir: x", "overwrite: true", "tracker: none",
    "timer: {trace: true}",
               "checkpoint: {every: 5, keep: 1, async: false}", "transport: {max_chunk_bytes: 1000}", "data: {root: x}",
               "trainer_config: {max_rounds: 99}", "trainer_config: {min_clients: 2}",
               "trainer_config: {eval_every: 3}",
               "trainer_config: {evaluate: none}", "trainer_config: {server_hosts_clients: true}",
               "trainer_config: {placement: last_rank}", "trainer_config: {round_timeout: 3, connect_timeout: 4}"]


@pytest.mark.parametrize("text", DECIDES)
def test_the_digest_covers_what_decides_the_model(load, text):
    assert load(text).digest() != load_config_from_dict({}).digest()


@pytest.mark.parametrize("text", DECIDES_NOT)
def test_the_digest_leaves_out_how_a_run_is_executed(load, text):
    """S-CKPT-08: a run can be resumed with more rounds, in another mode or folder."""
    config = load(text)
    assert config.digest() == load_config_from_dict({}).digest()
    assert config != load("seed: 0"), "the setting has no effect at all"


def test_the_digest_is_the_same_in_every_process(load):
    default = load_config_from_dict({})
    assert default.digest() == load("num_clients: 10\nlearner_config:\n").digest()
    assert len(default.digest()) == 64


def test_a_trainer_config_of_a_program():
    assert trainer_config(None) == TrainerConfig()
    assert trainer_config({"max_rounds": 10, "min_clients": 2}).max_rounds == 10
    ready = TrainerConfig(max_rounds=3)
    assert trainer_config(ready) is ready
    with pytest.raises(ConfigError) as caught:
        trainer_config({"max_round": 10, "min_clients": True, "cohort_size": 3, "fraction": 0.5})
    assert [one.partition(": ")[0] for one in caught.value.problems] == [
        "trainer_config.max_round", "trainer_config.min_clients", "trainer_config.cohort_size"]


@pytest.mark.parametrize("rounds", ["0", "-1", "true", "'8'", "8.0", "null", ".inf", "08"])
def test_rounds_are_a_whole_number_above_0(problems, rounds):
    """S-CKPT-08: what a resumed run may ask for is checked first."""
    (found,) = problems(f"trainer_config:\n  max_rounds: {rounds}\n")
    assert found.startswith(f"c.yaml:2: trainer_config.max_rounds: {rounds}")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config().seed = 3


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = (f"tracker: {{name: wandb, api_key: SECRET123}}\ntransport: {{token: SECRET123, tls: {{ca: ca.pem}}}}\n"
           f"components: {{learner: '{PLAIN}'}}\nlearner_config: {{api_key: SECRET123}}\n")


def test_secrets_are_not_shown(load, caplog):
    """S-SEC-05: not by printing, formatting, logging, dumping, comparing or failing."""
    config = load(SECRETS)
    shown = [repr(config), str(config), f"{config} {config.tracker.api_key!s:>9} {config.tracker.api_key}",
        dump_config(config),
             str(config.to_dict()), repr(config.tracker), repr(copy.deepcopy(config)), str(config.learner_config),
             repr(msgspec.structs.asdict(config))]
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").debug("%s %r", config, config.learner_config)
    try:
        raise RuntimeError(config.transport.token)
    except RuntimeError as error:
        shown += traceback.format_exception(error)
    shown.append(caplog.text)
    assert "SECRET123" not in "".join(shown)
    assert all("***" in text for text in shown[:6])
    assert "ca.pem" in dump_config(config)
    assert config.tracker.api_key.reveal() == "SECRET123"
    assert config.tracker.settings()["api_key"] == "SECRET123"
    assert config.secrets() == ["SECRET123"]


@pytest.mark.parametrize("text", [
    "tracker: {name: wandb, api_key: [SECRET123]}", "tracker: {name: none, api_key: SECRET123}",
    "tracker: {apikey: SECRET123}",
    "transport: {token: {a: SECRET123}}", "transport: {token: SECRET123\n", "api_key: SECRET123",
    "learner_config: {password: SECRET123}",
    "aggregator_config: {my_key: SECRET123}", "tracker: {api_key: SECRET123, api_key: SECRET123}",
    "tracker: {token: SECRET123}",
])
def test_refusals_do_not_show_secrets(problems, text):
    """S-SEC-05: a configuration that is refused shows no secret either."""
    assert "SECRET123" not in "".join(problems(text + "\nmode: yes"))


@pytest.mark.parametrize("override", ["tracker.api_key:SECRET123", "tracker.api_key=[SECRET123",
    "tracker.api_key SECRET123",
                                      "tracker.api_key=SECRET123: 3", "tracker.apikey=SECRET123"])
def test_refused_overrides_do_not_show_secrets(override):
    with pytest.raises(ConfigError) as caught:
        load_config_from_dict({}, overrides=[override])
    assert "SECRET123" not in "".join(traceback.format_exception(caught.value))


def test_secrets_from_the_environment(load, monkeypatch, problems):
    """S-SEC-05: a reference is resolved, and the reference is what is written."""
    monkeypatch.setenv("MY_TOKEN", "SECRET123")
    config = load("transport: {token: '${env:MY_TOKEN}'}\n")
    assert config.transport.token.reveal() == "SECRET123"
    assert "SECRET123" not in dump_config(config)
    assert load_config_from_dict(config.to_dict()) == config
    monkeypatch.delenv("MY_TOKEN")
    (found,) = problems("transport: {token: '${env:MY_TOKEN}'}\n")
    assert found.startswith("c.yaml:1: transport.token: *** refers to MY_TOKEN")
    (found,) = problems("output_dir: '${env:HOME}/x'\n")
    assert "refers to the environment" in found


@pytest.mark.parametrize("written", ["12345678", "010", "1e5", "true", "off", "'x'"])
def test_a_secret_is_the_text_as_written(load, written):
    assert load(f"transport: {{token: {written}}}").transport.token.reveal() == written.strip("'")


def test_a_saved_mask_is_no_value(load):
    """A saved configuration repeats the run; only the use of the masked key fails, by name of what to do."""
    again = load(dump_config(load(SECRETS)))
    assert again.digest() == load(SECRETS).digest()
    assert again.tracker.api_key.is_masked
    assert again.secrets() == []
    with pytest.raises(ConfigError, match="give the value again"):
        again.tracker.settings()
    with pytest.raises(ConfigError, match=r"transport\.token"):
        load("mode: client\nclient_id: 0\ntransport: {address: 'a:1', token: '***'}")


def test_secret_values_compare_and_travel():
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert pickle.loads(pickle.dumps(Secret("a"))).reveal() == "a"
    assert bool(Secret("")) is False


@pytest.mark.parametrize(("aggregator", "learner"), [("fedavg", "default"), ("krum", "default"), *(
    (name.rpartition(".")[2], needed.rpartition(".")[2]) for name, needed in LEARNERS.items())])
def test_an_aggregator_brings_the_learner_that_its_rule_needs(aggregator, learner):
    """Where none is named; and naming that one changes nothing."""
    names = {"aggregator": f"federated.aggregator.{aggregator}"}
    config = load_config_from_dict({"components": names})
    assert config.components.learner == f"federated.learner.{learner}"
    assert load_config_from_dict({"components": {**names, "learner": config.components.learner}}) == config


@pytest.mark.parametrize("aggregator", LEARNERS)
def test_an_aggregator_refuses_a_learner_that_does_not_do_its_part(aggregator):
    needed = registry.resolve(aggregator, "aggregator").learner
    assert needed == LEARNERS[aggregator], "the table and the class disagree"
    with pytest.raises(ConfigError, match=rf"components\.learner: federated\.learner\.default does not do .*name {needed}"):
        load_config_from_dict({"components": {"aggregator": aggregator, "learner": "federated.learner.default"}})


def test_a_learner_may_stand_in_for_the_one_that_is_needed():
    """By saying so: `implements`."""
    names = {"aggregator": "federated.aggregator.scaffold", "learner": "tests.config_parts:OwnScaffold"}
    assert load_config_from_dict({"components": names}).components.learner == "tests.config_parts:OwnScaffold"


def test_every_built_in_component_that_needs_a_setting_is_in_the_table():
    """Of each kind, what its constructor has no default for; what the framework gives does not count."""
    kinds = {name: "model" if name.startswith("model.") else name.split(".")[1] for name in COMPONENTS}
    needy = {name for name, kind in kinds.items() if kind != "trainer"
             and any(parameter.default is parameter.empty for parameter, _ in
                     setting_parameters(registry.resolve(name, kind), RESERVED[kind]).values())}
    assert needy == NEEDY


@pytest.mark.parametrize("name", sorted(NEEDY))
def test_a_setting_that_is_needed_is_missed_before_anything_starts(name):
    """Also where the section of its settings is not there at all: the run ended with a TypeError, and --dry_run did not."""
    kind = "model" if name.startswith("model.") else "aggregator"
    with pytest.raises(ConfigError, match=rf"^{kind}_config\.\w+: is missing: \w+ needs it$"):
        load_config_from_dict({"components": {kind: name}})


def test_every_built_in_aggregator_that_needs_a_learner_is_in_the_table():
    found = {name: component.learner for name in COMPONENTS if ".aggregator." in name
             if (component := registry.resolve(name, "aggregator")).learner}
    assert found == LEARNERS
