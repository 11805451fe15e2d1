"""Partitioners: every sample to exactly one client, as asked, the same everywhere; the rest refused."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from federation.data.partition import Partition, classes_of
from federation.data.partitioner import PARTITIONERS, dirichlet, iid, label
from federation.errors import DataError
from tests.data.splits import DRAWN, digest, make
from tests.mpi_helper import ROOT, mpirun, needs_mpi, report

TEN = np.arange(997) % 10


def assert_conserved(partition: Partition, num_samples: int, num_clients: int) -> None:
    """Counted one by one: each sample has one client."""
    seen = Counter(sample for client in range(num_clients) for sample in partition.client(client).tolist())
    assert partition.num_clients == num_clients
    assert seen == Counter(range(num_samples))
    assert partition.sizes.tolist() == [len(partition.client(client)) for client in range(num_clients)]


@st.composite
def labellings(draw: st.DrawFn) -> np.ndarray:
    """Labels of any integer dtype and spacing, classes missing, one class only."""
    names = draw(st.lists(st.integers(-100, 100) | st.integers(-(2**60), 2**60), min_size=1, max_size=8, unique=True))
    picks = draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=120))
    return np.array(names, np.int64)[picks]


@given(labels=labellings(), num_clients=st.integers(1, 40), seed=st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_iid_conserves_samples_in_equal_sizes(labels: np.ndarray, num_clients: int, seed: int) -> None:
    """S-PART-02: IID."""
    assume(num_clients <= len(labels))
    partition = iid(labels, num_clients, seed)
    assert_conserved(partition, len(labels), num_clients)
    assert set(partition.sizes.tolist()) <= {len(labels) // num_clients, -(-len(labels) // num_clients)}


@given(labels=labellings(), num_clients=st.integers(1, 40), seed=st.integers(0, 2**40), balanced=st.booleans(),
       alpha=st.sampled_from([1e-9, 0.01, 0.1, 1.0, 100.0, 1e9]), min_size=st.integers(1, 12),
       allow_empty=st.booleans())
@settings(max_examples=300, deadline=None)
def test_dirichlet_conserves_samples_and_keeps_its_least_size(labels: np.ndarray, num_clients: int, seed: int,
                                                              balanced: bool, alpha: float, min_size: int,
                                                              allow_empty: bool) -> None:
    """S-PART-02: Dirichlet, with every setting."""
    assume(num_clients * min_size <= len(labels) or allow_empty)
    least = 0 if allow_empty else min_size
    partition = dirichlet(labels, num_clients, seed, alpha=alpha, balanced=balanced, allow_empty=allow_empty,
                          min_size=1 if allow_empty else min_size)
    assert_conserved(partition, len(labels), num_clients)
    assert partition.sizes.min() >= least
    if balanced:
        assert partition.sizes.max() - partition.sizes.min() <= 1


@given(labels=labellings(), num_clients=st.integers(1, 40), seed=st.integers(0, 2**40), each=st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_label_gives_each_client_its_number_of_labels_or_refuses(labels: np.ndarray, num_clients: int, seed: int,
                                                                 each: int) -> None:
    """S-PART-03: exactly so many labels a client, every sample used once; refused only where that cannot be."""
    counts = Counter(labels.tolist())
    possible = (each <= len(counts) and num_clients * each >= len(counts)
                and sum(min(count, num_clients) for count in counts.values()) >= num_clients * each)
    if not possible:
        with pytest.raises(DataError):
            label(labels, num_clients, seed, labels_per_client=each)
        return
    partition = label(labels, num_clients, seed, labels_per_client=each)
    assert_conserved(partition, len(labels), num_clients)
    for client in range(num_clients):
        assert len(set(labels[partition.client(client)].tolist())) == each


def test_dirichlet_conserves_997_samples_for_1000_seeds() -> None:
    """S-PART-02: 997 samples, 10 labels, 10 clients, alpha 0.1; truncation loses samples in every draw."""
    for seed in range(1000):
        partition = dirichlet(TEN, 10, seed, alpha=0.1)
        assert partition.sizes.sum() == 997
        np.testing.assert_array_equal(np.sort(partition.order), np.arange(997))


def test_small_alpha_with_equal_sizes_ends() -> None:
    """S-PART-01a: 50,000 samples, 10 balanced labels, 100 clients, alpha 0.1, equal sizes."""
    labels = np.arange(50_000) % 10
    partition = dirichlet(labels, 100, 0, alpha=0.1, balanced=True)
    np.testing.assert_array_equal(np.sort(partition.order), np.arange(50_000))
    assert set(partition.sizes.tolist()) == {500}
    top = [max(Counter(labels[partition.client(client)].tolist()).values()) / 500 for client in range(100)]
    assert np.mean(top) > 0.5, "equal sizes must not wash the skew out"


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_an_impossible_least_size_is_refused_before_sampling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-PART-01b: the arithmetic stands in the message."""
    monkeypatch.setattr(f"federation.data.partitioners.{name}.stream", None)  # a draw would fail
    with pytest.raises(DataError, match=r"20 x 10 = 200 > 100"):
        PARTITIONERS[name](np.arange(100) % 10, 20, 0, min_size=10)
    with pytest.raises(DataError, match=r"11 x 1 = 11 > 10"):
        PARTITIONERS[name](np.arange(10), 11, 0)


