"""How a configuration shares out its samples: a table, warnings, and a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from federation.assemble import load_data
from federation.config import Config, load_config
from federation.config_settings import RESERVED, setting_parameters
from federation.data.manager import DataManager
from federation.errors import DataError
from federation.registry.registry import load_plugins, resolve

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SHOWN = 60  #: clients drawn one by one; of more, so many spread evenly over the sizes
LABELS = 20  #: labels told apart by colour
PICTURES = (".png", ".pdf", ".svg")


def preview(config_path: str | None, overrides: Sequence[str] = (), picture: Path | None = None) -> str:
    """The report on the partition of the configuration at `config_path` (None: the built-in example), with `overrides` as
    for `--set`; draws it into the file `picture` as well.

    Raises ConfigError and DataError; DataError, too, for a picture that cannot be written, or without matplotlib.
    """
    config = load_config(config_path, overrides=tuple(overrides))
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise DataError(f"{picture}: a picture's name ends with {', '.join(PICTURES)}")
    if not config.data.enabled:
        raise DataError("data.enabled: false: clients bring their own data, so there is no partition to preview")
    data = load_data(config)
    if picture is not None:
        draw(data, picture)
    return report(config, data)


def report(config: Config, data: DataManager) -> str:
    """Name and digest, a table of quantiles over clients, and warnings."""
    dataset, partition = data.dataset, data.partition
    rows = [("training samples", data.sizes.astype(np.float64))]
    rows += [(f"{part} samples", sizes.astype(np.float64))
             for part, sizes in (("validation", data.validation_sizes), ("test", data.test_sizes)) if sizes.any()]
    if dataset.num_classes is not None:
        rows.append(("label entropy, bits", partition.label_entropies(dataset.y_train)))
    table = Table(title=f"{dataset.name}: {data.num_clients} clients, {config.data.partitioner}")
    table.add_column("a client's")
    for quantile in QUANTILES:
        table.add_column({0.0: "least", 0.5: "median", 1.0: "most"}.get(quantile, f"{quantile:.0%}"), justify="right")
    for name, values in rows:
        cells = np.quantile(values, QUANTILES, method="inverted_cdf")
        table.add_row(name, *(f"{cell:.2f}" if "entropy" in name else f"{cell:.0f}" for cell in cells))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    parts = {part: len(dataset.samples(part)[1]) for part in ("train", "test", "validation")}
    kind = f"{dataset.num_classes} classes" if dataset.num_classes else "targets for regression"
    lines = [text.getvalue().rstrip(), f"all: {parts['train']} training, {parts['test']} test and {parts['validation']} "
             f"validation samples of {list(dataset.input_shape)}, {kind}", f"partition {partition.sha256()}"]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings(config, data))])


def warnings(config: Config, data: DataManager) -> Iterator[str]:
    """What may surprise in training."""
    sizes, num_clients = data.sizes, data.num_clients
    if empty := int((sizes == 0).sum()):
        yield f"{empty} of {num_clients} clients have no training samples, and will never be drawn"
    batch = _batch_size(config)
    if batch is not None and (small := int(((sizes > 0) & (sizes < batch)).sum())):
        yield (f"{small} of {num_clients} clients have fewer samples than a batch ({batch}): each of their batches is all "
               "they have")
    left = len(data.dataset.y_train) - len(data.partition.order)
    if left:
        yield f"{left} of {len(data.dataset.y_train)} training samples belong to no client"


def draw(data: DataManager, picture: Path) -> None:
    """Clients by labels (where there are classes), and the sizes of all clients. Raises DataError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("pictures need matplotlib, which is not installed: pip install 'federation-hpc[plot]'") from error
    has_classes = data.dataset.num_classes is not None
    figure = Figure(figsize=(11 if has_classes else 6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if has_classes else 1, squeeze=False)[0]
    if has_classes:
        _draw_labels(axes[0], data)
    sizes = np.sort(data.partition.sizes)[::-1]
    axes[-1].step(np.arange(1, len(sizes) + 1), sizes, where="mid")
    axes[-1].set(xlabel="clients, largest first", ylabel="samples", title="sizes")
    if len(sizes) > 1000:
        axes[-1].set_xscale("log")
    axes[-1].set_ylim(bottom=0)
    try:
        figure.savefig(picture, dpi=150)
    except OSError as error:
        raise DataError(f"{picture} cannot be written ({error.strerror or error})") from error


def _draw_labels(axes: Any, data: DataManager) -> None:
    """A bar for each client, coloured by label; for many clients, some spread evenly over the sizes."""
    num_clients = data.num_clients
    clients = np.arange(num_clients)
    if num_clients > SHOWN:
        by_size = np.argsort(-data.partition.sizes, kind="stable")
        clients = by_size[np.linspace(0, num_clients - 1, SHOWN).astype(np.int64)]
    classes, counts = data.partition.label_counts(data.dataset.y_train, clients)
    if len(classes) > LABELS:  # neighbours share a colour
        groups = np.array_split(np.arange(len(classes)), LABELS)
        names = [f"{classes[group[0]]} to {classes[group[-1]]}" for group in groups]
        counts = np.stack([counts[:, group].sum(axis=1) for group in groups], axis=1)
    else:
        names = [str(label) for label in classes]
    below = np.zeros(len(clients), np.int64)
    from matplotlib import colormaps

    for name, column, colour in zip(names, counts.T, colormaps["tab20"](np.linspace(0, 1, len(names))), strict=True):
        axes.bar(np.arange(len(clients)), column, bottom=below, width=0.9, label=name, color=colour)
        below = below + column
    shown = f"{SHOWN} of {num_clients} clients, largest first" if num_clients > SHOWN else "client"
    axes.set(xlabel=shown, ylabel="samples", title="labels")
    axes.legend(title="label", fontsize=7, title_fontsize=8, ncols=2)


def _batch_size(config: Config) -> int | None:
    """That of the learner, where it has one that is a number."""
    given = config.learner_config.get("batch_size")
    if given is None:
        load_plugins(config.plugins)
        learner = resolve(config.components.learner or "", "learner")
        if "batch_size" in (settings := setting_parameters(learner, RESERVED["learner"])):
            given = settings["batch_size"][0].default
    return given if isinstance(given, int) and not isinstance(given, bool) else None
