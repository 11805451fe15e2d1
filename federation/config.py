"""Configurations: read, checked whole, filled with defaults, and written again.

    config = load_config("c.yaml", overrides=["trainer_config.max_rounds=5"])
    config.trainer_config.max_rounds

Each source goes before the one on its left: defaults, the file, `--set` overrides, options. All problems are found
before any is reported, in one ConfigError.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import yaml

from federation.builtin.table import COMPONENTS, LEARNERS, NEEDY
from federation.config_check import Checker
from federation.config_reference import EXAMPLE
from federation.config_rules import broken_rules, broken_trainer_rules
from federation.config_schema import (
    AvailabilityConfig,
    CheckpointConfig,
    Components,
    Config,
    DataConfig,
    LatencyConfig,
    Section,
    TimerConfig,
    TlsConfig,
    TrackerConfig,
    TrainerConfig,
    TransportConfig,
)
from federation.config_secret import Secret, revealed
from federation.config_settings import RESERVED, check_settings, setting_parameters, settings_problems
from federation.config_value import WORDS_FOR_TRUTH, suggestion
from federation.config_yaml import (
    NULL_WORDS,
    Given,
    Node,
    Series,
    Table,
    Text,
    from_python,
    hidden_values,
    overlay,
    problem,
    read_yaml,
    table_at,
)
from federation.errors import ConfigError
from federation.registry.registry import load_plugins, registry

__all__ = ["EXAMPLE", "AvailabilityConfig", "CheckpointConfig", "Components", "Config", "DataConfig", "LatencyConfig",
           "Secret", "Section", "TimerConfig", "TlsConfig", "TrackerConfig", "TrainerConfig", "TransportConfig",
           "check_settings", "dump_config", "load_config", "load_config_from_dict", "revealed", "trainer_config"]

_KEY = re.compile(r"[^\s=.]+(?:\.[^\s=.]+)*")
_BARE = re.compile(r"[A-Za-z_/](?:[A-Za-z0-9_./:-]*[A-Za-z0-9_/])?")


def load_config(path: str | Path | None = None, *, overrides: Sequence[str] = (),
                options: Mapping[str, object] | None = None) -> Config:
    """Read and check the YAML file at `path`; None stands for the built-in example.

    `overrides` are `dotted.key=value` with a value in YAML, as after `--set`. `options` are values by dotted key, which
    go before everything; None among them means not given. `plugins` are imported, and so are components that are not
    built in or have settings, since those are held against their constructors.

    Raises ConfigError that lists every problem: file, line, key, value as written, what is allowed, the nearest name.
    """
    if path is None:
        return _load(from_python(_example(overrides), "", "", []), "example", overrides, options, [])
    problems: list[str] = []
    tree = _read_file(Path(path), problems)
    return _load(tree, Path(path).stem, overrides, options, problems, str(path))


def load_config_from_dict(mapping: Mapping[str, object], *, overrides: Sequence[str] = (),
                          options: Mapping[str, object] | None = None, name: str = "run") -> Config:
    """As load_config, for a mapping that a program made; `name` stands for the file's.

    The same checks and types hold as in a file: an object that YAML cannot write, such as a function, is refused with
    its key. Secrets may be given as text, as `${env:NAME}`, or as Secret.
    """
    problems: list[str] = []
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"a configuration is a mapping of keys to values, not {type(mapping).__name__}")
    return _load(from_python(mapping, "", "", problems), name, overrides, options, problems)


def trainer_config(config: TrainerConfig | Mapping[str, object] | None = None) -> TrainerConfig:
    """The `trainer_config` that a program gives to a trainer, checked as that of a file; None means the defaults."""
    if isinstance(config, TrainerConfig):
        return config
    checker = Checker()
    node = from_python({} if config is None else config, "trainer_config", "", checker.problems)
    result = checker.struct(node, TrainerConfig, "trainer_config")
    for path, message in broken_trainer_rules(result, checker.sound):
        checker.report(path, message)
    if checker.problems:
        raise ConfigError(checker.problems)
    return result


def dump_config(config: Config) -> str:
    """`config` as YAML text that load_config reads back as an equal one; a secret is `***`, or its reference."""
    return str(yaml.dump(config.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


# -- sources ---------------------------------------------------------------------------------------------------------

def _load(tree: Node | None, name: str, overrides: Sequence[str], options: Mapping[str, object] | None,
          problems: list[str], source: str = "") -> Config:
    sources = [tree, *_overrides(overrides, problems), *_options(options or {}, problems)]
    tables = [_expanded(source) for source in sources if isinstance(source, Table)]
    if len(tables) < len(sources):
        raise ConfigError(problems)
    checker = Checker(problems, source)
    merged: Node = tables[0]
    for table in tables[1:]:
        for path, hidden in hidden_values(merged, table):
            checker.report(path, f"not a section, but {table.place} gives a key in it: wanted is a section (keys and values)",
                           hidden.place)
        merged = overlay(merged, table)

    @functools.cache
    def homes() -> Mapping[str, str]:
        return _all_homes(Checker().struct(merged, Config))

    config = checker.struct(merged, Config, elsewhere=homes)
    if "output_dir" not in checker.places:
        config = msgspec.structs.replace(config, output_dir=f"runs/{name}")
    for path, message in broken_rules(config, checker.sound):
        checker.report(path, message)
    config = _check_components(config, checker)
    if problems:
        raise ConfigError(problems)
    return _resolved(config)


def _example(overrides: Sequence[str]) -> dict[str, Any]:
    """The built-in example; a component that `overrides` replace does not get the settings of the one it replaces."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    replaced = {f"{key.removeprefix('components.')}_config" for key in keys if key.startswith("components.")}
    return {key: value for key, value in EXAMPLE.items() if key not in replaced}


