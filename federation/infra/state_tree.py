"""Nested state as a description in JSON and a flat list of arrays, and back, bit for bit.

State is made of NumPy arrays and scalars, Weights, int, float, bool, str, bytes and None, nested in dicts (keys: str
or int), lists and tuples.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from federation.core.weights import Layout, Weights
from federation.errors import CheckpointError

Path = tuple[str, ...]

_STANDARD = re.compile(r"[<>|](b1|[iu][1248]|f[248]|c8|c16)")
_EXTENSION = re.compile(r"bfloat16|float[468]\w+|u?int[124]")
_UNSAFE = re.compile("[%/\0\ud800-\udfff]")
_BUILTINS = (bool, int, float, str, bytes, type(None))


@dataclass(frozen=True)
class Leaf:
    """One array of a tree: the HDF5 link names that lead to it, and its values in a dtype that HDF5 has."""

    path: Path
    stored: np.ndarray


class Fetch(Protocol):
    """Fills `out`, of the dtype that is stored, with the array at `path`; raises where the array differs from it."""

    def __call__(self, path: Path, out: np.ndarray) -> None: ...


def copy_state(value: Any, reuse: Any = None, where: str = "state") -> Any:
    """A deep copy of `value`; arrays and Weights in `reuse`, an earlier copy, are written over where they fit.

    Raises CheckpointError naming the place (below `where`) and type of what is not state.
    """
    if isinstance(value, Weights):
        if isinstance(reuse, Weights) and reuse.layout == value.layout:
            np.copyto(reuse.buffer, value.buffer)
            return reuse
        return value.copy()
    if isinstance(value, Mapping):
        _links(value, where)
        by_key = reuse if isinstance(reuse, dict) else {}
        return {key: copy_state(item, by_key.get(key), f"{where}/{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        earlier = reuse if type(reuse) is type(value) and len(reuse) == len(value) else [None] * len(value)
        return type(value)(
            copy_state(item, old, f"{where}/{i}") for i, (item, old) in enumerate(zip(value, earlier, strict=True))
        )
    if isinstance(value, np.ndarray | np.generic):
        dtype_text(value, where)
        if not isinstance(value, np.ndarray):
            return value
        if isinstance(reuse, np.ndarray) and reuse.dtype == value.dtype and reuse.shape == value.shape:
            np.copyto(reuse, value)
            return reuse
        return np.array(value, order="C")
    if type(value) not in _BUILTINS:
        raise _not_state(value, where)
    return value


def flatten(tree: Mapping[str, Any]) -> tuple[str, list[Leaf]]:
    """The description of `tree` as JSON, and its arrays in order; arrays are shared with `tree` where contiguous."""
    leaves: list[Leaf] = []
    node = _describe(tree, (), leaves)
    return json.dumps(node, separators=(",", ":")), leaves


def rebuild(structure: str, fetch: Fetch) -> Any:
    """The tree that `flatten` described, with each array fetched once, in the same order."""
    return _build(json.loads(structure), (), fetch)


def leaf_digest(header: str, structure: str, leaves: Sequence[Leaf]) -> str:
    """SHA-256, in hex, over `header`, `structure`, and of each leaf its path, dtype, shape and C-order bytes."""
    digest = hashlib.sha256()
    for text in (header, structure):
        digest.update(b"%d:" % len(text.encode()) + text.encode())
    for leaf in leaves:
        about = json.dumps([leaf.path, leaf.stored.dtype.str, leaf.stored.shape]).encode()
        digest.update(b"%d:" % len(about) + about)
        digest.update(leaf.stored.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def link_name(name: str | int) -> str:
    """`name` as one HDF5 link: different names stay different, and most stay as they are."""
    if name == "":
        return "%"
    link = _UNSAFE.sub(lambda found: _percent(found[0]), str(name))
    return "%2E" if link == "." else link


def dtype_text(value: np.ndarray | np.generic, where: str) -> str:
    """The dtype of `value` as text, byte order included. CheckpointError for one that does not survive as bytes."""
    dtype = value.dtype
    if not isinstance(value, np.ma.MaskedArray):
        if dtype.type.__module__ == "ml_dtypes" and _EXTENSION.fullmatch(dtype.name):
            return dtype.name
        if _STANDARD.fullmatch(dtype.str):
            return dtype.str
    raise CheckpointError(
        f"{where} is a {type(value).__name__} of dtype {dtype}, which a checkpoint cannot hold. Allowed are bool, "
        "integers, float16, bfloat16, float32, float64 and complex, unmasked."
    )


def _links(value: Mapping[Any, Any], where: str) -> dict[str, str | int]:
    """The HDF5 link of each key, in order. CheckpointError for keys that cannot be told apart in the file."""
    links: dict[str, str | int] = {}
    for key in value:
        if type(key) not in (str, int):
            raise CheckpointError(f"{where} has the key {key!r}; keys are str or int")
        link = link_name(key)
        if link in links:
            raise CheckpointError(f"{where} has the keys {links[link]!r} and {key!r}; use one type of key")
        links[link] = key
    return links


def _not_state(value: Any, where: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold. Allowed "
        "are NumPy arrays and scalars, Weights, int, float, bool, str, bytes, None, and dicts, lists and tuples."
    )


def _describe(value: Any, path: Path, leaves: list[Leaf]) -> list[Any]:
    if isinstance(value, Weights):
        arrays = []
        for name, array in value.items():
            text = _add(array, (*path, link_name(name)), leaves)
            arrays.append([name, text, list(array.shape)])
        return ["weights", arrays]
    if isinstance(value, Mapping):
        links = _links(value, "/".join(path))
        return ["dict", [[key, _describe(value[key], (*path, link), leaves)] for link, key in links.items()]]
    if type(value) in (list, tuple):
        return [
            type(value).__name__,
            [_describe(item, (*path, str(index)), leaves) for index, item in enumerate(value)],
        ]
    if isinstance(value, np.ndarray):
        return ["array", _add(value, path, leaves), list(value.shape)]
    if isinstance(value, np.generic):
        return ["scalar", _add(value, path, leaves)]
    if type(value) is str:
        return ["str", value]
    if value is None:
        return ["none"]
    if type(value) is bytes:
        _add(np.frombuffer(value, np.uint8), path, leaves)
        return ["bytes", len(value)]
    if type(value) is int and not -(2**63) <= value < 2**63:
        return ["long", hex(value)]  # hexadecimal: Python limits the digits of decimal text
    if type(value) in (bool, int, float):
        _add(np.array(value, _NUMBERS[type(value).__name__]), path, leaves)
        return [type(value).__name__]
    raise _not_state(value, "/".join(path))


_NUMBERS = {"bool": "|b1", "int": "<i8", "float": "<f8"}


def _build(node: list[Any], path: Path, fetch: Fetch) -> Any:
    kind = node[0]
    if kind == "weights":
        names, dtypes, shapes = zip(*node[1], strict=True) if node[1] else ((), (), ())
        weights = Weights.zeros(Layout(names, shapes, [_dtype_of(text) for text in dtypes]))
        for name, array in weights.items():
            fetch((*path, link_name(name)), array.view(_stored(array.dtype)))
        return weights
    if kind == "dict":
        return {key: _build(item, (*path, link_name(key)), fetch) for key, item in node[1]}
    if kind in ("list", "tuple"):
        items = [_build(item, (*path, str(index)), fetch) for index, item in enumerate(node[1])]
        return items if kind == "list" else tuple(items)
    if kind == "array":
        return _fetched(path, node[1], node[2], fetch)
    if kind == "scalar":
        return _fetched(path, node[1], (), fetch)[()]
    if kind == "bytes":
        return _fetched(path, "|u1", (node[1],), fetch).tobytes()
    if kind in _NUMBERS:
        return _fetched(path, _NUMBERS[kind], (), fetch).item()
    if kind == "str":
        return str(node[1])
    if kind == "long":
        return int(node[1], 16)
    if kind == "none":
        return None
    raise CheckpointError(f"{'/'.join(path)} is of the unknown kind {kind!r}")


def _add(value: np.ndarray | np.generic, path: Path, leaves: list[Leaf]) -> str:
    text = dtype_text(value, "/".join(path))
    array = np.asarray(value, order="C")
    leaves.append(Leaf(path, array.view(_stored(array.dtype))))
    return text


def _fetched(path: Path, text: str, shape: Sequence[int], fetch: Fetch) -> np.ndarray:
    dtype = _dtype_of(text)
    array = np.empty(tuple(shape), dtype)
    fetch(path, array.view(_stored(dtype)))
    return array


def _dtype_of(text: str) -> np.dtype[Any]:
    if _STANDARD.fullmatch(text):
        return np.dtype(text)
    if _EXTENSION.fullmatch(text):
        try:
            extension: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), text))
            return extension
        except (ImportError, AttributeError) as error:
            raise CheckpointError(f"it holds {text}, for which a newer package ml_dtypes is needed: {error}") from error
    raise CheckpointError(f"it holds the unknown dtype {text!r}")


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype under which HDF5 keeps the bytes of `dtype`."""
    return np.dtype(f"<u{dtype.itemsize}") if dtype.type.__module__ == "ml_dtypes" else dtype


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
