"""The reference of all built-in components, made from their classes.

    python -m federation.component_reference      # writes docs/components.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from federation.builtin.table import COMPONENTS
from federation.config_settings import RESERVED, setting_parameters
from federation.config_value import wanted
from federation.core.aggregator import Aggregator
from federation.registry.registry import registry

_KINDS = {
    "aggregator": ("aggregator_config", "How the updates of a round become the new global weights."),
    "learner": ("learner_config", "How one client trains and evaluates."),
    "trainer": ("trainer_config", "What the server runs. The keys are in [Configuration](configuration.md#trainer_config)."),
    "model": ("model_config", "What is trained. Sizes that are left out are taken from the data."),
}
_NEEDS = {
    "mean": "one reduction of the weighted mean",
    "matrix": "columns and inner products, while updates stay on their ranks",
    "rows": "every update, point to point",
}

_INTRODUCTION = """\
# Components

Made from the classes by `python -m federation.component_reference`; change them there.

`components` of a configuration names one of each kind; `aggregator_config`, `learner_config` and `model_config` hold its
settings, which are the keyword arguments of its class. Names of your own go beside these:
`@register("custom.aggregator.my_agg")`, or `package.module:Class`.
"""


def markdown() -> str:
    """The text of docs/components.md."""
    parts = [_INTRODUCTION]
    for kind, (section, about) in _KINDS.items():
        parts.append(f"## {kind.capitalize()}s\n\n{about}\n")
        for name in sorted(COMPONENTS):
            if kind in name.split(".")[:2]:
                parts.append("\n".join(_component(name, kind, section)))
    return "\n".join(parts)


def _component(name: str, kind: str, section: str) -> Iterator[str]:
    component: Any = registry.resolve(name, kind)
    yield f"### `{name}`\n"
    yield _paragraphs(component) + "\n"
    if issubclass(component, Aggregator):
        learner = f" Needs the learner `{component.learner}`." if component.learner else ""
        yield f"What travels: {_NEEDS[component.needs]}.{learner}\n"
    if kind == "trainer":
        return
    settings = setting_parameters(component, RESERVED[kind])
    if settings:
        yield f"| `{section}` | takes | default |\n| --- | --- | --- |"
        for setting, (parameter, annotation) in settings.items():
            default = "" if parameter.default is parameter.empty else f"`{_plain(parameter.default)}`"
            yield f"| `{setting}` | {_takes(annotation)} | {default} |"
        yield ""


def _paragraphs(component: Any) -> str:
    """The docstring, its code marks and paragraphs kept, without what it raises."""
    text = inspect.getdoc(component) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith("Raises"))


def _takes(annotation: Any) -> str:
    return wanted(annotation) if annotation is not object or get_origin(annotation) else "anything"


def _plain(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)


def main(root: Path = Path()) -> None:
    """Write the page below `root`, the folder of the project."""
    path = root / "docs/components.md"
    path.write_text(markdown(), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
