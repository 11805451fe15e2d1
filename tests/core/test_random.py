"""Counter-based random streams."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from federation.core.random import stream, stream_seed


def test_streams_draw_the_same_numbers_on_every_platform_and_version():
    # Raw Philox output and seeds, written down once: they must never change, or no old run could be repeated.
    assert stream(0, "cohort").bit_generator.random_raw(3).tolist() == PINNED_FIRST
    assert stream(1234, "shuffle", 7, "client_3").bit_generator.random_raw(3).tolist() == PINNED_SECOND
    assert stream_seed(0, "initialisation") == PINNED_SEEDS[0]
    assert stream_seed(1234, "shuffle", 7, "client_3") == PINNED_SEEDS[1]


def test_every_part_of_the_name_gives_another_stream():
    names = list(itertools.product([0, 1, 2**40, -1], ["cohort", "shuffle", ""], [0, 1, 2**33], ["", "a", 0, 11]))
    drawn = {tuple(stream(*name).integers(0, 2**62, 2).tolist()) for name in names}
    seeds = {stream_seed(*name) for name in names}
    assert len(drawn) == len(seeds) == len(names)


def test_parts_do_not_run_into_each_other():
    pairs = [((1, "a", 2, "bc"), (1, "ab", 2, "c")), ((1, "a", 12, "3"), (1, "a", 1, "23")),
             ((11, "a", 0, ""), (1, "1a", 0, "")), ((1, "a\0", 0, ""), (1, "a", 0, "\0"))]
    for one, other in pairs:
        assert stream_seed(*one) != stream_seed(*other)
        assert stream(*one).random() != stream(*other).random()


def test_a_stream_depends_on_its_name_alone():
    expected = stream(5, "noise", 3, "x").random(4).tolist()
    for other in range(20):
        stream(5, "noise", other, "x").random(100)
    np.random.seed(1)  # the global generator must not matter
    assert stream(5, "noise", 3, "x").random(4).tolist() == expected
    assert stream(np.int64(5), "noise", np.uint8(3), "x").random(4).tolist() == expected
    assert stream(5, "noise", 3, 8).random() == stream(5, "noise", 3, "8").random()


def test_global_generators_are_left_alone():
    legacy, python = np.random.get_state()[1].tolist(), random.getstate()
    stream(1, "a").random(10)
    stream_seed(1, "a")
    assert np.random.get_state()[1].tolist() == legacy
    assert random.getstate() == python


def test_seeds_fit_63_bits_and_use_them():
    seeds = [stream_seed(seed, "s") for seed in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    counts = [sum(seed >> bit & 1 for seed in seeds) for bit in range(63)]
    assert all(800 < count < 1200 for count in counts)  # 9 standard deviations


def test_draws_are_uniform_over_rounds_and_clients():
    first = np.array([stream(0, "u", round, client).random() for round in range(40) for client in range(50)])
    counts = np.histogram(first, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 40  # chi squared, 9 degrees of freedom


@pytest.mark.parametrize("arguments", [(1.0, "a"), (None, "a"), (True, "a"), ("1", "a"), (1, "a", 1.5), (1, 2),
                                       (1, "a", 0, 1.5), (1, "a", 0, None), (1, "a", 0, True)])
def test_names_that_are_not_exact_are_refused(arguments):
    for function in (stream, stream_seed):
        with pytest.raises(TypeError, match="must be"):
            function(*arguments)


PINNED_FIRST = [8768695656771238475, 1836962830535060393, 16403786252267179845]
PINNED_SECOND = [3276954450958866354, 11444591548535964010, 10802114882495331897]
PINNED_SEEDS = [6587494322479841701, 3337271174314257992]
