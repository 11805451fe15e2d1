"""Metrics as JSON that every parser takes: no NaN, no NumPy scalars."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


def to_json(value: Any, where: str, warned: set[str], *, keep_none: bool = False, key: str = "") -> Any:
    """`value` with builtins only, ready for `json.dumps(..., allow_nan=False)`.

    NumPy scalars and arrays become numbers and lists, NaN and infinity None (null), other objects their text. A None
    in a mapping is left out unless `keep_none`. Each key is warned about once: `warned` is the caller's memory of that,
    `where` names the file in the warning, `key` is the path of `value` within the whole.
    """
    if isinstance(value, Mapping):
        result = {}
        for name, item in value.items():
            path = f"{key}/{name}" if key else str(name)
            if item is None and not keep_none:
                _warn_once(warned, path, "%s: %s is None and is left out", where, path)
            else:
                result[str(name)] = to_json(item, where, warned, keep_none=keep_none, key=path)
        return result
    if isinstance(value, list | tuple):
        return [to_json(item, where, warned, keep_none=keep_none, key=key) for item in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist(), where, warned, keep_none=keep_none, key=key)
    if isinstance(value, np.generic):
        return to_json(value.item(), where, warned, keep_none=keep_none, key=key)
    if value is None or isinstance(value, bool | int | str):
        return value
    number = as_float(value)
    if number is None:
        _warn_once(warned, key, "%s: %s is a %s and is written as text", where, key, type(value).__name__)
        return str(value)
    if not math.isfinite(number):
        _warn_once(warned, key, "%s: %s is %s and is written as null", where, key, number)
        return None
    return number


def as_float(value: Any) -> float | None:
    """`value` as a float where it is one real number (0-d tensors and arrays included), else None."""
    if value is None or isinstance(value, str | bytes | Mapping | list | tuple):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _warn_once(warned: set[str], key: str, message: str, *arguments: object) -> None:
    if key not in warned:
        warned.add(key)
        logger.warning(message, *arguments)
