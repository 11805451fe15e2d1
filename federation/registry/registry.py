"""Component names and the classes that they stand for. Nothing is imported to be known, only to be resolved."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from federation.builtin.table import COMPONENTS
from federation.config_value import suggestion
from federation.errors import FAULTS, ConfigError

KINDS = ("trainer", "learner", "aggregator", "model")
ENTRY_POINTS = "federation.components"

_BASES = {"trainer": "federation.core.trainer:Trainer", "learner": "federation.core.learner:Learner",
          "aggregator": "federation.core.aggregator:Aggregator", "model": "federation.core.model:Model"}
_PLACE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_MODULE = re.compile(r"\w+(?:\.\w+)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
# Top-level module -> the extra of this distribution that installs it.
_EXTRAS = {"torch": "torch", "sklearn": "sklearn", "mpi4py": "mpi", "tensorboard": "tensorboard"}

C = TypeVar("C", bound=type)


class Registry:
    """A phone book of components: a literal table, names added by `register`, and entry points on a miss."""

    def __init__(self, table: Mapping[str, str] = COMPONENTS) -> None:
        self._table = dict(table)
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """A class decorator that makes a class known as `name`, such as `custom.aggregator.my_agg`.

        Raises ConfigError for a name that another class has. The same class again, or the same class of a module that
        is imported anew, takes the place of the former.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"register({name!r}): a component's name is words joined by dots, "
                              "such as custom.aggregator.my_agg")

        def add(cls: C) -> C:
            if not isinstance(cls, type):
                raise ConfigError(f"register({name!r}) decorates classes, not {cls!r}")
            owner = self._owner(name)
            if owner is not None and owner != _place_of(cls):
                raise ConfigError(f"register({name!r}): {_place_of(cls)} cannot take this name, which {owner} has; "
                                  "choose another")
            self._classes[name] = cls
            return cls

        return add

    def names(self, kind: str | None = None) -> list[str]:
        """All known names, or those of one kind ("trainer", "learner", "aggregator", "model"), sorted."""
        known = {*self._table, *self._classes, *_entry_points()}
        return sorted(name for name in known if kind is None or self._kind(name) in (kind, None))

    def name_problem(self, name: str, kind: str) -> str | None:
        """Why `name` cannot stand for a component of `kind`, or None; imports nothing, so it judges by names alone."""
        if ":" in name:
            return None if _PLACE.fullmatch(name) else f"{name!r} is not of the form package.module:Class"
        if self._is_known(name):
            found = self._kind(name)
            return None if found is None or found == kind else f"{name!r} is {_a(found)}, where {_a(kind)} is wanted"
        known = self.names(kind)
        return (f"{name!r} is no known {kind}{suggestion(name, known)} (known: {', '.join(known)}; "
                "or package.module:Class)")

    def resolve(self, name: str, kind: str | None = None) -> type:
        """The class that `name`, or `package.module:Class`, stands for; imported now if it has not been.

        Raises ConfigError for an unknown name, with the nearest one; for a class that is not of `kind`; and for a
        module that cannot be imported, naming the extra to install where that is what is missing.
        """
        if kind is not None and (problem := self.name_problem(name, kind)):
            raise ConfigError(problem)
        if name in self._classes:
            cls = self._classes[name]
        elif name in self._table:
            cls = _load(self._table[name], name)
        elif ":" in name:
            if not _PLACE.fullmatch(name):
                raise ConfigError(f"{name!r} is not of the form package.module:Class")
            cls = _load(name, name)
        elif name in (points := _entry_points()):
            cls = _load(points[name], name)
        else:
            known = self.names()
            raise ConfigError(f"{name!r} is no known component{suggestion(name, known)} (known: {', '.join(known)})")
        if kind is not None and not issubclass(cls, _base(kind)):
            is_one = next((other for other in KINDS if issubclass(cls, _base(other))), None)
            raise ConfigError(f"{name!r} is {_a(is_one) if is_one else 'a class'} ({_place_of(cls)}), where {_a(kind)} "
                              f"is wanted, a class derived from federation.{kind.capitalize()}")
        return cls

    def _is_known(self, name: str) -> bool:
        return name in self._classes or name in self._table or name in _entry_points()

    def _owner(self, name: str) -> str | None:
        """module:Class of whatever has `name`, or None."""
        return _place_of(self._classes[name]) if name in self._classes else self._table.get(name)

    def _kind(self, name: str) -> str | None:
        """The kind of a known name: its class's, where that is here already, else what its parts say."""
        if name in self._classes:
            return next((kind for kind in KINDS if issubclass(self._classes[name], _base(kind))), None)
        return next((part for part in name.split(".")[:-1] if part in KINDS), None)


registry = Registry()
register = registry.register
resolve = registry.resolve


def load_plugins(plugins: Sequence[str]) -> list[ModuleType]:
    """Import each of `plugins`, a module's name or the path of a `.py` file, so that it registers its components.

    A file is imported once a process, whatever the number of calls. Raises ConfigError, the original error chained,
    when a plugin is not there or raises.
    """
    return [_import_file(plugin) if plugin.endswith(".py") else _import_module(plugin) for plugin in plugins]


def _import_module(plugin: str) -> ModuleType:
    if not _MODULE.fullmatch(plugin):
        raise ConfigError(f"plugin {plugin!r} is neither a module's name, such as package.module, nor the path of a file that ends "
                          "with .py")
    return _import(plugin, f"plugin {plugin!r}")


def _import_file(plugin: str) -> ModuleType:
    path = Path(plugin).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"plugin {plugin!r}: there is no file {path}")
    # The path's digest keeps files of one name apart, and is the same in every process, for pickle.
    name = f"federation_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {plugin!r}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:
        del sys.modules[name]
        raise _failed(f"plugin {plugin!r}", error) from error
    return module


def _import(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except FAULTS as error:
        raise _failed(what, error) from error


def _failed(what: str, error: BaseException) -> ConfigError:
    """One sentence for an import that raised: what to install where that is the cause, else the error itself."""
    if isinstance(error, ConfigError):
        return ConfigError([f"{what}: {problem}" for problem in error.problems])
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if missing in _EXTRAS:
            return ConfigError(f"{what} needs {missing}, which is not installed: "
                               f"pip install 'federation-hpc[{_EXTRAS[missing]}]'")
        return ConfigError(f"{what} cannot be imported: there is no module {error.name!r} on the path")
    if isinstance(error, SystemExit):
        return ConfigError(f"{what} cannot be imported: it ends the program (SystemExit): what a script does belongs below "
                           "if __name__ == '__main__'")
    return ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}")


def _load(place: str, name: str) -> type:
    module_name, _, qualname = place.partition(":")
    found: object = _import(module_name, name)
    for part in qualname.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if isinstance(value, type) and not key.startswith("_")]
            raise ConfigError(f"{name}: module {module_name} has no class {qualname}{suggestion(part, public)}")
        found = getattr(found, part)
    if not isinstance(found, type):
        raise ConfigError(f"{name}: {qualname} of module {module_name} is not a class but {type(found).__name__}")
    return found


def _base(kind: str) -> type:
    if kind not in _BASES:
        raise ConfigError(f"{kind!r} is no kind of component{suggestion(kind, KINDS)} (kinds: {', '.join(KINDS)})")
    module, _, name = _BASES[kind].partition(":")
    base = getattr(importlib.import_module(module), name)
    assert isinstance(base, type)
    return base


def _entry_points() -> dict[str, str]:
    """The components that installed distributions announce: name -> module:Class."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _place_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
