"""One value held against the type that its key wants: taken exactly, or refused with the reason.

`true` is no number, `'8'` is no number, `010` and `12:30` are no number that two YAML readers agree on, NaN and
infinity are not finite, null stands only where it is allowed, and a name is one of the known names.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from federation.config_secret import MASK, Secret
from federation.config_yaml import Given, Node, Series, Table, Text, kind_of

TRUE_WORDS = frozenset({"true", "True", "TRUE"})
FALSE_WORDS = frozenset({"false", "False", "FALSE"})
# All words that YAML 1.1 takes for a truth value.
WORDS_FOR_TRUTH = TRUE_WORDS | FALSE_WORDS | frozenset(word for name in ("yes", "no", "on", "off", "y", "n")
                                                       for word in (name, name.capitalize(), name.upper()))
_REFERENCE = "${env:"
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]|\{\w+\})")
_MAX_SHOWN = 80


# -- numbers ---------------------------------------------------------------------------------------------------------

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_TRAPS = (
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), "is not a finite number"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?"),
     "is sexagesimal (base 60) to some YAML readers and text to others; write the number out"),
    (re.compile(r"[-+]?0[xXoObB][0-9a-fA-F_]+"), "is not decimal; hexadecimal, octal and binary are not read"),
    (re.compile(r"[-+]?(?:[0-9][0-9.]*_[0-9_.]*|\._*[0-9][0-9_]*_[0-9_]*)(?:[eE][-+]?[0-9]+)?"),
     "has an underscore, which only some YAML readers take for a number"),
    (re.compile(r"[-+]?0[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"),
     "has a leading zero, which makes it octal to some YAML readers; write it without"),
)
_MAX_DIGITS = 400


def parse_number(text: str) -> tuple[int | float | None, str]:
    """The number that plain `text` writes, else None and the reason why a number cannot be taken from it.

    The reason is "" where the text resembles no number at all. `1e-3`, `1E5` and `1.e3` are floats, `010`, `12:30`,
    `0x10`, `1_000` and `.nan` are refused: YAML readers disagree about them, or they are not finite.
    """
    if len(text) > _MAX_DIGITS:
        return None, "is too long for a number" if text[:1].isdigit() else ""
    if _INTEGER.fullmatch(text):
        return int(text), ""
    if _DECIMAL.fullmatch(text):
        value = float(text)
        mantissa = re.split("[eE]", text)[0]
        if value in (float("inf"), float("-inf")):
            return None, "is too large for a 64-bit float"
        if value == 0 and re.search("[1-9]", mantissa):
            return None, "is too small for a 64-bit float"
        return value, ""
    for pattern, reason in _TRAPS:
        if pattern.fullmatch(text):
            return None, reason
    return None, ""


@dataclass(frozen=True)
class Misfit:
    """Why a value does not fit, "" where the wanted type alone says it; and the name that may have been meant."""

    reason: str
    meant: str | None = None


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known name that `word` was most likely meant to be, or None when none is near."""
    folded = {name.casefold(): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return folded[close[0]]
    # `lr` for `client_lr`, `hiden` for `hidden_sizes`, `mlp` for `model.torch.mlp`: near a part that only one name has.
    owners: dict[str, set[str]] = {}
    for name in known:
        for part in re.split("[._]", name.casefold()):
            owners.setdefault(part, set()).add(name)
    parts = difflib.get_close_matches(word.casefold(), owners, n=1, cutoff=0.8)
    return next(iter(owners[parts[0]])) if parts and len(owners[parts[0]]) == 1 else None


def likeness(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word.casefold(), name.casefold()).ratio()


def suggestion(word: str, known: Collection[str]) -> str:
    """"; did you mean X?" where a known name is near, else ""."""
    name = nearest(word, known)
    return f"; did you mean {name}?" if name else ""


def shown(node: Node) -> str:
    """A value as it was written, shortened."""
    if isinstance(node, Table):
        return "a section"
    if isinstance(node, Series):
        return "a list"
    if isinstance(node, Text):
        if node.is_null:
            return node.text or "nothing"
        text = node.text if node.style == "plain" else repr(node.text)
    else:
        words = {None: "null", True: "true", False: "false"}
        text = words[node.value] if node.value is None or isinstance(node.value, bool) else repr(node.value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


# -- what is wanted, in words ----------------------------------------------------------------------------------------

def unwrap(annotation: Any) -> tuple[Any, msgspec.Meta]:
    """An annotation's type and its msgspec.Meta (an empty one where there is none)."""
    if get_origin(annotation) is Annotated:
        base, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, msgspec.Meta):
                return base, extra
        return base, msgspec.Meta()
    return annotation, msgspec.Meta()


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def wanted(annotation: Any) -> str:
    """What a key takes, in words: "an integer, at least 1, or auto"."""
    base, meta = unwrap(annotation)
    if "component" in (meta.extra or {}):
        return "the registry name of a component, or package.module:Class"
    words = []
    for member in members(base):
        word = _wanted_one(member)
        if member in (int, float):
            word += _range_words(meta)
        words.append(word)
    last = words.pop()
    return ", or ".join([", ".join(words), last] if words else [last])


def _wanted_one(member: Any) -> str:
    member, meta = unwrap(member)
    origin = get_origin(member)
    if origin is Literal:
        return ("one of " if len(get_args(member)) > 1 else "") + ", ".join(str(value) for value in get_args(member))
    if is_list(member):
        inner = [argument for argument in get_args(member) if argument is not Ellipsis]
        return "a list of " + wanted(inner[0]).removeprefix("an ").removeprefix("a ") if inner else "a list"
    if is_mapping(member) or (isinstance(member, type) and issubclass(member, msgspec.Struct)):
        return "a section (keys and values)"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Secret: "text",
             type(None): "null"}
    return names.get(member, getattr(member, "__name__", str(member))) + _range_words(meta)


