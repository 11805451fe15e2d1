"""The same bits in every mode, at every rank count, wherever clients are placed."""

from __future__ import annotations

import json

import pytest

RUN = ["num_clients=20", "data.partitioner=dirichlet", "data.partitioner_config.alpha=0.3",
       "trainer_config.cohort_size=8", "trainer_config.max_rounds=30", "seed=3"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The serial run's result, made once."""
    return {}


def serial(launch, reference):
    if not reference:
        reference["result"] = launch(mode="serial", settings=RUN).result
    return reference["result"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parallel_equals_serial(launch, reference, workers):
    run = launch(mode="parallel", settings=[*RUN, f"num_workers={workers}"])
    assert run.result == serial(launch, reference)
    assert run.summary["world_size"] == workers + 1


@pytest.mark.parametrize(("ranks", "hosts"), [(2, "false"), (3, "true"), (5, "false"), (9, "true")])
def test_mpi_equals_serial(launch, reference, ranks, hosts):
    """S-CONF-06 and S-COMM-06: the configured clients, whatever the number of ranks."""
    run = launch(ranks=ranks, settings=[*RUN, f"trainer_config.server_hosts_clients={hosts}"])
    assert run.result == serial(launch, reference)
    assert (run.summary["mode"], run.summary["world_size"]) == ("mpi", ranks)


@pytest.mark.parametrize(("mode", "ranks"), [("parallel", None), (None, 3)])
def test_the_worst_placement_changes_nothing(launch, reference, mode, ranks):
    run = launch(mode=mode, ranks=ranks, settings=[*RUN, "trainer_config.placement=last_rank", "num_workers=2"])
    assert run.result == serial(launch, reference)


@pytest.mark.parametrize("world", [dict(mode="parallel"), dict(ranks=3)], ids=["parallel", "mpirun"])
@pytest.mark.parametrize("aggregator", ["fedavg", "median"])
def test_a_rank_that_is_slow_is_relieved(launch, world, aggregator):
    """Rank 1 takes five times as long for a client: rank 2 gets clients of its share, in orders of their own."""
    settings = ["plugins=[tests/system/slow.py]", "components.model=model.numpy.linear", "components.learner=test.learner.slow",
                f"components.aggregator=federated.aggregator.{aggregator}", "num_clients=16", "trainer_config.max_rounds=3",
                "num_workers=2", "tracker=none", "timer.trace=true", "seed=3", "learner_config.delay=0.01"]
    run = launch(settings=settings, **world)
    assert run.result == launch(mode="serial", settings=settings).result
    events = [event for event in json.loads((run.folder / "trace.json").read_text()) if event["ph"] == "X"]
    orders = [sum(event["name"] == "train" and event["pid"] == rank for event in events) for rank in (1, 2)]
    trained = [sum(event["name"] == "fit" and event["pid"] == rank for event in events) for rank in (1, 2)]
    assert min(orders) > 3
    assert sum(trained) == 3 * 16
    assert trained[0] < trained[1]


def test_more_ranks_than_clients_idle(launch):
    """S-CONF-06: -n 5 for two clients: the others idle, and the result is that of the serial run."""
    few = ["num_clients=2", "trainer_config.max_rounds=2", "trainer_config.min_clients=1"]
    assert launch(ranks=5, settings=few).result == launch(mode="serial", settings=few).result


@pytest.mark.parametrize("arguments", [dict(ranks=1), dict(ranks=1, mode="mpi"), dict(mode="mpi")])
def test_a_world_of_one(launch, arguments):
    """S-PKG-04: mpirun -n 1, and mode mpi without a launcher, host every client on rank 0."""
    short = ["num_clients=4", "trainer_config.max_rounds=2"]
    assert launch(settings=short, **arguments).result == launch(mode="serial", settings=short).result


def test_another_seed_gives_other_bits(launch, reference):
    assert launch(mode="serial", settings=[*RUN[:-1], "seed=4"]).result != serial(launch, reference)
