"""A world of MPI ranks that has lost some: who is left, by the calls of ULFM. Importing this module loads MPI.

`agree` and `shrunk` are called by all ranks that live, and block until they have; neither hangs when further ranks die
meanwhile. (MPI 4.1 does not have these calls; Open MPI 5 does, see Bland et al., "Post-failure recovery of MPI
communication capability", 2013.)
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from mpi4py import MPI


class Word(enum.IntFlag):
    """What a rank says at the end of its world; what all agree on is what they have in common."""

    END = 0  #: the whole job must end
    GO_ON = 1  #: in a world of those that are left
    LEAVE = 3  #: the work is done


def agree(comm: MPI.Intracomm, word: Word) -> Word:
    """What the words of all living ranks of `comm` have in common, GO_ON at most where one has died: the same for all."""
    while True:
        try:
            return Word(comm.Agree(int(word)))
        except MPI.Exception:  # a rank has died, which all are told alike
            comm.Ack_failed()
            word &= Word.GO_ON


def revoke(comms: Iterable[MPI.Intracomm]) -> None:
    """Wake up every rank that waits in a call on one of `comms`. Needs nobody else."""
    for comm in comms:
        try:
            comm.Revoke()
        except MPI.Exception:  # it is revoked already
            continue


def is_broken(comm: MPI.Intracomm) -> bool:
    """Whether a rank of `comm` is known to be lost, or somebody has revoked it. Needs nobody else."""
    return bool(comm.Is_revoked() or comm.Get_failed().Get_size())


def shrunk(comm: MPI.Intracomm, copies: int) -> tuple[MPI.Intracomm, list[MPI.Intracomm]]:
    """A communicator of the ranks of `comm` that live, in their order, and `copies` duplicates of it."""
    while True:
        comm = MPI.Intracomm(comm.Shrink())
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        duplicates = []
        try:
            for _ in range(copies):
                duplicates.append(comm.Dup())
        except MPI.Exception:
            revoke([comm])  # somebody else may still be in there
        if agree(comm, Word.LEAVE if len(duplicates) == copies else Word.GO_ON) is Word.LEAVE:
            for duplicate in duplicates:
                duplicate.Set_errhandler(MPI.ERRORS_RETURN)
            return comm, duplicates


def lost(before: MPI.Intracomm, after: MPI.Intracomm) -> list[int]:
    """The ranks of `before` that are not in `after`, by their numbers in `before`."""
    old, new = before.Get_group(), after.Get_group()
    places = MPI.Group.Translate_ranks(old, list(range(old.Get_size())), new)
    return [rank for rank, place in enumerate(places) if place == MPI.UNDEFINED]