def _range_words(meta: msgspec.Meta) -> str:
    limits = (("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt))
    words = " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
    return f", {words}" if words else ""


def is_list(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Sequence) and not issubclass(origin, str | bytes)


def is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Mapping)


# -- one value -------------------------------------------------------------------------------------------------------

def fit(node: Node, annotation: Any) -> Any:
    """The value that `node` gives for a key of type `annotation`, or a Misfit. Lists and sections are for Checker."""
    if get_origin(annotation) is Literal:
        return _fit_literal(node, get_args(annotation))
    fitting = {type(None): _fit_null, bool: _fit_bool, int: _fit_int, float: _fit_float, str: _fit_text,
               Secret: _fit_secret}.get(annotation)
    return fitting(node) if fitting else Misfit("")


def _fit_null(node: Node) -> Misfit | None:
    return None if node.is_null else Misfit("")


def _fit_bool(node: Node) -> bool | Misfit:
    if isinstance(node, Given):
        return node.value if isinstance(node.value, bool) else Misfit(f"is {kind_of(node.value)}")
    if isinstance(node, Text):
        if node.style == "quoted":
            return Misfit("is text, in quotes")
        if node.text in TRUE_WORDS or node.text in FALSE_WORDS:
            return node.text in TRUE_WORDS
        if node.text in WORDS_FOR_TRUTH:
            return Misfit("is a truth value to some YAML readers and text to others")
    return Misfit("")


def _fit_number(node: Node) -> int | float | Misfit:
    if isinstance(node, Given):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            return Misfit(f"is {kind_of(node.value)}")
        return node.value
    if isinstance(node, Text):
        if node.style == "quoted":
            return Misfit("is text, in quotes")
        if node.text in WORDS_FOR_TRUTH:
            return Misfit("is a truth value")
        number, reason = parse_number(node.text)
        return Misfit(reason) if number is None else number
    return Misfit("")


def _fit_int(node: Node) -> int | Misfit:
    number = _fit_number(node)
    if isinstance(number, float):
        is_whole = abs(number) < 1e15 and number == int(number)
        return Misfit("is not an integer" + (f"; write {int(number)}" if is_whole else ""))
    if isinstance(number, int) and not -2**63 <= number < 2**63:  # no library would take it
        return Misfit("is beyond a 64-bit integer")
    return number


def _fit_float(node: Node) -> float | Misfit:
    number = _fit_number(node)
    if isinstance(number, Misfit):
        return number
    try:
        value = float(number)
    except OverflowError:
        return Misfit("is too large for a 64-bit float")
    if not math.isfinite(value):
        return Misfit("is not a finite number")
    return value if value == number else Misfit("has more digits than a 64-bit float can hold")


def _fit_text(node: Node) -> str | Misfit:
    if isinstance(node, Given):
        if not isinstance(node.value, str):
            return Misfit(f"is {kind_of(node.value)}")
        return fit_reference(node.value)
    if not isinstance(node, Text) or node.is_null:
        return Misfit("")
    if node.style == "plain":
        if node.text in TRUE_WORDS | FALSE_WORDS:
            return Misfit("is a truth value; put it in quotes if it is meant as text")
        if parse_number(node.text)[0] is not None:
            return Misfit("is a number; put it in quotes if it is meant as text")
    return fit_reference(node.text)


def fit_reference(text: str) -> str | Misfit:
    """`text`, unless it refers to the environment."""
    return Misfit("refers to the environment, which only keys, tokens and passwords do") if _REFERENCE in text else text


def fit_path(text: str) -> str | Misfit:
    """`text` with a `~` at its beginning written out; variables are what a shell fills in, and refused here."""
    if _VARIABLE.search(text):
        return Misfit("holds a variable of the environment, which is not filled in here; write it out, or have the shell do so "
                      "after --set")
    return os.path.expanduser(text)


def _fit_secret(node: Node) -> Secret | Misfit:
    if isinstance(node, Given) and isinstance(node.value, Secret):
        return node.value
    text = node.value if isinstance(node, Given) else node.text if isinstance(node, Text) and not node.is_null else None
    if not isinstance(text, str):
        return Misfit("is no text")
    if text == MASK:
        return Secret(None)
    if text.startswith(_REFERENCE) and text.endswith("}"):
        name = text[len(_REFERENCE):-1]
        value = os.environ.get(name)
        return Secret(value, shown=text) if value else Misfit(f"refers to {name}, which the environment does not set")
    return Secret(text) if text else Misfit("is empty")


def _fit_literal(node: Node, allowed: tuple[Any, ...]) -> Any:
    if isinstance(node, Given):
        matching = [value for value in allowed if type(value) is type(node.value) and value == node.value]
        text = node.value
    elif isinstance(node, Text):
        text = node.text
        # A name takes the text as written: `off` is off, never False.
        matching = [value for value in allowed if value == text and not node.is_null]
        matching += [value for value in allowed if not isinstance(value, str) and fit(node, type(value)) == value]
    else:
        return Misfit("")
    if matching:
        return matching[0]
    if not isinstance(text, str):
        return Misfit(f"is {kind_of(text)}")
    return Misfit("is not known", nearest(text, [str(value) for value in allowed]))