def test_data_without_classes_are_sent_to_partitioners_that_take_them() -> None:
    targets = np.arange(20) + 0.5
    with pytest.raises(DataError, match="such as iid or power_law, or natural or file"):
        PARTITIONERS["dirichlet"](targets, 4, 0)
    for name, settings_of in (("iid", {}), ("power_law", {}), ("natural", {"columns": {"user": np.arange(20) % 4}})):
        assert PARTITIONERS[name](targets, 4, 0, **settings_of).sizes.sum() == 20


def test_a_least_size_that_just_fits_is_met() -> None:
    """S-PART-01: no luck is needed, whatever alpha is."""
    for alpha in (1e-9, 0.05, 10):
        assert dirichlet(np.arange(100) % 10, 10, 3, alpha=alpha, min_size=10).sizes.tolist() == [10] * 10


def test_filling_up_takes_from_the_largest_only() -> None:
    plain = dirichlet(TEN, 20, 5, alpha=0.1, allow_empty=True).sizes
    filled = dirichlet(TEN, 20, 5, alpha=0.1, min_size=8).sizes
    assert plain.min() < 8, "nothing to fill up: choose another seed"
    np.testing.assert_array_equal(filled[plain < 8], 8)
    gave = filled < plain
    assert (filled[~gave & (plain >= 8)] == plain[~gave & (plain >= 8)]).all()
    assert filled[gave].max() - filled[gave].min() <= 1, "they come down to one level"
    assert plain[~gave].max() <= filled[gave].min() + 1, "and that is the highest"


@pytest.mark.parametrize(("alpha", "num_clients"), [(0.3, 8), (2.0, 5)])
def test_dirichlet_shares_have_the_moments_of_the_formula(alpha: float, num_clients: int) -> None:
    """The share of a class that a client gets: mean 1/K, variance (K - 1) / (K^2 (K alpha + 1))."""
    labels = np.repeat(np.arange(5), 2000)
    shares = np.concatenate([
        [np.bincount(labels[p.client(client)], minlength=5) / 2000 for client in range(num_clients)]
        for p in (dirichlet(labels, num_clients, seed, alpha=alpha, allow_empty=True) for seed in range(150))])
    expected = (num_clients - 1) / (num_clients**2 * (num_clients * alpha + 1))
    assert abs(shares.mean() - 1 / num_clients) < 1e-12
    assert shares.var() == pytest.approx(expected, rel=0.1)


def test_balanced_dirichlet_mixes_have_the_variance_of_the_formula() -> None:
    """A client's share of a label: mean 1/C, variance (C - 1) / (C^2 (C alpha + 1)), up to the fit to class sizes."""
    labels = np.arange(40_000) % 4
    partition = dirichlet(labels, 400, 1, alpha=1.0, balanced=True)
    mixes = np.array([np.bincount(labels[partition.client(client)], minlength=4) / 100 for client in range(400)])
    assert mixes.mean() == pytest.approx(0.25)
    assert mixes.var() == pytest.approx(3 / (16 * 5), rel=0.15)


def test_label_with_more_clients_than_classes() -> None:
    """S-PART-03a: 25 clients, 2 labels each."""
    labels = np.repeat(np.arange(10), 100)
    partition = label(labels, 25, 0, labels_per_client=2)
    assert_conserved(partition, 1000, 25)
    assert [len(set(labels[partition.client(client)].tolist())) for client in range(25)] == [2] * 25
    assert partition.sizes.tolist() == [40] * 25


def test_label_lists_classes_without_a_place() -> None:
    """S-PART-03b: 3 clients x 2 labels leave 4 of 10 classes over."""
    with pytest.raises(DataError, match=r"3 clients x 2 labels = 6 < 10 classes: 4 classes .*: 6, 7, 8, 9"):
        label(np.repeat(np.arange(10), 100), 3, 0, labels_per_client=2)


def test_label_refuses_more_labels_than_classes() -> None:
    """S-PART-03c: 12 > 10."""
    with pytest.raises(DataError, match=r"12 > 10"):
        label(np.repeat(np.arange(10), 100), 3, 0, labels_per_client=12)


def test_label_refuses_more_shards_than_samples() -> None:
    labels = np.array([0] * 50 + [1] * 3)
    with pytest.raises(DataError, match=r"10 clients x 2 labels = 20 shards, but only 13 .*label 1: 3"):
        label(labels, 10, 0, labels_per_client=2)


