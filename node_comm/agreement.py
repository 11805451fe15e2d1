"""What each rank says when it enters a collective, and whether all mean the same.

Every rank hands in a `Call`; whoever sees them all asks `disagreement`. A rank whose own buffers cannot be used
hands in that problem, instead of raising alone and leaving the others to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from node_comm.arrays import Description, check_writable, describe
from node_comm.errors import BufferMismatch
from node_comm.transport import REDUCIBLE


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One rank's entry into a collective: what it gives, what it is ready to take, what is wrong with either."""

    kind: str
    root: int = 0
    operation: str = ""
    given: tuple[Description, ...] = ()
    taken: tuple[Description, ...] = ()
    problem: str = ""

    def __str__(self) -> str:
        what = f"{self.kind}({self.operation})" if self.operation else self.kind
        if self.kind == "barrier":
            return what
        buffers = ", ".join(str(description) for description in self.given[:4]) + (", ..." if self.given[4:] else "")
        buffers = buffers or "nothing that can be sent"
        if self.kind == "alltoall":
            return f"{what} of {buffers}"
        return f"{what} of {buffers} {'from' if self.kind == 'broadcast' else 'to'} rank {self.root}"


def barrier_call() -> Call:
    """Entry into a barrier."""
    return Call("barrier")


def broadcast_call(rank: int, size: int, buffer: np.ndarray, root: int) -> Call:
    """Entry into a broadcast: the root gives `buffer`, the others have it filled."""
    def check() -> None:
        _check_root(root, size)
        if rank != root:
            check_writable(buffer, describe(buffer))

    return Call("broadcast", root, "", _describe([buffer]), (), _problem([buffer], check))


def reduce_call(rank: int, size: int, buffer: np.ndarray | None, out: np.ndarray | None, root: int, operation: str) -> Call:
    """Entry into a reduction: every rank gives `buffer` (the root may give None), the root has `out` filled."""
    like = buffer if buffer is not None else out if rank == root else None

    def check() -> None:
        _check_root(root, size)
        if like is None or (buffer is None and size == 1):
            raise BufferMismatch("nothing is given to a reduce; only the root may have nothing of its own, where it has out "
                                 "and is not alone")
        if like.dtype not in REDUCIBLE:
            raise BufferMismatch(f"reduce cannot combine {describe(like)}: it takes "
                                 f"{', '.join(sorted(str(dtype) for dtype in REDUCIBLE))}")
        if operation not in ("sum", "max", "min"):
            raise BufferMismatch(f"unknown reduce operation {operation!r}: it must be sum, max or min")
        if rank == root:
            if out is None:
                raise BufferMismatch("the root of a reduce must give out, the array for the result")
            check_writable(out, describe(like))
            is_itself = like.ctypes.data == out.ctypes.data and like.flags.c_contiguous
            if not is_itself and np.may_share_memory(like, out):
                raise BufferMismatch(f"out overlaps the buffer of {describe(like)} that is to be reduced: give the buffer itself, "
                                     "or memory apart from it")

    arrays = [] if like is None else [like]
    return Call("reduce", root, operation, _describe(arrays), (), _problem(arrays, check))


def gather_call(rank: int, size: int, buffer: np.ndarray, out: Sequence[np.ndarray] | None, root: int) -> Call:
    """Entry into a gather: every rank gives `buffer`, the root has `out[rank]` filled."""
    targets = list(out) if out is not None and rank == root else []

    def check() -> None:
        _check_root(root, size)
        if rank == root:
            if out is None:
                raise BufferMismatch("the root of a gather must give out, one array for each rank")
            _check_targets(targets, size)

    return Call("gather", root, "", _describe([buffer]), _describe(targets), _problem([buffer, *targets], check))


def alltoall_call(size: int, buffers: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> Call:
    """Entry into an all-to-all: every rank gives `buffers[k]` to rank k and has `out[k]` filled from it."""
    def check() -> None:
        if len(buffers) != size:
            raise BufferMismatch(f"{len(buffers)} buffers are given to a world of {size} ranks")
        _check_targets(out, size)

    return Call("alltoall", 0, "", _describe(buffers), _describe(out), _problem([*buffers, *out], check))


def disagreement(calls: Sequence[Call]) -> str:
    """Why `calls`, in rank order, are not one collective; empty when they are."""
    first = calls[0]
    for rank, call in enumerate(calls):
        if (call.kind, call.root, call.operation) != (first.kind, first.root, first.operation):
            return _differ(0, first, rank, call)
    for rank, call in enumerate(calls):
        if call.problem:
            return f"rank {rank} cannot enter {call}: {call.problem}"
    if first.kind in ("broadcast", "reduce"):
        for rank, call in enumerate(calls):
            if call.given != first.given:
                return _differ(0, first, rank, call)
    if first.kind in ("gather", "alltoall"):
        return _transfer_disagreement(calls)
    return ""


def _transfer_disagreement(calls: Sequence[Call]) -> str:
    """Whether what each rank gives is what its receiver is ready to take, and all of one dtype."""
    first = calls[0]
    dtypes = [{description.dtype for description in call.given} for call in calls]
    for rank, names in enumerate(dtypes):
        if len(names | dtypes[0]) > 1:
            return _differ(0, first, rank, calls[rank])
    for source, call in enumerate(calls):
        for dest, given in enumerate(call.given) if call.kind == "alltoall" else [(call.root, call.given[0])]:
            taken = calls[dest].taken[source]
            if given != taken:
                return (f"ranks disagree about {call.kind}: rank {source} gives {given} to rank {dest}, "
                        f"but rank {dest} has {taken} for it in out[{source}]")
    return ""


def _differ(rank: int, call: Call, other_rank: int, other: Call) -> str:
    return f"ranks disagree about a collective: rank {rank} calls {call}, but rank {other_rank} calls {other}"


def _describe(arrays: Sequence[np.ndarray]) -> tuple[Description, ...]:
    """The descriptions of `arrays`; none at all if one of them cannot be sent, which `_problem` then says."""
    try:
        return tuple(describe(array) for array in arrays)
    except BufferMismatch:
        return ()


def _problem(arrays: Sequence[np.ndarray], check: Callable[[], None]) -> str:
    """What is wrong with this rank's own part, or nothing."""
    try:
        for array in arrays:
            describe(array)
        check()
    except BufferMismatch as error:
        return str(error)
    return ""


def _check_root(root: int, size: int) -> None:
    if not 0 <= root < size:
        raise BufferMismatch(f"root {root} is not a rank of this world of {size} (0 to {size - 1})")


def _check_targets(targets: Sequence[np.ndarray], size: int) -> None:
    if len(targets) != size:
        raise BufferMismatch(f"out holds {len(targets)} arrays, but this world has {size} ranks")
    for target in targets:
        check_writable(target, describe(target))
