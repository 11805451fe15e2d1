"""Rounds that do not wait for everyone: by the virtual clock, the same in every mode."""

from __future__ import annotations

import pytest

RUN = ["num_clients=20", "data.partitioner=dirichlet", "data.partitioner_config.alpha=0.3", "seed=3",
       "trainer_config.max_rounds=6", "trainer_config.cohort_size=8", "trainer_config.over_select=1.3",
       "trainer_config.deadline=1.5", "trainer_config.latency.kind=lognormal", "trainer_config.latency.spread=0.5",
       "trainer_config.latency.sample_seconds=0.002", "trainer_config.latency.client_spread=0.5",
       "trainer_config.sampling=weighted", "learner_config.local_epochs=1"]


@pytest.fixture(scope="module")
def reference():
    """The serial run, made once."""
    return {}


@pytest.mark.parametrize(("mode", "ranks"), [("parallel", None), (None, 3)])
def test_every_mode_equals_serial(launch, reference, mode, ranks):
    serial = reference.get("run") or launch(mode="serial", settings=RUN)
    reference["run"] = serial
    run = launch(mode=mode, ranks=ranks, settings=[*RUN, "num_workers=2"])
    assert run.result == serial.result


def test_rows_say_who_was_late_and_when_rounds_closed(launch, reference):
    serial = reference.get("run") or launch(mode="serial", settings=RUN)
    sizes = [row["cohort_size"] for row in serial.rows]
    assert [size + row["clients_late"] for size, row in zip(sizes, serial.rows, strict=True)] == [11] * 6  # ceil(10.4)
    for row in serial.rows:
        assert row["clients_failed"] == 0
        assert (row["virtual_seconds"] == 1.5) if row["cohort_size"] < 8 else (row["virtual_seconds"] <= 1.5)
        assert row["bytes_down"] == row["bytes_up"] // row["cohort_size"] * 11, "late clients were sent the weights too"
    assert min(sizes) < 8, "the deadline cut a round"
    assert max(sizes) == 8, "over-selection filled a round"


def test_a_trace_decides_who_trains(launch, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start,end\n" + "".join(f"{client},{client % 2},{client % 2 + 1}\n" for client in range(7)))
    settings = ["num_clients=7", "trainer_config.max_rounds=4", "trainer_config.sampling=availability",
                f"trainer_config.availability.trace={trace}", "trainer_config.availability.period=2"]
    run = launch(mode="serial", settings=settings)
    assert [row["cohort_size"] for row in run.rows] == [4, 3, 4, 3]
    assert not {"clients_late", "virtual_seconds"} & set(run.rows[0]), "rows are as ever where everyone is waited for"
    assert launch(mode="parallel", settings=[*settings, "num_workers=2"]).result == run.result