def _read_file(path: Path, problems: list[str]) -> Node | None:
    """The file's keys and values; None, with a problem, where there are none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = get_close_matches(path.name, [file.name for file in path.parent.glob("*")], n=1)
        problems.append(problem(str(path), "", f"there is no such file{f'; did you mean {near[0]}?' if near else ''}"))
        return None
    except UnicodeDecodeError as error:
        problems.append(problem(str(path), "", f"is not UTF-8 text (byte {error.start})"))
        return None
    except OSError as error:
        problems.append(problem(str(path), "", f"cannot be read: {error.strerror}"))
        return None
    before = len(problems)
    node, found = read_yaml(text, str(path))
    problems += found
    if len(problems) == before and (node is None or node.is_null):
        problems.append(problem(str(path), "", "is empty; wanted are keys and values, such as `seed: 1`"))
    elif node is not None and not isinstance(node, Table):
        kind = "a list" if isinstance(node, Series) else "a single value"
        problems.append(problem(node.place, "", f"{kind} at the top level; wanted are keys and values, such as "
                                                "`seed: 1`"))
    return node if isinstance(node, Table) else None


def _overrides(overrides: Sequence[str], problems: list[str]) -> Iterator[Table | None]:
    seen: set[str] = set()
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not _KEY.fullmatch(key):
            # What follows the key may be a secret, and is not repeated.
            word = re.match(r"[\w.-]*", key)
            problems.append(problem("--set", word[0] if word else "", "is not of the form dotted.key=value, such as "
                                    "trainer_config.max_rounds=5"))
        elif key in seen:
            problems.append(problem("--set", key, "given twice; keep one"))
        elif within := next((other for other in seen if other.startswith(f"{key}.")), None):
            problems.append(problem("--set", key, f"takes the place of {within}, which is given before it; give {key} first, "
                                    "or keep one of the two"))
        else:
            seen.add(key)
            node, found = read_yaml(value, "--set", path=key, one_line=True)
            problems += found
            yield None if found else table_at(key, node or Text("", "plain", "--set"), "--set")


def _options(options: Mapping[str, object], problems: list[str]) -> Iterator[Table]:
    for key, value in options.items():
        if isinstance(value, Text | Given):
            yield table_at(key, value, value.place)
        elif value is not None:
            place = f"option {key}"
            yield table_at(key, from_python(value, key, place, problems), place)


def _expanded(table: Table) -> Table:
    """`tracker: NAME` written out, so that sources with the short and the long form go together."""
    node = table.entries.get("tracker")
    if node is None or isinstance(node, Table) or (isinstance(node, Text) and node.is_null and not node.text):
        return table
    short = replace(table_at("name", node, table.places["tracker"]), assigned=True)
    return replace(table, entries=table.entries | {"tracker": short})


def _homes(kind: type[Section], path: str = "") -> dict[str, str]:
    """For each key's last name, where it belongs; names that stand in several places are left out."""
    found: dict[str, list[str]] = {}
    for info in msgspec.structs.fields(kind):
        where = f"{path}.{info.encode_name}" if path else info.encode_name
        found.setdefault(info.encode_name, []).append(where)
        if isinstance(info.default, Section):
            for name, home in _homes(type(info.default), where).items():
                found.setdefault(name, []).append(home)
    return {name: homes[0] for name, homes in found.items() if len(homes) == 1}


def _all_homes(config: Config) -> dict[str, str]:
    """As `_homes`, with the settings of the components and the partitioner of `config`, each with all its places.

    It may have to import components.
    """
    from federation.data.partitioner import PARTITIONERS

    trial = Checker()
    config = _with_learner(config, trial)
    owners = {f"{kind}_config": (_component(config, kind, trial, needed=True), RESERVED[kind])
              for kind in ("learner", "aggregator", "model")}
    owners["data.partitioner_config"] = PARTITIONERS.get(config.data.partitioner), RESERVED["partitioner"]
    found: dict[str, list[str]] = {}
    for section, (owner, reserved) in owners.items():
        for name in setting_parameters(owner, reserved) if owner is not None else ():
            found.setdefault(name, []).append(f"{section}.{name}")
    return {name: " or ".join(places) for name, places in found.items()} | _homes(Config)


