"""Partitioners by size, by mix, by user and from a file: as asked, in the right distribution, the rest refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from federation.data.partition import Partition
from federation.data.partitioner import (
    exponential,
    file,
    inner_dirichlet,
    linear,
    log_normal,
    natural,
    pachinko,
    power_law,
    shards,
    square,
)
from federation.errors import DataError
from tests.data.splits import DRAWN, make

TEN = np.arange(997) % 10
HUNDRED = np.arange(20_000) % 100
COARSE = {"coarse_label": HUNDRED % 20}

#: What each partitioner makes of 997 samples, 13 clients and seed 7: it may never change.
GOLDEN = {
    "dirichlet": "da3b9ede81619923",
    "exponential": "866f844b3013e125",
    "iid": "07c7195bc9ad3f60",
    "inner_dirichlet": "cef2e68afa108a4b",
    "label": "dc527fa346481703",
    "linear": "b5da1e0b59bc6e30",
    "log_normal": "ff0ed29f1b228c33",
    "natural": "52a891a3733a4de8",
    "pachinko": "f0776b59e459ed8e",
    "power_law": "6c3eb03c9a672b4f",
    "shards": "58485d0d6c6c80ba",
    "square": "6111ff6bffccecad",
}


@pytest.mark.parametrize("name", DRAWN)
def test_partitions_never_change(name: str) -> None:
    """S-PART-04: on every platform and version; what was published with a seed can be repeated."""
    assert make(name, TEN, 13, 7).sha256()[:16] == GOLDEN[name]


def assert_conserved(partition: Partition, num_samples: int) -> None:
    seen = Counter(sample for client in range(partition.num_clients) for sample in partition.client(client).tolist())
    assert seen == Counter(range(num_samples))


@given(name=st.sampled_from(DRAWN), num_samples=st.integers(1, 150), num_clients=st.integers(1, 30),
       num_labels=st.integers(1, 12), seed=st.integers(0, 2**40))
@settings(max_examples=400)
def test_every_sample_has_one_client_and_no_client_is_empty(name: str, num_samples: int, num_clients: int,
                                                            num_labels: int, seed: int) -> None:
    """S-PART-02: every partitioner, or a refusal that names what cannot be."""
    assume(name != "natural" or num_samples >= num_clients)
    labels = np.random.default_rng(seed).integers(0, num_labels, num_samples)
    if num_samples < 2 * num_clients or name == "label":
        try:
            partition = make(name, labels, num_clients, seed)
        except DataError:
            return
    else:
        partition = make(name, labels, num_clients, seed)
    assert_conserved(partition, num_samples)
    assert partition.num_clients == num_clients
    assert partition.sizes.min() >= 1


@given(name=st.sampled_from(["power_law", "log_normal", "linear", "square", "exponential"]),
       num_clients=st.integers(1, 40), min_size=st.integers(1, 12), seed=st.integers(0, 2**40))
@settings(max_examples=150)
def test_the_least_size_is_kept_at_the_cost_of_the_largest(name: str, num_clients: int, min_size: int, seed: int) -> None:
    free = make(name, TEN, num_clients, seed, allow_empty=True).sizes
    kept = make(name, TEN, num_clients, seed, min_size=min_size).sizes
    assert kept.min() >= min_size
    assert kept.sum() == free.sum() == 997
    gave = kept < free
    assert (kept[free < min_size] == min_size).all()
    assert not gave.any() or kept[gave].min() >= kept.max() - 1, "all that gave are on one level, the highest"


@pytest.mark.parametrize("name", ["power_law", "log_normal", "linear", "square", "exponential", "inner_dirichlet"])
def test_an_impossible_least_size_is_refused(name: str) -> None:
    """S-PART-01: the numbers stand in the message."""
    with pytest.raises(DataError, match=r"20 x 50 = 1000 > 997"):
        make(name, TEN, 20, 0, min_size=50)


@pytest.mark.parametrize(("partitioner", "share"), [(linear, lambda k: k), (square, lambda k: k**2),
                                                    (exponential, np.exp)])
def test_sizes_follow_their_formula(partitioner, share) -> None:
    wanted = share(np.arange(1.0, 9.0))
    sizes = partitioner(np.zeros(100_000, int), 8, 1, allow_empty=True).sizes
    assert (np.abs(sizes - wanted / wanted.sum() * 100_000) < 1).all()


def test_exponential_sizes_do_not_overflow() -> None:
    sizes = exponential(np.zeros(5000, int), 2000, 0).sizes
    assert sizes.min() == 1
    assert (np.diff(sizes) >= 0).all()


@pytest.mark.parametrize("exponent", [0.8, 1.5, 4.0])
def test_power_law_sizes_are_pareto(exponent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each share is a Pareto variate over the largest: its logarithm's distances from the least are exponential."""
    monkeypatch.setattr("federation.data.partitioners.sizes.shuffled", lambda rng, count: np.arange(count))
    sizes = power_law(np.zeros(40_000_000, np.int8), 3000, 11, exponent=exponent).sizes
    logs = np.log(sizes / np.sort(sizes)[0])
    assert stats.kstest(logs * exponent, "expon").pvalue > 0.01
    assert not stats.kstest(logs * exponent * 1.2, "expon").pvalue > 0.01, "the test can tell exponents apart"


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_log_normal_sizes_are_log_normal(sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.data.partitioners.sizes.shuffled", lambda rng, count: np.arange(count))
    logs = np.log(log_normal(np.zeros(40_000_000, np.int8), 3000, 5, sigma=sigma).sizes)
    assert stats.kstest((logs - logs.mean()) / sigma, "norm").pvalue > 0.01
    assert not stats.kstest((logs - logs.mean()) / sigma * 1.2, "norm").pvalue > 0.01
    assert np.ptp(log_normal(TEN, 10, 0, sigma=0).sizes) <= 1


def test_shards_hold_neighbouring_labels() -> None:
    """McMahan et al. 2017: two shards of 300 of 60,000 sorted samples, so most clients have two digits."""
    labels = np.random.default_rng(0).integers(0, 10, 6000)
    partition = shards(labels, 100, 3, shards_per_client=2)
    assert set(partition.sizes.tolist()) == {60}
    kinds = [len(np.unique(labels[partition.client(client)])) for client in range(100)]
    assert max(kinds) <= 4
    assert np.mean(np.array(kinds) <= 2) > 0.8
    with pytest.raises(DataError, match=r"400 clients x 20 shards = 8000 > 6000 samples"):
        shards(labels, 400, 3, shards_per_client=20)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_inner_dirichlet_mixes_are_dirichlet(alpha: float) -> None:
    """The share of a class is Beta(alpha, (C - 1) alpha), as long as no class runs out: the first clients in turn."""
    labels = np.arange(400_000) % 4
    partition = inner_dirichlet(labels, 400, 3, alpha=alpha)
    assert set(partition.sizes.tolist()) == {1000}
    _, counts = partition.label_counts(labels, np.arange(400))
    shares = counts / 1000
    early = stats.kstest(shares[:, 1] + 1e-4, stats.beta(alpha, 3 * alpha).cdf)
    assert early.statistic < 0.11, "clients that come last take what is left"
    other = stats.kstest(shares[:, 1] + 1e-4, stats.beta(alpha * 4, 12 * alpha).cdf)
    assert other.statistic > 0.15, "the test can tell concentrations apart"


def test_inner_dirichlet_in_unequal_sizes() -> None:
    partition = inner_dirichlet(TEN, 20, 3, alpha=0.1, sigma=1.0, min_size=5)
    assert_conserved(partition, 997)
    assert partition.sizes.min() >= 5
    assert np.ptp(partition.sizes) > 20


@pytest.mark.parametrize("alpha", [1e-9, 0.01, 1e9])
def test_extreme_mixes_end(alpha: float) -> None:
    """S-PART-01: no draw is repeated until it fits; each class that runs out does so once."""
    assert_conserved(inner_dirichlet(TEN, 50, 0, alpha=alpha), 997)
    assert_conserved(pachinko(TEN, 50, 0, columns={"coarse_label": TEN // 5}, alpha=alpha, beta=alpha), 997)


def test_pachinko_clients_prefer_superclasses() -> None:
    partition = pachinko(HUNDRED, 50, 1, columns=COARSE, alpha=0.1, beta=10.0)
    assert set(partition.sizes.tolist()) == {400}
    assert_conserved(partition, 20_000)
    _, coarse = partition.label_counts(COARSE["coarse_label"], np.arange(50))
    _, fine = partition.label_counts(HUNDRED, np.arange(50))
    favourite = coarse.max(axis=1) / 400
    assert np.median(favourite) > 0.35, "with alpha 0.1 of 20, few superclasses have most"
    within = []
    for client in range(50):
        best = coarse[client].argmax()
        within.append(fine[client][best::20].max() / coarse[client][best])
    assert np.median(within) < 0.45, "with beta 10, the five classes of a superclass come alike"
    even = pachinko(HUNDRED, 50, 1, columns=COARSE, alpha=1e6, beta=1e6)
    _, counts = even.label_counts(HUNDRED, np.arange(50))
    assert np.ptp(counts) <= 2


def test_pachinko_roots_are_dirichlet() -> None:
    """Few clients of many samples: nothing runs out, and the shares of superclasses are Beta(alpha, 19 alpha)."""
    shares = []
    for seed in range(60):
        partition = pachinko(HUNDRED, 200, seed, columns=COARSE, alpha=0.5, beta=10.0)
        first = int(partition.sizes.argmax())  # equally large: client 0, whose turn is anywhere
        _, counts = partition.label_counts(COARSE["coarse_label"], np.array([first]))
        shares += (counts[0] / 100).tolist()
    wanted = stats.beta(0.5, 19 * 0.5)
    assert np.mean(shares) == pytest.approx(wanted.mean(), rel=1e-6)
    assert np.std(shares) == pytest.approx(wanted.std(), rel=0.12)


def test_pachinko_needs_superclasses() -> None:
    with pytest.raises(DataError, match="no column 'coarse_label' of superclasses; the data set has user"):
        pachinko(TEN, 5, 0, columns={"user": TEN})
    with pytest.raises(DataError, match="beta: 0 is not a number"):
        pachinko(TEN, 5, 0, columns={"coarse_label": TEN}, beta=0)


USERS = np.array([30, 10, 30, 20, 10, 30, 40, 40, 40, 40])


def test_natural_clients_are_the_users_in_order() -> None:
    partition = natural(np.zeros(10, int), 4, 0, columns={"user": USERS})
    assert [sorted(USERS[partition.client(client)].tolist()) for client in range(4)] == [[10] * 2, [20], [30] * 3, [40] * 4]
    assert_conserved(partition, 10)


def test_natural_merges_users_evenly() -> None:
    partition = natural(np.zeros(10, int), 3, 0, columns={"writer": USERS}, column="writer", surplus="merge")
    held = [set(USERS[partition.client(client)].tolist()) for client in range(3)]
    assert held == [{40}, {30}, {10, 20}]
    assert_conserved(partition, 10)


def test_natural_draws_some_users() -> None:
    found = {frozenset(USERS[natural(np.zeros(10, int), 2, seed, columns={"user": USERS}, surplus="drop").order].tolist())
             for seed in range(60)}
    assert found == {frozenset(pair) for pair in ((10, 20), (10, 30), (10, 40), (20, 30), (20, 40), (30, 40))}
    partition = natural(np.zeros(10, int), 2, 1, columns={"user": USERS}, surplus="drop")
    for client in range(2):
        user = USERS[partition.client(client)]
        assert sorted(partition.client(client)) == np.flatnonzero(user[0] == USERS).tolist(), "a whole user each"


@pytest.mark.parametrize(("num_clients", "given", "words"), [
    (3, {}, "has 4 users: set num_clients to 4, or surplus"), (5, {}, "has 4 users: set num_clients to 4$"),
    (5, {"surplus": "merge"}, "set num_clients to 4$"), (4, {"column": "writer"}, "no column 'writer'; it has user"),
    (3, {"surplus": "some"}, "'some' is not one of"),
])
def test_natural_refuses_what_is_unclear(num_clients: int, given: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        natural(np.zeros(10, int), num_clients, 0, columns={"user": USERS}, **given)  # type: ignore[arg-type]


CLIENTS = [[3, 1], [0], [5, 4]]


def write(path: Path, content: object) -> Path:
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(content))
        case ".csv":
            rows = [(client, sample) for client, samples in enumerate(content) for sample in samples]  # type: ignore[arg-type]
            path.write_text("client,sample\n" + "".join(f"{client},{sample}\n" for client, sample in reversed(rows)))
        case ".npz":
            sizes = [len(samples) for samples in content]  # type: ignore[arg-type]
            np.savez(path, order=np.concatenate(content), offsets=np.cumsum([0, *sizes]))  # type: ignore[call-overload]
    return path


@pytest.mark.parametrize("name", ["p.json", "p.csv", "p.npz"])
def test_a_file_says_who_has_what(tmp_path: Path, name: str) -> None:
    partition = file(np.zeros(7, int), 3, 0, path=str(write(tmp_path / name, CLIENTS)))
    assert [sorted(partition.client(client)) for client in range(3)] == [sorted(samples) for samples in CLIENTS]


def test_a_file_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the `~` of --set data.partitioner_config.path=~/p.json alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "p.json", CLIENTS)
    partition = file(np.zeros(7, int), 3, 0, path="~/p.json")
    assert [sorted(partition.client(client)) for client in range(3)] == [sorted(samples) for samples in CLIENTS]


def test_fractions_are_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", order=np.array([0.0, 1.5]), offsets=np.array([0, 2]))
    with pytest.raises(DataError, match=r"p\.npz: order and offsets must be whole numbers"):
        file(np.zeros(7, int), 1, 0, path=str(tmp_path / "p.npz"))


def test_names_of_clients_in_json(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", {"1": [2], "0": [4, 3]})
    assert [file(np.zeros(7, int), 2, 0, path=str(path)).client(n).tolist() for n in range(2)] == [[4, 3], [2]]
    with pytest.raises(DataError, match=r'client \'bob\'; expected the names "0" to "1"'):
        file(np.zeros(7, int), 2, 0, path=str(write(tmp_path / "p.json", {"0": [1], "bob": [2]})))


@pytest.mark.parametrize("name", ["p.json", "p.csv", "p.npz"])
@pytest.mark.parametrize(("clients", "num_clients", "words"), [
    (CLIENTS, 4, "has 3 clients; num_clients is 4"), ([[0], [7]], 2, "names sample 7; the training set has 0 to 6"),
    ([[0], [-1]], 2, "names sample -1"), ([[0, 1], [1]], 2, "names sample 1 2 times"),
    ([[0, 1, 1], [5, 5, 5]], 2, "names sample 1 2 times"),
])
def test_a_file_for_other_data_is_refused(tmp_path: Path, name: str, clients: list[list[int]], num_clients: int,
                                          words: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{words}"):
        file(np.zeros(7, int), num_clients, 0, path=str(write(tmp_path / name, clients)))


@pytest.mark.parametrize(("name", "content", "words"), [
    ("p.json", b"[[1", "p.json"), ("p.json", b'[["a"]]', "expected a list"), ("p.json", b"[[1.5]]", "expected a list"),
    ("p.json", b"[[0], []]", "client 1 has no samples"), ("p.csv", b"a,b\n1,2\n", "columns a, b; expected client, sample"),
    ("p.csv", b"client,sample\n0,x\n", "line 2: '0', 'x' are not whole numbers"), ("p.csv", b"client,sample\n", "no rows"),
    ("p.csv", b"client,sample\n0,1\n99999999999,2\n", "names client 99999999999"), ("p.csv", b"", "columns none"),
    ("p.csv", b"\xff\xfe\x00", "CSV file cannot be read"), ("p.npz", b"PK", "no .npz archive"),
    ("p.json", b"[[0], [99999999999999999999]]", "p.json holds a number that is neither a client nor one of the samples 0 to 6"),
    ("p.csv", b"client,sample\n0,1\n1,99999999999999999999\n", "p.csv holds a number that is neither"),
    ("p.csv", b"client,sample\n0," + b"x" * 200_000, "CSV file cannot be read"),
    ("p.txt", b"", r"does not end in \.npz, \.json, \.csv"), ("nothing.json", None, "does not exist"),
])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    """S-SEC-01: a partition is data, and nothing in it is executed."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        file(np.zeros(7, int), 2, 0, path=str(tmp_path / name))


def test_a_csv_file_may_begin_with_the_mark_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfclient,sample\r\n0,1\r\n1,2\r\n")
    assert file(np.zeros(7, int), 2, 0, path=str(tmp_path / "p.csv")).order.tolist() == [1, 2]


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", order=np.array([0.5]), offsets=np.array([0, 1]))
    with pytest.raises(DataError, match="must be whole numbers"):
        file(np.zeros(7, int), 1, 0, path=str(tmp_path / "p.npz"))
    np.savez(tmp_path / "p.npz", order=np.array([0, 1]), offsets=np.array([0, 1]))
    with pytest.raises(DataError, match=r"p\.npz: offsets of a partition must rise"):
        file(np.zeros(7, int), 1, 0, path=str(tmp_path / "p.npz"))
    np.savez(tmp_path / "p.npz", order=np.array([None]), offsets=np.array([0, 1]))
    with pytest.raises(DataError, match="objects"):
        file(np.zeros(7, int), 1, 0, path=str(tmp_path / "p.npz"))


@pytest.mark.parametrize("name", ["inner_dirichlet", "pachinko", "shards", "power_law", "natural"])
def test_many_clients(name: str) -> None:
    """A loop over clients or samples would be noticed here by its length."""
    labels = np.arange(1_000_000) % 10
    partition = make(name, labels, 200_000, 0)
    np.testing.assert_array_equal(np.sort(partition.order), np.arange(1_000_000))
    assert partition.sizes.min() >= 1
