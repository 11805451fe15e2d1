"""Data sets by name: what is in them, how they are split, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.dataset import Dataset
from federation.data.formats.raw import Content, Samples
from federation.data.load import load_dataset
from federation.data.sources.generated import GENERATED as SOURCES
from federation.errors import DataError

X = np.arange(24.0).reshape(12, 2) / 7
Y = np.arange(12) % 3


def test_digits_are_those_of_scikit_learn() -> None:
    wanted = pytest.importorskip("sklearn.datasets").load_digits()
    dataset = load_dataset("digits", seed=0, test_fraction=0)
    np.testing.assert_array_equal(dataset.x_train, (wanted.data / 16).astype(np.float32))
    np.testing.assert_array_equal(dataset.y_train, wanted.target)
    assert (dataset.input_shape, dataset.num_classes, dataset.x_test.shape) == ((64,), 10, (0, 64))


def test_digits_do_not_import_scikit_learn() -> None:
    script = ("import sys\nfrom federation.data import load_dataset\nload_dataset('digits')\n"
              "print([name for name in ('sklearn', 'scipy', 'torch', 'h5py', 'mpi4py') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"scikit-learn, which is not installed: pip install .*\[sklearn\]"):
        load_dataset("digits")


def test_damaged_digits_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = tmp_path / "datasets" / "data"
    data.mkdir(parents=True)
    (data / "digits.csv.gz").write_bytes(b"\x1f\x8b\x08 cut short")
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"digits\.csv\.gz: expected the digits"):
        load_dataset("digits")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_arrays_are_as_learners_want_them(name: str) -> None:
    dataset = load_dataset(name, seed=3, test_fraction=0.25)
    for array, dtype in ((dataset.x_train, np.float32), (dataset.x_test, np.float32),
                         (dataset.y_train, np.int64 if dataset.num_classes else np.float32)):
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable


def test_synthetic_is_learnable_and_balanced() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    dataset = load_dataset("synthetic", seed=1, config={"num_samples": 1003, "num_features": 12, "num_classes": 4})
    assert dataset.input_shape == (12,)
    counts = np.bincount(np.concatenate([dataset.y_train, dataset.y_test]))
    assert sorted(counts.tolist()) == [250, 251, 251, 251]
    model = linear_model.LogisticRegression(max_iter=500).fit(dataset.x_train, dataset.y_train)
    assert model.score(dataset.x_test, dataset.y_test) > 0.9


def test_noise_is_the_spread_around_the_centres() -> None:
    for noise in (0.0, 0.5, 3):
        dataset = load_dataset("synthetic", seed=1, test_fraction=0, config={"num_samples": 5000, "noise": noise})
        x = dataset.x_train.astype(np.float64)
        spread = [x[dataset.y_train == label].std(axis=0).mean() for label in range(10)]
        assert np.mean(spread) == pytest.approx(noise, rel=0.02, abs=1e-9)


def test_synthetic_regression_has_a_linear_truth() -> None:
    config = {"num_samples": 4000, "noise": 0.2}
    dataset = load_dataset("synthetic_regression", seed=1, test_fraction=0.5, config=config)
    design = np.column_stack([dataset.x_train, np.ones(len(dataset.x_train))]).astype(np.float64)
    truth = np.linalg.lstsq(design, dataset.y_train, rcond=None)[0]
    error = np.column_stack([dataset.x_test, np.ones(len(dataset.x_test))]) @ truth - dataset.y_test
    assert dataset.num_classes is None
    assert np.mean(error**2) == pytest.approx(0.04, rel=0.1)


def test_generators_are_exact_in_the_seed() -> None:
    for name in ("synthetic", "synthetic_regression"):
        first, again, other = (load_dataset(name, seed=seed).x_train for seed in (5, 5, 6))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(("config", "words"), [
    ({"num_samples": 0}, "num_samples: 0"), ({"num_features": 2.0}, "num_features: 2.0"),
    ({"num_classes": True}, "num_classes: True"), ({"noise": -1}, "noise: -1"), ({"noise": float("nan")}, "noise: nan"),
    ({"nois": 1}, "no setting 'nois'; did you mean noise"), ({"seed": 1}, "no setting 'seed'"),
])
def test_settings_of_generators_are_checked(config: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=f"synthetic.*{words}"):
        load_dataset("synthetic", config=config)


@pytest.mark.parametrize(("name", "words"), [
    ("digit", "did you mean digits"), ("Digits", "did you mean digits"), ("sythetic", r"did you mean synthetic"),
    ("mnits", "did you mean mnist"), ("data.jpg", r"no data set 'data\.jpg'.*Known are digits.*\.npz, \.h5"),
    ("", "no data set ''"), ("hf:", "no data set"), ("leaf:", "no data set"), ("mnist", "fetch mnist --root"),
    ("data.csv", r"needs the setting target"),
])
def test_unknown_names_get_the_nearest(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(name)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), hundredths=st.integers(0, 99),
       seed=st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_the_test_split_is_a_stratified_share(labels: list[int], hundredths: int, seed: int) -> None:
    y = np.array(labels)
    x = np.arange(len(y), dtype=np.float32)[:, None]  # a sample is its index
    dataset = _from_factory((x, y), hundredths / 100, seed)
    train, test = dataset.x_train[:, 0].astype(int), dataset.x_test[:, 0].astype(int)
    assert sorted([*train, *test]) == list(range(len(y)))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(dataset.y_test, y[test])
    assert len(test) == min((hundredths * len(y) + 50) // 100, len(y) - 1)
    for label in set(labels):
        share = len(test) * labels.count(label) / len(y)
        assert (y[test] == label).sum() > share - 1
        if hundredths <= 40 and min(labels.count(other) for other in labels) > 1:  # each class can give its share
            assert (y[test] == label).sum() < share + 1
        if len(test) <= len(y) - len(set(labels)):
            assert (y[train] == label).any(), "a class is left without training samples"


def test_the_test_split_follows_the_seed() -> None:
    splits = [load_dataset("digits", seed=seed).x_test for seed in (0, 0, 1)]
    np.testing.assert_array_equal(splits[0], splits[1])
    assert not np.array_equal(splits[0], splits[2])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1, 2, float("nan"), "0.2", True, None])
def test_test_fraction_is_checked(fraction: object) -> None:
    with pytest.raises(DataError, match="test_fraction"):
        load_dataset("digits", test_fraction=fraction)  # type: ignore[arg-type]


def _from_factory(result: object, test_fraction: float = 0.25, seed: int = 0, **config: object) -> Dataset:
    module = types.ModuleType("factory_of_a_test")
    module.make = lambda **given: result  # type: ignore[attr-defined]
    sys.modules["factory_of_a_test"] = module
    try:
        return load_dataset("factory_of_a_test:make", seed=seed, test_fraction=test_fraction, config=config)
    finally:
        del sys.modules["factory_of_a_test"]


def test_factories_return_data_sets_pairs_or_four_arrays() -> None:
    whole = Dataset(X, Y, X[:3], Y[:3], 5, "mine")
    assert _from_factory(whole) is whole
    pair = _from_factory((X, Y))
    assert (len(pair.y_train), len(pair.y_test), pair.num_classes) == (9, 3, 3)
    four = _from_factory((X, Y, X[:2], Y[:2] + 5))
    assert (len(four.y_train), len(four.y_test), four.num_classes) == (12, 2, 7)
    targets = _from_factory((X, Y / 2))
    assert (targets.num_classes, targets.y_train.dtype) == (None, np.float32)


def test_factories_get_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("factory_of_a_test")

    def make(size: int = 4) -> tuple[np.ndarray, np.ndarray]:
        return X[:size], Y[:size]

    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "factory_of_a_test", module)
    assert len(load_dataset("factory_of_a_test:make", test_fraction=0, config={"size": 6}).y_train) == 6
    with pytest.raises(DataError, match=r"factory_of_a_test:make raised TypeError.*'sise'"):
        load_dataset("factory_of_a_test:make", config={"sise": 6})


@pytest.mark.parametrize(("result", "words"), [
    (None, "returned NoneType"), ((X,), "returned a tuple of 1"), ([X, Y], "returned list"), ((X, Y, X), "tuple of 3"),
    ((X, Y[:5]), "x holds 12 samples, but .*y 5"), ((X, Y, X, Y[:3]), "x_test holds 12 samples, but .*y_test 3"),
    ((X, Y, X[:, :1], Y), r"x_test has the shape \[1\]; expected \[2\]"), ((X[:, 0], Y), r"x has the shape \[12\]"),
    ((X, Y[:, None]), r"y has the shape \[12, 1\]"), ((X, np.eye(12)), r"y has the shape \[12, 12\]"),
    ((X[:0], Y[:0]), "x holds no samples"), ((np.ma.masked_less(X, X.mean()), Y), "x is a masked array"),
    ((X, np.ma.masked_equal(Y, Y[0])), "y is a masked array"),
    ((X[:, :0], Y), "at least one feature"), ((X, Y - 1), "y holds -1; expected labels"),
    ((X, Y.astype(float)), "y is float64 and holds whole numbers only"),
    ((X.astype(complex), Y), "x is an array of complex"),
    ((X.astype(str), Y), "x is an array of <U"), ((X, Y.astype(object)), "y is an array of object"),
    ((np.where(X[3, 1] == X, np.nan, X), Y), r"x holds nan at \[3, 1\]"),
    ((X * 1e39, Y), r"x holds 4\.28.*e\+38 at \[1, 1\]"),
    ((X, np.where(Y == 1, np.inf, 0.5)), r"y holds inf at \[1\]"),
    ((X, np.full(12, 2**63, np.uint64)), "expected labels"),
    ((X, Y + 20_240_101), "y holds label 20240103, which would make 20240104 classes of 12 samples; .* task: regression"),
    (([[1, 2], [3]], [0, 1]), "x is list that NumPy makes no array of .*with samples of one shape"),
    ((X[:2], [[0], [1, 2]]), "y is list that NumPy makes no array of"),
    (Content(Samples(X[:2], Y[:2], {"user": [[1], [2, 3]]})),  # type: ignore[dict-item]
     "the column .user. is list that NumPy makes no array of"),
])
def test_what_a_factory_must_not_return(result: object, words: str) -> None:
    with pytest.raises(DataError, match=f"factory_of_a_test:make.*{words}"):
        _from_factory(result)


@pytest.mark.parametrize(("name", "words"), [
    ("no_such_module_here:make", "'no_such_module_here' cannot be imported .ModuleNotFoundError"),
    ("os:getcwdd", "os has no function 'getcwdd'; near it are getcwd"), ("os:", "no function ''"),
    ("os:name", "no function 'name'"), (":make", "'' cannot be imported"),
])
def test_factories_that_cannot_be_had(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(name)


def test_a_factory_that_ends_the_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run would end with status 0, and have done nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "quits_when_called.py").write_text("def make():\n    raise SystemExit(0)\n")
    (tmp_path / "quits_when_imported.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(DataError, match="quits_when_called:make raised SystemExit"):
        load_dataset("quits_when_called:make")
    with pytest.raises(DataError, match=r"'quits_when_imported' cannot be imported \(SystemExit"):
        load_dataset("quits_when_imported:make")


def test_an_error_of_a_factory_is_the_cause() -> None:
    class Broken(Exception):
        pass

    module = types.ModuleType("factory_of_a_test")

    def make() -> None:
        raise Broken("the disk is on fire")

    module.make = make  # type: ignore[attr-defined]
    sys.modules["factory_of_a_test"] = module
    try:
        with pytest.raises(DataError, match="raised Broken: the disk is on fire") as caught:
            load_dataset("factory_of_a_test:make")
        assert isinstance(caught.value.__cause__, Broken)
    finally:
        del sys.modules["factory_of_a_test"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool, np.float16, np.float64, ">f4", ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_real_numbers_of_every_kind_become_float32(dtype: object, order: str) -> None:
    given = np.asarray(np.arange(12).reshape(6, 2) % 2, dtype=dtype, order=order)  # type: ignore[call-overload]
    dataset = Dataset(given, Y[:6], given[:0], Y[:0], 3, "mine")
    np.testing.assert_array_equal(dataset.x_train, [[0, 1]] * 6)
    assert dataset.x_train.dtype == np.float32
    assert given.flags.writeable, "the array that was given stays writeable"


def test_labels_must_fit_num_classes() -> None:
    with pytest.raises(DataError, match="mine: y_test holds label 2; expected 0 to 1"):
        Dataset(X, Y % 2, X, Y, 2, "mine")
    for num_classes in (0, 2.0, True, "3"):
        with pytest.raises(DataError, match="num_classes"):
            Dataset(X, Y, X, Y, num_classes, "mine")  # type: ignore[arg-type]
