"""Which GPU each rank would train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from federation.doctor.facts import RankFacts, WorldFacts, ranks_of
from federation.doctor.finding import Finding, ok, problem, warning

SUBJECT = "GPUs"


def check_gpus(facts: WorldFacts) -> Iterator[Finding]:
    """Missing, idle and shared GPUs, on each host, for the configured device."""
    device = facts.run.device
    training = [rank for rank in facts.ranks if rank.trains]
    without = [rank for rank in training if not rank.gpus]
    if device.startswith("cuda") and without:
        hosts = ", ".join(sorted({rank.host for rank in without})[:4])
        yield problem(SUBJECT, f"learner_config.device is {device}, but torch finds no GPU for {ranks_of(without)} on {hosts}",
                      "ask for GPUs (sbatch --gpus-per-node=N), install a torch that supports them, or set device: auto")
        return
    if not any(rank.gpus for rank in facts.ranks):
        unknown = all(rank.gpus is None for rank in facts.ranks)
        yield ok(SUBJECT, "not looked for: torch is not installed" if unknown else "none")
        return
    if device == "cpu":
        most = max(rank.gpus or 0 for rank in facts.ranks)
        message = f"{most} GPUs for a rank to use, but learner_config.device is cpu"
        yield (warning(SUBJECT, message, "set learner_config.device: cuda for a torch model") if facts.run.given
               else ok(SUBJECT, message))
        return
    for host, ranks in facts.hosts.items():
        yield from _check_host(host, [rank for rank in ranks if rank.trains and rank.gpus], device)


def _check_host(host: str, ranks: list[RankFacts], device: str) -> Iterator[Finding]:
    """One host, of whose ranks those that train with a GPU are given."""
    if not ranks:
        return
    beyond = [rank for rank in ranks if _gpu(rank, device) is None]
    if beyond:
        yield problem(SUBJECT, f"{host}: device {device} is not there for {ranks_of(beyond)}, which find {beyond[0].gpus} GPUs",
                      "set learner_config.device: cuda, which gives each rank one by its number on the host")
        return
    users = Counter(str(_gpu(rank, device)) for rank in ranks)
    gpu, most = users.most_common(1)[0]
    there = len(_seen(ranks))
    if most > 1 and len(users) < there:
        unnumbered = ":" not in device and any(rank.local_rank is None for rank in ranks)
        why = "no launcher tells ranks their numbers on the host" if unnumbered else f"learner_config.device is {device}"
        yield warning(SUBJECT, f"{host}: {most} ranks share GPU {gpu}, and {there - len(users)} of {there} GPUs are idle: {why}",
                      "set learner_config.device: cuda and start the ranks with mpirun or srun")
    elif most > 1:
        yield warning(SUBJECT, f"{host}: {len(ranks)} ranks share {there} GPUs, up to {most} each",
                      "small models may gain by it; else start as many training ranks as there are GPUs")
    elif len(users) < there:
        yield warning(SUBJECT, f"{host}: {len(ranks)} training ranks leave {there - len(users)} of {there} GPUs idle",
                      "start a rank for each GPU, or set trainer_config.server_hosts_clients: true so that rank 0 trains")
    else:
        yield ok(SUBJECT, f"{host}: a GPU for each of {len(ranks)} training ranks")


def _gpu(rank: RankFacts, device: str) -> str | None:
    """The GPU that `rank` would use, by the name that the host knows it by; None for one that is not there.

    The same rule as `federation.builtin.steps.device.choose_device`, for GPUs that were found.
    """
    count = rank.gpus or 0
    number = int(device.partition(":")[2]) if ":" in device else (rank.local_rank or 0) % count
    return _names(rank)[number] if number < count else None


def _seen(ranks: list[RankFacts]) -> set[str]:
    return {name for rank in ranks for name in _names(rank)}


def _names(rank: RankFacts) -> list[str]:
    """The GPUs that `rank` sees; Slurm may show each rank others, all of which the rank calls 0."""
    given = [name.strip() for name in (rank.visible_gpus or "").split(",") if name.strip()]
    count = rank.gpus or 0
    return given[:count] if len(given) >= count else [str(number) for number in range(count)]
