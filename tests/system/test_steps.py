"""The ways to take a step, and several clients at once: the same bits in every mode, each its own ones."""

from __future__ import annotations

import json

import pytest

from tests.system.test_same_bits import RUN

#: A sum that is large enough for the memory that MPI ranks share, and a trace, which changes nothing.
WIDE = [*RUN, "components.model=model.torch.mlp", "model_config.hidden_sizes=[800]", "trainer_config.max_rounds=3",
        "num_workers=2", "timer.trace=true"]


#: The ways to take a step: without momentum, it is one native call for such a network.
STEPS = {"native": [], "autograd": ["learner_config.momentum=0.5"],
         "compiled": ["learner_config.momentum=0.5", "learner_config.compile=true"]}
WORLDS = {"native": [dict(mode="parallel"), dict(ranks=2), dict(ranks=4, env={"NODE_COMM_PRETENDED_NODES": "2,2"})],
          "autograd": [dict(mode="parallel"), dict(ranks=2)],
          "compiled": [dict(mode="parallel")]}  # every process compiles, which takes long


@pytest.fixture(scope="module")
def serial_runs():
    """By the way of the steps, each made once."""
    return {}


@pytest.mark.parametrize("steps", STEPS)
def test_a_wide_network_and_its_timeline(launch, serial_runs, steps):
    """Serial, in worker processes, and under mpirun on one machine and on what counts as two; the trace has what each rank did,
    and the summary how evenly."""
    settings = [*WIDE, *STEPS[steps]]
    alone = serial_runs[steps] = launch(mode="serial", settings=settings)
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


def test_compiled_steps_are_others(launch, serial_runs):
    """Else the test above would prove nothing of them."""
    runs = [serial_runs.get(steps) or launch(mode="serial", settings=[*WIDE, *STEPS[steps]]) for steps in STEPS]
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
