"""Data sets of other libraries: `sklearn:NAME`, `openml:NAME or id`, `hf:NAME` and `torchvision:NAME`.

`python -m federation.data fetch` has the library download a set, and keeps it as an `.npz` file in data.root. A run
reads that file: it needs neither the network, which compute nodes do not have, nor the library. The small sets that
come with scikit-learn need no fetching.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from federation.data.formats.arrays import read_npz
from federation.data.formats.raw import Content, Samples
from federation.data.provider import DataProvider, Request
from federation.errors import DataError

#: Those of scikit-learn's sets that are part of it.
BUNDLED = ("breast_cancer", "diabetes", "iris", "wine")


def library(request: Request, *, task: str | None = None, num_classes: int | None = None) -> DataProvider:
    """A set that was fetched, or one that comes with scikit-learn. `task` and `num_classes` are as for `.npz` files."""
    prefix, _, name = request.name.partition(":")
    if prefix == "sklearn" and name in BUNDLED:
        return DataProvider(request.name, lambda: sklearn_content(name, Path()), task=task, num_classes=num_classes)
    path = fetched_path(request.name, request.root)
    if not path.is_file():
        raise DataError(f"{request.name} is not there: {path.absolute()} does not exist; on a machine with network, run "
                        f"python -m federation.data fetch {request.name} --root {request.root}")
    return DataProvider(request.name, lambda: _read(path), (path,), {"reader": "fetched"}, task, num_classes)


def fetched_path(name: str, root: Path) -> Path:
    """Where the fetched set `name` ("hf:ylecun/mnist") is kept: hf/ylecun--mnist.npz in `root`."""
    prefix, _, rest = name.partition(":")
    return root / prefix / f"{rest.replace('/', '--')}.npz"


def fetch_library(name: str, root: Path, options: Mapping[str, Any]) -> Path:
    """Have the library of `name` download the set, and write it as an `.npz` file. Raises DataError.

    `options` are the keyword parameters of the function in LIBRARIES that brings it.
    """
    prefix, _, rest = name.partition(":")
    bring = LIBRARIES[prefix]
    known = list(inspect.signature(bring).parameters)[2:]
    for key in options:
        if key not in known:
            raise DataError(f"{name} has no option {key!r}; known: {', '.join(known) or 'none'}")
    path = fetched_path(name, root)
    try:
        content = bring(rest, root, **options)
    except ImportError as error:
        raise DataError(f"{name} needs a library that is not installed ({error}): pip install "
                        f"'federation-hpc[{_EXTRAS[prefix]}]'") from error
    except DataError:
        raise
    except Exception as error:  # the library's own, of any kind: no network, no such set, another version
        raise DataError(f"{name} could not be fetched ({type(error).__name__}: {error})") from error
    _write(path, content)
    return path


def sklearn_content(name: str, root: Path) -> Content:
    """scikit-learn's `load_<name>` or, downloading into `root`, `fetch_<name>`."""
    from sklearn import datasets

    if load := getattr(datasets, f"load_{name}", None):
        found = load()
    elif fetch := getattr(datasets, f"fetch_{name}", None):
        found = fetch(data_home=str(root / "sklearn"))
    else:
        raise DataError(f"scikit-learn has no data set {name!r} (neither load_{name} nor fetch_{name})")
    return Content(Samples(_table(found.data, f"sklearn:{name}"), _target(found.target)))


def openml_content(name: str, root: Path, version: str | None = None, target: str | None = None) -> Content:
    """A set of openml.org by its name (and `version`) or its number; numbers only, no text or categories."""
    from sklearn.datasets import fetch_openml

    if version is not None and name.isdigit():
        raise DataError(f"openml:{name}: a number says which version; leave out version")
    if version is not None and not version.isdecimal():
        raise DataError(f"openml:{name}: version: {version!r} is not a whole number, such as 1")
    which = {"data_id": int(name)} if name.isdigit() \
        else {"name": name, "version": "active" if version is None else int(version)}
    found = fetch_openml(**which, data_home=str(root / "openml"), as_frame=False, parser="liac-arff",
                         **({} if target is None else {"target_column": target}))
    if found.target is None:
        raise DataError(f"openml:{name} has no target of its own; name a column with --target")
    return Content(Samples(_table(found.data, f"openml:{name}"), _target(found.target)))