# -- what no single key tells ----------------------------------------------------------------------------------------

def _check_components(config: Config, checker: Checker) -> Config:
    """Names against the registry, and settings against the constructors; `config` with its learner named."""
    if checker.sound("plugins"):
        try:
            load_plugins(config.plugins)
        except ConfigError as error:
            for text in error.problems:
                checker.report("plugins", text)
    config = _with_learner(config, checker)
    for kind, settings in (("trainer", {}), ("learner", config.learner_config), ("model", config.model_config),
                           ("aggregator", config.aggregator_config)):
        component = _component(config, kind, checker, needed=bool(settings) or getattr(config.components, kind) in NEEDY)
        if component is not None:
            _check_settings(config, component, settings, f"{kind}_config", RESERVED[kind], checker)
    if config.data.enabled and checker.sound("data"):
        _check_data(config, checker)
    trace, path = config.trainer_config.availability.trace, "trainer_config.availability.trace"
    if trace is not None and config.mode != "client" and not Path(trace).is_file() and checker.sound(path):
        checker.report(path, f"{trace}: there is no such file")
    return config


def _component(config: Config, kind: str, checker: Checker, needed: bool) -> Any:
    """The class of one component, None where its name was refused; what is built in is only imported if `needed`."""
    path, name = f"components.{kind}", getattr(config.components, kind)
    if not checker.sound("plugins", "components", path):
        return None
    message = registry.name_problem(name, kind)
    if message is not None:
        checker.report(path, message)
    elif needed or name not in COMPONENTS:
        try:
            return registry.resolve(name, kind)
        except ConfigError as error:
            for text in error.problems:
                checker.report(path, text)
    return None


def _with_learner(config: Config, checker: Checker) -> Config:
    """`config` with the learner that its aggregator needs where none is named; another one is refused."""
    components = config.components
    wanted = LEARNERS.get(components.aggregator, "")
    if components.aggregator not in COMPONENTS:
        wanted = getattr(_component(config, "aggregator", checker, needed=True), "learner", "")
    if components.learner is None:
        named = msgspec.structs.replace(components, learner=wanted or "federated.learner.default")
        return msgspec.structs.replace(config, components=named)
    if wanted and components.learner != wanted and checker.sound("components.learner"):
        learner = _component(config, "learner", checker, needed=True)
        if learner is not None and wanted not in learner.implements:
            checker.report("components.learner", f"{components.learner} does not do what {components.aggregator} needs of "
                                                 f"clients; name {wanted}, or leave the key out")
    return config


def _check_data(config: Config, checker: Checker) -> None:
    """The names of data set and partitioner, and the settings of those that are built in."""
    from federation.data.partitioner import PARTITIONERS
    from federation.data.sources import find_source, refusal

    data = config.data
    name = data.partitioner
    if name in PARTITIONERS:
        reserved = RESERVED["partitioner"]
        _check_settings(config, PARTITIONERS[name], data.partitioner_config, "data.partitioner_config", reserved, checker)
    elif checker.sound("data.partitioner"):
        checker.report("data.partitioner", f"{name!r} is no known partitioner{suggestion(name, PARTITIONERS)} "
                                           f"(known: {', '.join(PARTITIONERS)})")
    source = find_source(data.dataset)
    if source is None:
        if checker.sound("data.dataset"):
            checker.report("data.dataset", refusal(data.dataset))
    elif source.signature is not None:
        _check_settings(config, source.signature, data.dataset_config, "data.dataset_config", RESERVED["dataset"], checker)


def _check_settings(config: Config, component: Any, settings: Mapping[str, object], path: str, reserved: Sequence[str],
                    checker: Checker) -> None:
    for where, message in settings_problems(component, settings, path, reserved, lambda: _all_homes(config)):
        if checker.sound(where):
            checker.report(where, message)


def _resolved(config: Config) -> Config:
    """The words that stand for another value, replaced."""
    role = config.role or ("client" if config.mode == "client" else "server")
    tracker = config.tracker
    if tracker.name == "off":
        tracker = msgspec.structs.replace(tracker, name="none")
    return msgspec.structs.replace(config, role=role, tracker=tracker,
                                   mode=role if config.mode == "distributed" else config.mode)


# -- writing ---------------------------------------------------------------------------------------------------------

class _Dumper(yaml.SafeDumper):
    """Plain YAML that every reader, ours and those of YAML 1.1, takes for the same values."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_bare = _BARE.fullmatch(text) and text not in NULL_WORDS | WORDS_FOR_TRUTH
    # Line breaks and control characters survive in double quotes alone, as escapes.
    quotes = "'" if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_bare else quotes)


_Dumper.add_representer(str, _represent_text)
