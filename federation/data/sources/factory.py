"""Samples from a function of the user's own, `package.module:factory`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from federation.data.dataset import Dataset
from federation.data.formats.raw import Content, Samples
from federation.data.provider import DataProvider, Request
from federation.errors import FAULTS, DataError


def factory(request: Request, settings: Mapping[str, Any]) -> DataProvider:
    """Calls the function with `settings`; it returns a Dataset, a Content, (x, y) or (x_train, y_train, x_test, y_test)."""
    return DataProvider(request.name, lambda: _called(request.name, settings))


def _called(name: str, settings: Mapping[str, Any]) -> Content | Dataset:
    function = _import(name)
    try:
        result = function(**settings)
    except FAULTS as error:
        raise DataError(f"{name} raised {type(error).__name__}: {error}") from error
    if isinstance(result, Dataset | Content):
        return result
    if isinstance(result, tuple) and len(result) == 2:
        return Content(Samples(*result))
    if isinstance(result, tuple) and len(result) == 4:
        return Content(Samples(*result[:2]), Samples(*result[2:]))
    given = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
    raise DataError(f"{name} returned {given}; expected a Dataset, (x, y) or (x_train, y_train, x_test, y_test)")


def _import(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except FAULTS as error:
        raise DataError(f"data set {name}: {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
                        f"expected package.module:factory, with the module on the Python path") from error
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(function):
        near = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise DataError(f"data set {name}: {module_name} has no function {attribute!r}{hint}")
    return function
