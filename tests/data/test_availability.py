"""Who is available when: by trace, by day and night, and what is drawn of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.availability import AvailableSampler, DayAndNight, Trace, read_trace
from federation.data.sampling import draw_cohort
from federation.errors import ConfigError, DataError

TRACE = """client,start,end
0,0,2
2,1,3.5
0,5,6

1,5.5,6
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a trace and return its path."""

    def to_file(text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    return to_file


def available(trace: Trace, time: float, num_clients: int = 4) -> list[int]:
    return np.flatnonzero(trace.at(0, time, num_clients)).tolist()


def test_a_trace_is_read_as_it_is_written(write) -> None:
    """From the start on, no longer at the end; client 3 has no interval, and is never available."""
    trace = read_trace(write(TRACE))
    expected = {0: [0], 0.5: [0], 1: [0, 2], 1.999: [0, 2], 2: [2], 3.499: [2], 3.5: [], 5: [0], 5.5: [0, 1], 6: [],
                8: []}
    assert {time: available(trace, time) for time in expected} == expected


def test_a_trace_with_a_period_begins_again(write) -> None:
    trace = read_trace(write(TRACE), period=8)
    for time in (0, 0.5, 1, 2, 3.5, 5.5, 6, 7.75):
        assert available(trace, time) == available(trace, time + 8) == available(trace, time + 8000)
    assert available(trace, 8.5) == [0]
    assert available(read_trace(write(TRACE), period=6), 11.75) == [0, 1], "an interval may last to the end of the period"


@given(intervals=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=20),
       period=st.none() | st.integers(60, 80), time=st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_any_trace_agrees_with_its_intervals(intervals: list[tuple[int, int, int]], period: int | None,
                                             time: int) -> None:
    clients, starts, lengths = (np.array(column) for column in zip(*intervals, strict=True))
    now = time if period is None else time % period
    expected = sorted({client for client, start, length in intervals if start <= now < start + length})
    assert available(Trace(clients, starts, starts + lengths, period), time, 7) == expected


def test_times_are_the_decimal_numbers_that_they_are_written_as() -> None:
    """100 times 0.29 is 29, and 0.3 is three periods of 0.1; of floats, the one is below and the other above."""
    trace = Trace(np.array([0, 1]), np.array([28.5, 29.0]), np.array([29.0, 29.5]))
    assert AvailableSampler(trace, round_length=0.29)(0, 101, np.ones(2, np.int64), 1).tolist() == [1]
    assert available(Trace(np.array([0, 1]), np.array([0.0, 0.05]), np.array([0.05, 0.1]), 0.1), 0.3, 2) == [0]


@pytest.mark.parametrize(("text", "expected"), [
    ("", "the first line must be client,start,end"),
    ("0,0,1\n", "the first line must be client,start,end"),
    ("client,start,end\n", "holds no interval"),
    ("client,start,end\n0,0,1\n-1,0,1\n", "line 3: '-1,0,1' is not an interval; .* 0 <= start < end <= 8, the period"),
    ("client,start,end\nclient_1,0,1\n", "line 2: 'client_1,0,1'"),
    ("client,start,end\n0,1,1\n", "line 2"), ("client,start,end\n0,2,1\n", "line 2"),
    ("client,start,end\n0,-1,1\n", "line 2"), ("client,start,end\n0,1\n", "line 2"),
    ("client,start,end\n0,1,2,3\n", "line 2"), ("client,start,end\n0,nan,2\n", "line 2"),
    ("client,start,end\n0,1,inf\n", "line 2"), ("client,start,end\n0,1,8.5\n", "line 2"),
    ("client,start,end\n99999999999999999999,0,1\n", "line 2"),
])
def test_traces_that_cannot_be_are_refused_with_their_line(write, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=rf"trace\.csv.*{expected}"):
        read_trace(write(text), period=8)


def test_a_trace_without_period_may_not_be_endless(write) -> None:
    with pytest.raises(DataError, match="line 2: '0,1,inf' is not an interval"):
        read_trace(write("client,start,end\n0,1,inf\n"))


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"client,start,end\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"binary\.csv: cannot be read"):
        read_trace(tmp_path / "binary.csv")


def test_a_trace_about_other_clients_is_refused(write) -> None:
    with pytest.raises(ConfigError, match=r"trace\.csv: client 2 is not among the 2 clients of this run, 0 to 1"):
        read_trace(write(TRACE)).at(0, 0, 2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_every_client_has_one_window_a_day(share: float) -> None:
    days = DayAndNight(period=24, share=share, peak=0.5, spread=0.5)
    table = np.array([days.at(3, 24 * step / 200, 40) for step in range(400)])  # two days
    np.testing.assert_array_equal(table[:200], table[200:])
    assert (abs(table[:200].mean(axis=0) - share) <= 1 / 200 + 1e-9).all()
    begins = (table & ~np.roll(table, 1, axis=0)).sum(axis=0)
    assert (begins == (0 if share == 1 else 2)).all()


@pytest.mark.parametrize("peak", [0.0, 0.55, 0.8, 1.0])
def test_windows_of_a_whole_day_leave_nobody_out(peak: float) -> None:
    """Nor where they begin: the time of round 4, three tenths of a day, is less than 0.8 - 0.5 in float64."""
    days = DayAndNight(period=10, share=1.0, peak=peak, spread=0.0)
    assert all(days.at(0, time, 3).all() for time in range(30))


def test_most_are_available_around_the_peak() -> None:
    """The middle of windows has the triangular distribution around the peak, so the share that is there follows."""
    days = DayAndNight(period=10, share=0.2, peak=0.6, spread=0.3)
    count = 4000
    for time in range(10):
        # Available are those whose middle is within 0.1 of a day: the triangle's mass on that stretch.
        def below(distance: float) -> float:
            t = min(max(distance / 0.3, -1), 1)
            return (1 + t) ** 2 / 2 if t < 0 else 1 - (1 - t) ** 2 / 2

        expected = below(time / 10 - 0.6 + 0.1) - below(time / 10 - 0.6 - 0.1)
        found = days.at(1, time, count).mean()
        assert abs(found - expected) <= 4 * math.sqrt(0.25 / count)
    assert days.at(1, 6, count).mean() > 0.5
    assert days.at(1, 1, count).mean() == 0


def test_a_window_belongs_to_seed_and_client() -> None:
    days = DayAndNight()
    few = [days.at(5, time, 10) for time in range(24)]
    many = [days.at(5, time, 1000)[:10] for time in range(24)]
    np.testing.assert_array_equal(few, many)
    assert any((days.at(5, time, 50) != days.at(6, time, 50)).any() for time in range(24))


@pytest.mark.parametrize(("name", "value"), [("share", 0.0), ("share", 1.5), ("peak", -0.1), ("spread", 1.1),
                                             ("period", 0.0), ("period", float("inf")), ("peak", float("nan"))])
def test_days_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"availability: {name} {value:g}"):
        DayAndNight(**{name: value})


@given(seed=st.integers(0, 99), round=st.integers(1, 200), length=st.sampled_from([1.0, 0.25, 7.0]),
       sizes=st.lists(st.integers(0, 3), min_size=4, max_size=40).filter(any), data=st.data())
@settings(max_examples=150, deadline=None)
def test_only_clients_that_are_available_are_drawn(seed: int, round: int, length: float, sizes: list[int],
                                                   data: st.DataObject) -> None:
    """The draw is that of the plain sampler among them; where there are fewer, all of them; where none, none."""
    size = data.draw(st.integers(1, len(sizes)))
    days = DayAndNight(period=24, share=0.3)
    there = days.at(seed, (round - 1) * length, len(sizes))
    eligible = np.array([index for index, samples in enumerate(sizes) if samples and there[index]], np.int64)
    drawn = AvailableSampler(days, length)(seed, round, np.array(sizes), size)
    assert drawn.dtype == np.int64
    if len(eligible) == 0:
        assert len(drawn) == 0
    else:
        np.testing.assert_array_equal(drawn, draw_cohort(seed, round, len(sizes), size, eligible))
        assert len(drawn) == min(size, len(eligible))


def test_the_sampler_refuses_what_no_availability_could_give() -> None:
    sampler = AvailableSampler(DayAndNight())
    with pytest.raises(ConfigError, match="cohort_size: 4 clients cannot be drawn from 3"):
        sampler(0, 1, np.ones(3, np.int64), 4)
    with pytest.raises(ConfigError, match="none of the 3 clients has samples"):
        sampler(0, 1, np.zeros(3, np.int64), 2)
