"""The one thread of a process that trains, so that its event loop stays free to answer.

One thread, because libraries keep state for each process (torch's generator, for one): whoever trains has it alone.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from federation.errors import exits_are_errors

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")


async def compute(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `function` on the process's computing thread and wait for it without blocking the event loop.

    A sys.exit in it is a FederationError: it would end the loop of whoever awaits this.
    """
    call = functools.partial(function, *args, **kwargs)
    with exits_are_errors():
        return await asyncio.get_running_loop().run_in_executor(_thread(), call)


async def at_once(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `compute` does, on the event loop's own thread: for what is shorter than the way to another thread and back."""
    return function(*args, **kwargs)


def doing(function: Callable[P, R], is_long: bool) -> Callable[P, Awaitable[R]]:
    """`function`, done by `compute` where it `is_long`, else `at_once`."""
    return functools.partial(compute if is_long else at_once, function)
