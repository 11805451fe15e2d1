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

#: Parameters of constructors that the framework gives, so that a configuration may not; by kind of component.
RESERVED = {"learner": ("model", "data"), "aggregator": (), "model": (),
            "trainer": ("server", "model", "aggregator", "config", "seed", "reduction", "on_divergence", "recorder"),
            "partitioner": ("labels", "num_clients", "rng_seed", "columns"), "dataset": ("request", "seed")}


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
                      reserved: Collection[str] = (),
                      elsewhere: Callable[[], Mapping[str, str]] = dict) -> list[tuple[str, str]]:
    """As check_settings, each problem as its dotted path and its message.

    `elsewhere` says where settings of other sections belong, by name; it is called only where a name is unknown here.
    """
    name = getattr(component, "__qualname__", repr(component))
    parameters, takes_any = _parameters(component, reserved)
    known = {key: parameter for key, parameter in parameters.items() if key not in reserved}
    found: list[tuple[str, str]] = []
    for key, value in settings.items():
        where = join(path, key)
        if key in reserved and key in parameters:
            found.append((where, f"is given to {name} by the framework, not by the configuration"))
        elif key not in known:
            if not takes_any:
                names = ", ".join(known) or "no settings at all"
                home = elsewhere().get(key)
                hint = f"; did you mean {home}?" if home else suggestion(key, known)
                found.append((where, f"unknown setting of {name}{hint} (it takes: {names})"))
        elif _is_checkable(known[key][1]):
            found += _value_problems(value, known[key][1], where)
    for key, (parameter, _) in known.items():
        if parameter.default is parameter.empty and key not in settings:
            found.append((join(path, key), f"is missing: {name} needs it"))
    return found


def setting_parameters(component: Callable[..., object],
                       reserved: Collection[str] = ()) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The settings of `component`, a class or function: its keyword parameters but the `reserved` ones, in order.

    Each with its annotation, evaluated; `object` where it has none that can be. A class whose constructor takes `**name`
    hands these on to the next constructor in its method resolution order, so the parameters of that one follow; where that
    one has no settings either, they are the class's own affair, and any name will do.
    """
    return {name: found for name, found in _parameters(component, reserved)[0].items() if name not in reserved}


def _parameters(component: Callable[..., object],
                reserved: Collection[str]) -> tuple[dict[str, tuple[inspect.Parameter, Any]], bool]:
    """All parameters that can be given by name, with their annotations; and whether any other name is taken as well."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    takes_any = False
    for function in _constructors(component):
        parameters = inspect.signature(component if function is None else function).parameters.values()
        hints = _hints(component if function is None else function)
        own = [parameter for parameter in list(parameters)[function is not None:]
               if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)]
        if takes_any and all(parameter.name in reserved for parameter in own):
            return found, True
        for parameter in own:
            found.setdefault(parameter.name, (parameter, hints.get(parameter.name, object)))
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        if not takes_any:
            break
    return found, takes_any


def _constructors(component: Callable[..., object]) -> list[Callable[..., object] | None]:
    """The functions that keyword arguments go through as long as each takes `**name`; None is `component` itself."""
    if not isinstance(component, type):
        return [None]
    return [vars(base)["__init__"] for base in component.__mro__[:-1] if "__init__" in vars(base)] or [None]


def _value_problems(value: object, annotation: Any, path: str) -> list[tuple[str, str]]:
    objects: list[str] = []
    node = from_python(value, path, "", objects)
    if objects:
        return [_place_and_message(text, path) for text in objects]
    if isinstance(node, Given) and isinstance(node.value, Secret) and Secret not in members(unwrap(annotation)[0]):
        node = Given(MASK if node.value.is_masked else node.value.reveal(), "")
    checker = Checker(empty_text=True)
    checker.value(node, annotation, path)
    return [_place_and_message(text, path) for text in checker.problems]


def _place_and_message(text: str, path: str) -> tuple[str, str]:
    """A problem with the value at `path`, or with an item below it, as its path and its message."""
    below, _, message = text.removeprefix(path).partition(": ")
    return path + below, message


def _hints(function: Callable[..., object]) -> dict[str, Any]:
    """The annotations of a function; {} where they name types that only a type checker sees."""
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
