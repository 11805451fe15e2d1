"""Where samples come from: built-in data sets, generators, files and users' functions, by one name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from federation.core.random import stream
from federation.data.aligned import aligned
from federation.data.dataset import Dataset, check_samples, is_count, split
from federation.data.files import APART, READERS, TOGETHER, read_arrays
from federation.data.synthetic import synthetic, synthetic_regression
from federation.errors import DataError

#: A user's source of samples: called with the entries of `dataset_config`, returns a Dataset, (x, y), or
#: (x_train, y_train, x_test, y_test).
DataProvider: TypeAlias = Callable[..., "Dataset | tuple[Any, ...]"]

#: A built-in source: f(seed, *, settings) -> x, y, num_classes (None: regression).
Source: TypeAlias = Callable[..., tuple[np.ndarray, np.ndarray, int | None]]


def load_dataset(name: str, *, root: str | None = None, seed: int = 0, test_fraction: float = 0.2,
                 config: Mapping[str, Any] | None = None) -> Dataset:
    """The data set called `name`; `config` holds its settings.

    - `digits`, `synthetic`, `synthetic_regression`: built in, see SOURCES.
    - a path that ends in .npz, .h5 or .hdf5, relative to `root` (the current folder by default). Settings: `task`
      (`classification` or `regression`; by default integer y means classes) and `num_classes` (by default the largest
      label plus 1).
    - `package.module:factory`: a DataProvider of your own.

    Where the source has no test set of its own, `test_fraction` of the samples become one, drawn by `seed`, each class
    giving its share. Raises DataError for what is unknown, missing, damaged or not as expected.
    """
    settings = dict(config or {})
    rng = stream(seed, "test_split")
    if name in SOURCES:
        x, y, num_classes = _call(SOURCES[name], name, seed, settings)
        return split(x, y, num_classes=num_classes, name=name, test_fraction=test_fraction, rng=rng)
    if Path(name).suffix.lower() in READERS:
        return _from_file(Path(root or ".") / name, settings, test_fraction, rng)
    if ":" in name:
        return _from_factory(name, settings, test_fraction, rng)
    near = difflib.get_close_matches(name.lower(), SOURCES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise DataError(f"there is no data set {name!r}: {hint}Known are {', '.join(sorted(SOURCES))}, the path of a "
                    f"{', '.join(READERS)} file, and package.module:factory")


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The 1,797 handwritten digits that ship with scikit-learn: x float32[1797, 64] in [0, 1] (8 x 8 pixels, row after
    row), y int64[1797]. Nothing is drawn, so `seed` has no effect. scikit-learn is not imported, which takes longer
    than a round."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("the data set 'digits' ships with scikit-learn, which is not installed: "
                        "pip install 'federation-hpc[sklearn]'")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected the digits of scikit-learn, 64 pixels and a label a line ({error}); "
                        f"install scikit-learn again") from error
    return table[:, :64] / np.float32(16), table[:, 64].astype(np.int64), 10


#: Name in a configuration (`data.dataset`) -> built-in source.
SOURCES: Mapping[str, Source] = MappingProxyType({
    "digits": digits,
    "synthetic": synthetic,
    "synthetic_regression": synthetic_regression,
})


def _call(source: Source, name: str, seed: int, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, int | None]:
    _check_keys(settings, [key for key in inspect.signature(source).parameters if key != "seed"], name)
    try:
        return source(seed, **settings)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _from_file(path: Path, settings: dict[str, Any], test_fraction: float, rng: np.random.Generator) -> Dataset:
    _check_keys(settings, ["task", "num_classes"], str(path))
    arrays = read_arrays(path)
    names = [f"{path}: {key}" for key in arrays]
    return _dataset(list(arrays.values()), names, str(path), test_fraction, rng, **settings)


def _from_factory(name: str, settings: dict[str, Any], test_fraction: float, rng: np.random.Generator) -> Dataset:
    factory = _import(name)
    try:
        result = factory(**settings)
    except Exception as error:
        raise DataError(f"{name} raised {type(error).__name__}: {error}") from error
    if isinstance(result, Dataset):
        return result
    if not isinstance(result, tuple) or len(result) not in (len(TOGETHER), len(APART)):
        given = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise DataError(f"{name} returned {given}; expected a Dataset, (x, y) or (x_train, y_train, x_test, y_test)")
    keys = TOGETHER if len(result) == len(TOGETHER) else APART
    return _dataset(list(result), [f"{name}: {key}" for key in keys], name, test_fraction, rng)


def _import(name: str) -> DataProvider:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise DataError(f"data set {name}: {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
                        f"expected package.module:factory, with the module on the Python path") from error
    factory: DataProvider | None = getattr(module, attribute, None)
    if not callable(factory):
        near = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise DataError(f"data set {name}: {module_name} has no function {attribute!r}{hint}")
    return factory


def _dataset(arrays: list[Any], names: list[str], name: str, test_fraction: float, rng: np.random.Generator, *,
             task: str | None = None, num_classes: int | None = None) -> Dataset:
    """Arrays in the order of TOGETHER or APART, checked under their own names."""
    if task not in (None, "classification", "regression"):
        raise DataError(f"{name}: task: {task!r} is neither classification nor regression")
    if num_classes is not None and (task == "regression" or not is_count(num_classes)):
        raise DataError(f"{name}: num_classes: {num_classes!r} is not a whole number of at least 1, for classification")
    regression = task == "regression" or (task is None and num_classes is None and _are_targets(arrays[1], names[1]))
    checked: list[np.ndarray] = []
    for at in range(0, len(arrays), 2):
        checked += check_samples(arrays[at], arrays[at + 1], names[at], names[at + 1], regression)
        if len(checked[at]) == 0 and at == 0:
            raise DataError(f"{names[0]} holds no samples; expected at least one")
    if not regression:
        highest = max(int(y.max()) for y in checked[1::2] if len(y))
        if num_classes is not None and highest >= num_classes:
            worst = next(label for label, y in zip(names[1::2], checked[1::2], strict=True)
                         if len(y) and int(y.max()) == highest)
            raise DataError(f"{worst} holds label {highest}; expected 0 to {num_classes - 1}, as num_classes is "
                            f"{num_classes}")
        num_classes = num_classes or highest + 1
    if len(checked) == len(TOGETHER):
        return split(checked[0], checked[1], num_classes=num_classes, name=name, test_fraction=test_fraction, rng=rng)
    x_train, y_train, x_test, y_test = (aligned(array, array.dtype) for array in checked)
    return Dataset(x_train, y_train, x_test, y_test, num_classes, name)


def _are_targets(y: object, name: str) -> bool:
    """Whether `y` is for regression, where nobody has said so; DataError where it looks like labels in disguise."""
    values = np.asarray(y)
    if values.dtype.kind != "f":
        return False
    if values.size and (values == np.floor(values)).all():
        raise DataError(f"{name} is {values.dtype} and holds whole numbers only; expected integers for class labels "
                        f"(y.astype('int64')), or task: regression (in dataset_config) if they are targets")
    return True


def _check_keys(settings: dict[str, Any], known: list[str], name: str) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            allowed = ", ".join(known) or "none"
            raise DataError(f"{name} has no setting {key!r}{hint} (dataset_config; known: {allowed})")
