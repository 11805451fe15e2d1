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


@pytest.mark.parametrize(("ranks", "hosts"), [(2, "true"), (2, "false"), (3, "false"), (3, "true"), (5, "false"), (9, "true")])
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


#: A sum that is large enough for the memory that MPI ranks share, and a trace, which changes nothing.
WIDE = [*RUN, "components.model=model.torch.mlp", "model_config.hidden_sizes=[800]", "trainer_config.max_rounds=3",
        "num_workers=2", "timer.trace=true"]


#: The ways to take a step: without momentum, they are written out for such a network.
STEPS = {"written out": [], "autograd": ["learner_config.momentum=0.5"],
         "compiled": ["learner_config.momentum=0.5", "learner_config.compile=true"]}
WORLDS = {"written out": [dict(mode="parallel"), dict(ranks=2), dict(ranks=4, env={"NODE_COMM_PRETENDED_NODES": "2,2"})],
          "autograd": [dict(mode="parallel"), dict(ranks=2)],
          "compiled": [dict(mode="parallel")]}  # every process compiles, which takes long


@pytest.mark.parametrize("steps", STEPS)
def test_a_wide_network_and_its_timeline(launch, reference, steps):
    """Serial, in worker processes, and under mpirun on one machine and on what counts as two; the trace has what each rank did,
    and the summary how evenly."""
    settings = [*WIDE, *STEPS[steps]]
    alone = reference[steps] = launch(mode="serial", settings=settings)
    assert alone.summary["balance"] == ""
    for world in WORLDS[steps]:
        run = launch(settings=settings, **world)
        assert run.result == alone.result
        events = [event for event in json.loads((run.folder / "trace.json").read_text()) if event["ph"] == "X"]
        ranks = range(run.summary["world_size"])
        assert {event["pid"] for event in events} == set(ranks)
        for rank in ranks[1:]:
            names = {event["name"] for event in events if event["pid"] == rank}
            assert {"broadcast", "train", "load", "fit", "add", "reduce", "evaluate", "idle"} <= names
        trained = [event["args"]["client"] for event in events if event["name"] == "fit" and event["pid"]]
        assert len(trained) == 3 * 8
        if len(ranks) > 2:
            assert run.summary["balance"].startswith("parallel efficiency ")


def test_compiled_steps_are_others(launch, reference):
    """Else the test above would prove nothing of them."""
    runs = [reference.get(steps) or launch(mode="serial", settings=[*WIDE, *STEPS[steps]]) for steps in STEPS]
    assert len({run.result[0] for run in runs}) == 3


#: Eight of twenty clients in a round, of 4 to 200 samples, three at once: groups of one, two and three clients on the ranks.
TOGETHER = [*RUN, "components.model=model.torch.mlp", "trainer_config.max_rounds=3", "num_workers=2", "timer.trace=true",
            "learner_config.client_batch=3", "learner_config.momentum=0.9", "learner_config.local_epochs=2"]


def test_clients_that_are_trained_at_once(launch):
    """Whoever is in a group, and however many: serial, in worker processes, under mpirun, and placed as badly as can be."""
    alone = launch(mode="serial", settings=TOGETHER)
    sizes = set()
    for world in (dict(), dict(mode="parallel"), dict(ranks=3), dict(ranks=4, worst=["trainer_config.placement=last_rank"])):
        run = launch(settings=[*TOGETHER, *world.pop("worst", [])], **world)
        assert run.result == alone.result
        events = [event for event in json.loads((run.folder / "trace.json").read_text()) if event["ph"] == "X"]
        groups = [event["args"]["client"].split(", ") for event in events if event["name"] == "fit" and "args" in event]
        assert sum(map(len, groups)) == 3 * 8
        sizes |= {len(group) for group in groups}
    assert sizes == {1, 2, 3}


def test_the_number_trained_at_once_is_part_of_the_numbers(launch):
    """Else the test above would prove nothing of them."""
    digests = {launch(mode="serial", settings=[*TOGETHER, f"learner_config.client_batch={size}"]).result[0] for size in (1, 3)}
    assert len(digests) == 2
