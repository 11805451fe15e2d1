"""The output folder: can it be written, do locks work, is there room."""

from __future__ import annotations

from collections.abc import Iterator

from federation.doctor.facts import WorldFacts, numbers, size_of
from federation.doctor.finding import Finding, ok, problem, warning

#: A checkpoint, in models: the model, and as much again twice for what a server's optimiser keeps.
CHECKPOINT = 3
#: Without a model to go by: the room that a run should find.
LITTLE = 100_000_000


def check_folder(facts: WorldFacts) -> Iterator[Finding]:
    """Whether rank 0 can write a file there."""
    folder = facts.folder
    if folder is None:
        return
    if folder.problem:
        yield problem("output folder", f"{folder.path}: {folder.problem}",
                      "set output_dir to a folder that this user may write, on a file system with room and quota left")
    else:
        yield ok("output folder", f"{folder.path} can be written ({folder.file_system or 'unknown file system'})")


def check_locks(facts: WorldFacts) -> Iterator[Finding]:
    """Whether locks keep a second job out of the folder, and others out of HDF5 files."""
    folder = facts.folder
    if folder is None or folder.problem:
        return
    if folder.flock:
        yield warning("file locks", f"{folder.path}: no flock ({folder.flock}); a file marks the run's folder instead, which a "
                      "killed job on another host leaves behind", "see that two jobs never share an output_dir")
    elif folder.not_locked_out:
        yield warning("file locks", f"{folder.path}: a lock that rank 0 holds does not keep out ranks "
                      f"{numbers(folder.not_locked_out)}: each host locks for itself",
                      "see that two jobs never share an output_dir; ask for a mount with locks (Lustre: -o flock)")
    else:
        yield ok("file locks", "flock works, on every host that sees the folder" if len(facts.hosts) > 1 else "flock works")
    if folder.hdf5:
        yield warning("HDF5 locks", f"{folder.path}: HDF5 cannot lock its files ({folder.hdf5}); checkpoints do without",
                      "export HDF5_USE_FILE_LOCKING=FALSE for other programs that open them")
    if folder.not_seen_by:
        yield ok("file locks", f"ranks {numbers(folder.not_seen_by)} do not see {folder.path}; only rank 0 writes there, and a "
                               "job that starts again has to find it")


def check_disk_space(facts: WorldFacts) -> Iterator[Finding]:
    """Room for the checkpoints that stay, the best one, and the one that is being written."""
    folder, model = facts.folder, facts.model
    if folder is None or folder.left is None:
        return
    subject, remedy = "disk space", "make room, or set output_dir to another file system; checkpoint.keep says how many stay"
    if folder.files_left is not None and folder.files_left < 100:
        yield problem(subject, f"{folder.path}: the file system takes {folder.files_left} more files (no inodes left)", remedy)
    count = facts.run.keep + 2
    if model is None:
        level = warning if folder.left < LITTLE else None
        message = f"{size_of(folder.left)} left"
        yield level(subject, message, remedy) if level else ok(subject, message)
        return
    need = CHECKPOINT * model * count
    message = (f"{size_of(folder.left)} left, and {count} checkpoints of up to {size_of(CHECKPOINT * model)} take up to "
               f"{size_of(need)}")
    if folder.left < model * count:
        yield problem(subject, message, remedy)
    elif folder.left < need:
        yield warning(subject, message, remedy)
    else:
        yield ok(subject, message)