def hf_content(name: str, root: Path, x: str | None = None, y: str | None = None, config: str | None = None,
               columns: str = "") -> Content:
    """A set of the Hugging Face hub, or a local folder that `datasets.load_dataset` can read.

    `x`: the column of samples, an image or numbers; by default the only image, or all columns of numbers. `y`: the column
    of labels; by default the only one with class names, or the one called label. `columns`: names of further columns to
    keep, such as the user, separated by commas. Splits `train` and, if there is one, `test` are used.
    """
    import datasets

    found = datasets.load_dataset(name, config)
    if "train" not in found:
        raise DataError(f"hf:{name} has the splits {', '.join(found)}; expected one called train")
    features = found["train"].features
    label = y or _only([key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
                       or [key for key in ("label", "labels", "target") if key in features], f"hf:{name}", "y")
    kept = [key for key in columns.split(",") if key]
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    sample = x or (_only(images, f"hf:{name}", "x") if images else None)
    for key in (label, *kept, *([sample] if sample else [])):
        if key not in features:
            raise DataError(f"hf:{name} has no column {key!r}; it has {', '.join(features)}")
    coder = _Coder()

    def samples(split: Any) -> Samples:
        if sample is not None:
            inputs = np.stack([_pixels(np.asarray(value)) for value in split[sample]])
        else:
            numeric = [key for key in features if key not in (label, *kept)]
            inputs = np.stack([np.asarray(split[key]) for key in numeric], axis=1)
        return Samples(inputs, coder.coded(label, np.asarray(split[label])),
                       {key: coder.coded(key, np.asarray(split[key])) for key in kept})

    kind = features[label]
    num_classes = kind.num_classes if isinstance(kind, datasets.ClassLabel) else None
    train = samples(found["train"])
    return Content(train, samples(found["test"]) if "test" in found else None, num_classes,
                   1 / 255 if train.x.dtype == np.uint8 else 1.0)


def torchvision_content(name: str, root: Path) -> Content:
    """A data set class of torchvision that takes `train` and `download`, such as CIFAR10 or KMNIST."""
    import torchvision

    kind = getattr(torchvision.datasets, name, None)
    if kind is None:
        near = [other for other in dir(torchvision.datasets) if other.lower() == name.lower()]
        raise DataError(f"torchvision has no data set {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    parameters = inspect.signature(kind).parameters
    home = str(root / "torchvision")
    match ("train" in parameters, "split" in parameters):
        case (True, _):
            train, test = (kind(home, train=is_train, download=True) for is_train in (True, False))
        case (_, True):
            train, test = (kind(home, split=split, download=True) for split in ("train", "test"))
        case _:
            raise DataError(f"torchvision:{name} has no training and test set; write a package.module:factory for it")

    def samples(part: Any) -> Samples:
        pairs = [part[index] for index in range(len(part))]
        return Samples(np.stack([_pixels(np.asarray(image)) for image, _ in pairs]),
                       np.array([int(label) for _, label in pairs], np.int64))

    return Content(samples(train), samples(test), None, 1 / 255)


#: Prefix of a name -> what brings such a set: f(name, root, *, options) -> Content.
LIBRARIES: Mapping[str, Callable[..., Content]] = MappingProxyType({
    "sklearn": sklearn_content, "openml": openml_content, "hf": hf_content, "torchvision": torchvision_content})

_EXTRAS = {"sklearn": "sklearn", "openml": "sklearn", "hf": "datasets", "torchvision": "torch"}


class _Coder:
    """Gives text values the numbers of their sorted order, the same in every split; integers stay."""

    def __init__(self) -> None:
        self._values: dict[str, np.ndarray] = {}

    def coded(self, column: str, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind in "iubf":
            return values
        known = self._values.setdefault(column, np.unique(values.astype(str)))
        codes = np.searchsorted(known, values.astype(str))
        codes[codes == len(known)] = 0
        strange = known[codes] != values.astype(str)
        if strange.any():
            raise DataError(f"the column {column!r} of the test split holds {values[strange][0]!r}, which the training "
                            f"split does not")
        return codes


def _pixels(image: np.ndarray) -> np.ndarray:
    """An image, [height, width] or [height, width, channels], as [channels, height, width]."""
    return np.ascontiguousarray(image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0))


def _table(data: Any, name: str) -> np.ndarray:
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "biuf":
        kind = f"an array of {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{name}: the samples are {kind}; expected an array of numbers: write a package.module:factory "
                        f"that encodes them")
    return data


def _target(target: Any) -> np.ndarray:
    """Labels as numbers: whole numbers written as text are these, other text is coded in sorted order."""
    values = np.asarray(target)
    if values.dtype.kind in "OUS":
        text = values.astype(str)
        try:
            return text.astype(np.int64)
        except ValueError:
            return np.unique(text, return_inverse=True)[1].astype(np.int64)
    return values


def _only(names: list[str], dataset: str, option: str) -> str:
    if len(names) != 1:
        raise DataError(f"{dataset}: the column for {option} is unclear ({', '.join(names) or 'none fits'}); name it with "
                        f"--{option}")
    return names[0]


def _write(path: Path, content: Content) -> None:
    """As `_read` reads it; whole or not at all."""
    arrays: dict[str, np.ndarray] = {"scale": np.array(content.scale)}
    if content.num_classes is not None:
        arrays["num_classes"] = np.array(content.num_classes)
    for part, samples in (("train", content.train), ("test", content.test)):
        if samples is not None:
            arrays |= {f"x_{part}": samples.x, f"y_{part}": samples.y}
            arrays |= {f"{part}.{key}": values for key, values in samples.columns.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.part.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(aside, **arrays)  # type: ignore[arg-type]
        aside.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}); free space, or give another folder with --root") from error
    finally:
        aside.unlink(missing_ok=True)


def _read(path: Path) -> Content:
    arrays = read_npz(path)
    missing = [key for key in ("x_train", "y_train", "scale") if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; expected what python -m federation.data fetch writes: delete it "
                        f"and fetch it again")

    def samples(part: str) -> Samples:
        columns = {key.removeprefix(f"{part}."): values for key, values in arrays.items() if key.startswith(f"{part}.")}
        return Samples(arrays[f"x_{part}"], arrays[f"y_{part}"], columns)

    num_classes = int(arrays["num_classes"]) if "num_classes" in arrays else None
    return Content(samples("train"), samples("test") if "x_test" in arrays else None, num_classes, float(arrays["scale"]))
