"""Settings that a configuration leaves to a component, held against the signature of its constructor."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from federation.config_check import Checker
from federation.config_secret import MASK, Secret
from federation.config_value import is_list, is_mapping, members, suggestion, unwrap
from federation.config_yaml import Given, from_python, join, problem


def check_settings(component: Callable[..., object], settings: Mapping[str, object], path: str,
                   reserved: Collection[str] = ()) -> list[str]:
    """The problems with `settings` as keyword arguments of `component`, a class or function; [] when they fit.

    Names are held against its signature, values against those annotations that YAML can express: bool, int, float (an
    integer is one), str, Literal, None, and lists, tuples, mappings and unions of them. A parameter with another
    annotation, or none, takes any value. `reserved` are the parameters that the caller gives. Each problem starts with
    `path` and the name of the setting.
    """
    return [problem("", where, message) for where, message in settings_problems(component, settings, path, reserved)]


def settings_problems(component: Callable[..., object], settings: Mapping[str, object], path: str,
                      reserved: Collection[str] = ()) -> list[tuple[str, str]]:
    """As check_settings, each problem as its dotted path and its message."""
    name = getattr(component, "__qualname__", repr(component))
    parameters = inspect.signature(component).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {key: p for key, p in parameters.items()
             if key not in reserved and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    hints = _hints(component)
    found: list[tuple[str, str]] = []
    for key, value in settings.items():
        where = join(path, key)
        if key in reserved and key in parameters:
            found.append((where, f"is given to {name} by the framework, not by the configuration"))
        elif key not in known:
            if not takes_any:
                names = ", ".join(known) or "no settings at all"
                found.append((where, f"unknown setting of {name}{suggestion(key, known)} (it takes: {names})"))
        elif _is_checkable(hints.get(key, object)):
            found += _value_problems(value, hints[key], where)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings:
            found.append((join(path, key), f"is missing: {name} needs it"))
    return found


def _value_problems(value: object, annotation: Any, path: str) -> list[tuple[str, str]]:
    objects: list[str] = []
    node = from_python(value, path, "", objects)
    if objects:
        return [(path, text.removeprefix(f"{path}: ")) for text in objects]
    if isinstance(node, Given) and isinstance(node.value, Secret) and Secret not in members(unwrap(annotation)[0]):
        node = Given(MASK if node.value.is_masked else node.value.reveal(), "")
    checker = Checker(empty_text=True)
    checker.value(node, annotation, path)
    return [(path, text.removeprefix(f"{path}: ")) for text in checker.problems]


def _hints(component: Callable[..., object]) -> dict[str, Any]:
    """The annotations of a constructor or function; {} where they name types that only a type checker sees."""
    function = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _is_checkable(annotation: Any) -> bool:
    """Whether YAML can express all that `annotation` allows."""
    base, _ = unwrap(annotation)
    if get_origin(base) in (Union, types.UnionType):
        return all(_is_checkable(member) for member in get_args(base))
    if get_origin(base) is Literal or base in (bool, int, float, str, type(None), Secret):
        return True
    if is_mapping(base):
        return True
    if is_list(base):
        return all(argument is Ellipsis or _is_checkable(argument) for argument in get_args(base))
    return False
