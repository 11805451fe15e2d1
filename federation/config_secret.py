"""A value that nothing prints."""

from __future__ import annotations

import re
from collections.abc import Mapping

from federation.errors import ConfigError

MASK = "***"

_NAMES = re.compile(r"(?:.*[_-])?(?:api_?key|token|password|passwd|secret|credentials?)|.*_key")


class Secret:
    """A key, token or password: `***` wherever it is printed, formatted, logged or dumped; `reveal()` gives the value.

    `shown` is what stands for it in a saved configuration: `***`, or the reference `${env:NAME}` that it came from,
    which tells nothing and can be read again. A configuration that was saved with `***` gives a secret without a value
    (`is_masked`). Not a str, so that no C function reads past the mask.
    """

    __slots__ = ("_value", "shown")

    def __init__(self, value: str | None, shown: str = MASK) -> None:
        self._value = value
        self.shown = shown

    @property
    def is_masked(self) -> bool:
        """Whether only the mask is here, not the value."""
        return self._value is None

    def reveal(self) -> str:
        """The value itself, for the one call that needs it. Raises ConfigError where only the mask is here."""
        if self._value is None:
            raise ConfigError(f"a key, token or password stands as {MASK} in this configuration, which is how it was "
                              "saved; give the value again, best as '${env:NAME}'")
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return self._value != ""

    def __reduce__(self) -> tuple[type[Secret], tuple[str | None, str]]:
        return Secret, (self._value, self.shown)


def is_secret_name(name: str) -> bool:
    """Whether a key's name says that its value is not to be shown: `api_key`, `token`, `password`, `..._key`."""
    return _NAMES.fullmatch(name.lower()) is not None


def revealed(settings: Mapping[str, object]) -> dict[str, object]:
    """A copy of `settings`, at every depth, with the values in place of the secrets: what a constructor is given."""
    return {key: _revealed(value) for key, value in settings.items()}


def _revealed(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return revealed(value)
    if isinstance(value, list | tuple):
        return [_revealed(item) for item in value]
    return value