def test_label_pairs_vary() -> None:
    """Which labels meet at a client is drawn, not a stride through the classes."""
    labels = np.repeat(np.arange(10), 100)
    pairs = {frozenset(labels[p.client(client)].tolist())
             for p in (label(labels, 25, seed, labels_per_client=2) for seed in range(30)) for client in range(25)}
    assert len(pairs) == 45


def test_clients_without_samples_only_if_allowed() -> None:
    assert iid(np.arange(3), 5, 0, allow_empty=True).sizes.tolist() == [1, 1, 1, 0, 0]
    assert (dirichlet(TEN, 300, 0, alpha=0.05, allow_empty=True).sizes == 0).any()
    assert (dirichlet(TEN, 300, 0, alpha=0.05).sizes > 0).all()


def test_the_samples_of_a_client_are_in_random_order() -> None:
    labels = np.repeat(np.arange(2), 500)
    for partition in (iid(labels, 2, 0), dirichlet(labels, 2, 0, alpha=100.0), label(labels, 2, 0)):
        mine = labels[partition.client(0)]
        changes = int((mine[1:] != mine[:-1]).sum())
        assert changes > len(mine) // 3, "labels come in runs"


@pytest.mark.parametrize(("name", "given", "words"), [
    ("dirichlet", {"alpha": 0}, "alpha: 0 is not a number from"),
    ("dirichlet", {"alpha": -1.0}, "alpha: -1.0"),
    ("dirichlet", {"alpha": float("nan")}, "alpha: nan"),
    ("dirichlet", {"alpha": float("inf")}, "alpha: inf"),
    ("dirichlet", {"alpha": "0.3"}, "alpha: '0.3'"),
    ("dirichlet", {"alpha": True}, "alpha: True"),
    ("dirichlet", {"min_size": 0}, "min_size: 0"),
    ("dirichlet", {"min_size": 2, "allow_empty": True}, "contradict"),
    ("dirichlet", {"allow_empty": "yes"}, "allow_empty: 'yes'"),
    ("iid", {"min_size": 1.5}, "min_size: 1.5"),
    ("label", {"labels_per_client": 0}, "labels_per_client: 0"),
    ("label", {"labels_per_client": 2.0}, "labels_per_client: 2.0"),
])
def test_settings_are_checked(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        PARTITIONERS[name](TEN, 5, 0, **given)


@pytest.mark.parametrize("name", sorted(PARTITIONERS))
@pytest.mark.parametrize("num_clients", [0, -3, True, 2.0, "5", None])
def test_num_clients_must_be_a_count(name: str, num_clients: object) -> None:
    given = {"path": "p.json"} if name == "file" else {}
    if name in ("natural", "pachinko"):
        given = {"columns": {"user": TEN, "coarse_label": TEN}}
    with pytest.raises(DataError, match="num_clients"):
        PARTITIONERS[name](TEN, num_clients, 0, **given)


@pytest.mark.parametrize("name", ["dirichlet", "label", "shards", "inner_dirichlet"])
@pytest.mark.parametrize("labels", [np.linspace(0, 1, 50), np.zeros((50, 1), int), np.array(["a"] * 50),
                                    np.array([], int)])
def test_what_has_no_labels_can_be_shared_out_by_iid_only(name: str, labels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"regression|no samples"):
        PARTITIONERS[name](labels, 2, 0)
    if len(labels):
        assert_conserved(iid(labels, 2, 0), len(labels), 2)


@pytest.mark.parametrize("labels", [
    np.array([2**63 + 5, 2**63, 2**63 + 5], np.uint64), np.array([2**63 + 1, 2**63 - 1, 2**63 + 1], np.uint64),
    np.array([2**64 - 1, 0, 2**64 - 1], np.uint64), np.array([2**63 - 1, 2**63 - 3, 2**63 - 1], np.int64),
    np.array([-(2**63), 1 - 2**63], np.int64), np.array([127, -128], np.int8), np.array([True, False, True])])
def test_labels_are_whatever_numbers_they_are(labels: np.ndarray) -> None:
    classes, codes = classes_of(labels)
    assert codes.dtype == np.int64
    assert classes.tolist() == sorted(set(labels.tolist()))
    assert classes[codes].tolist() == labels.tolist()
    assert_conserved(dirichlet(labels, 2, 0), len(labels), 2)


def draw_each(seed: int) -> list[str]:
    return [make(name, TEN, 20, seed).sha256() for name in DRAWN]


def test_the_seed_alone_decides_and_global_generators_stay() -> None:
    """S-PART-04: same seed, same digest; another seed, another digest; unrelated draws have no effect."""
    first = draw_each(42)
    random.random()
    np.random.rand(5)
    before = random.getstate(), np.random.get_state()[1].copy()
    assert draw_each(42) == first
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert len({value for seed in range(10) for value in draw_each(seed)}) == 10 * len(DRAWN)


def test_spawned_workers_draw_the_same() -> None:
    """S-PART-04: 8 spawned workers."""
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        assert set(pool.map(digest, [42] * 8, chunksize=1)) == {digest(42)}


def test_string_hashing_has_no_part() -> None:
    """S-PART-04: PYTHONHASHSEED unset and set."""
    found = set()
    for hash_seed in (None, "0", "12345"):
        surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
        surroundings |= {} if hash_seed is None else {"PYTHONHASHSEED": hash_seed}
        found.add(subprocess.run([sys.executable, "-m", "tests.data.splits"], env=surroundings, cwd=ROOT, text=True,
                                 capture_output=True, check=True).stdout.strip())
    assert found == {digest(42)}


@needs_mpi
def test_mpi_ranks_draw_the_same() -> None:
    """S-PART-04: 9 MPI ranks."""
    done = mpirun(9, sys.executable, "-m", "tests.data.splits")
    assert done.returncode == 0, report(done)
    assert done.stdout.split() == [digest(42)] * 9


def test_the_digest_covers_order_and_offsets() -> None:
    def of(order: list[int], offsets: list[int]) -> str:
        return Partition(np.array(order), np.array(offsets)).sha256()

    variants = [of([0, 1, 2], [0, 1, 3]), of([0, 2, 1], [0, 1, 3]), of([0, 1, 2], [0, 2, 3]),
                of([0, 1, 2], [0, 1, 1, 3])]
    assert len(set(variants)) == 4


@pytest.mark.parametrize(("order", "offsets"), [
    (np.arange(3), np.array([0, 2])), (np.arange(3), np.array([1, 3])), (np.arange(3), np.array([0, 2, 1, 3])),
    (np.arange(3), np.array([3])), (np.arange(3.0), np.array([0, 3])), (np.arange(3, dtype=np.int32), np.array([0, 3])),
    ([0, 1, 2], np.array([0, 3])), (np.arange(0), np.array([0])),
])
def test_arrays_that_are_no_partition_are_refused(order: Any, offsets: Any) -> None:
    with pytest.raises(DataError, match="of a partition must"):
        Partition(order, offsets)


@pytest.mark.parametrize("client", [-1, 2])
def test_clients_outside_the_partition_do_not_exist(client: int) -> None:
    with pytest.raises(DataError, match=f"client {client} does not exist.*clients 0 to 1"):
        iid(np.arange(4), 2, 0).client(client)


def test_a_clients_samples_are_a_read_only_view() -> None:
    partition = iid(np.arange(10), 2, 0)
    assert np.shares_memory(partition.client(1), partition.order)
    with pytest.raises(ValueError, match="read-only"):
        partition.client(1)[0] = 3


def test_what_a_partition_is_made_of_stays_the_callers() -> None:
    order, offsets = np.arange(3), np.array([0, 1, 3])
    partition = Partition(order, offsets)
    assert not partition.order.flags.writeable
    assert not partition.offsets.flags.writeable
    assert order.flags.writeable
    assert offsets.flags.writeable


def test_summary_states_sizes_and_label_entropy() -> None:
    labels = np.array([0, 0, 1, 1, 0, 1, 2, 3])
    partition = Partition(np.array([0, 1, 2, 3, 4, 5, 6, 7]), np.array([0, 2, 4, 4, 8]))
    summary = partition.summary(labels)
    assert (summary.min_size, summary.median_size, summary.max_size, summary.num_empty) == (0, 2.0, 4, 1)
    expected_all = -(2 * 3 / 8 * np.log2(3 / 8) + 2 / 8 * np.log2(1 / 8))
    assert summary.label_entropy == pytest.approx((0.0, 0.0, 2.0, expected_all))
    assert str(summary).startswith("4 clients, 8 samples; samples a client: min 0, median 2, max 4; "
                                   "1 clients have none;")
    assert partition.summary(np.linspace(0, 1, 8)).label_entropy is None


@pytest.mark.parametrize("make", [
    lambda y: iid(y, 200_000, 0), lambda y: dirichlet(y, 200_000, 0, alpha=0.3),
    lambda y: dirichlet(y, 200_000, 0, alpha=0.3, balanced=True), lambda y: label(y, 200_000, 0, labels_per_client=2),
], ids=["iid", "dirichlet", "balanced", "label"])
def test_many_clients(make: Callable[[np.ndarray], Partition]) -> None:
    """A loop over clients or samples would be noticed here by its length."""
    labels = np.arange(1_000_000) % 10
    partition = make(labels)
    np.testing.assert_array_equal(np.sort(partition.order), np.arange(1_000_000))
    assert partition.sizes.min() >= 1
