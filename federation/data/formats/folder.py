"""A folder of `.npy` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from federation.data.formats.damage import damage
from federation.data.formats.raw import Content, Samples
from federation.errors import DataError


def read_folder(folder: Path) -> Content:
    """x.npy and y.npy, or x_train.npy, y_train.npy, x_test.npy and y_test.npy; memory-mapped, so larger than memory will do.

    Other files are columns: user.npy beside x.npy, or user_train.npy and, if there is one, user_test.npy. Raises
    DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.absolute()} is no folder; expected one with x.npy and y.npy, or x_train.npy, y_train.npy, "
                        f"x_test.npy and y_test.npy")
    names = {path.stem for path in folder.glob("*.npy")}
    layouts = (("x", "y"), ("x_train", "y_train", "x_test", "y_test"))
    whole = [layout for layout in layouts if set(layout) <= names]
    if len(whole) != 1:
        raise DataError(f"{folder} holds {', '.join(f'{name}.npy' for name in sorted(names)) or 'no .npy files'}; expected "
                        f"{' or '.join(' '.join(f'{name}.npy' for name in layout) for layout in layouts)}, not both")
    if len(whole[0]) == 2:
        return Content(_samples(folder, "x", "y", {name: name for name in names - {"x", "y"}}))
    columns = {part: {name.removesuffix(f"_{part}"): name for name in names - set(whole[0]) if name.endswith(f"_{part}")}
               for part in ("train", "test")}
    if strange := names - set(whole[0]) - {name for part in columns.values() for name in part.values()}:
        raise DataError(f"{folder} holds {', '.join(f'{name}.npy' for name in sorted(strange))}; columns are called "
                        f"NAME_train.npy and NAME_test.npy where x is x_train.npy and x_test.npy")
    if unknown := set(columns["test"]) - set(columns["train"]):
        raise DataError(f"{folder} has the column {', '.join(sorted(unknown))} for test samples alone; expected it for "
                        f"training samples too")
    return Content(_samples(folder, "x_train", "y_train", columns["train"]),
                   _samples(folder, "x_test", "y_test", columns["test"]))


def _samples(folder: Path, x: str, y: str, columns: dict[str, str]) -> Samples:
    return Samples(_mapped(folder, x), _mapped(folder, y), {key: _mapped(folder, name) for key, name in columns.items()})


def _mapped(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.npy"
    with damage(path, ".npy file"):
        return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
