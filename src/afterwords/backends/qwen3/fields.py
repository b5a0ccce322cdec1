"""Fields of a checkpoint's JSON files, each read with what it must be, so that an odd file is named and not guessed at.

The configurations of the model and of its codec are read with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from afterwords.errors import ModelFileError

HINT: Final = "use a 12 Hz Base checkpoint of Qwen3-TTS, and download it again if it should be one."


class Fields:
    """One object of a JSON file, with the names that lead to it."""

    def __init__(self, path: Path, values: Mapping[str, Any], *, within: str = "") -> None:
        self.path = path
        self._values = values
        self._within = within

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that holds one JSON object.

        Raises:
            ModelFileError: it is missing or holds something else.
        """
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise ModelFileError(str(path), why="is missing", hint=HINT) from error
        except (OSError, ValueError) as error:
            raise ModelFileError(str(path), why=f"is not JSON ({error})", hint=HINT) from error
        if not isinstance(values, dict):
            raise ModelFileError(str(path), why="holds no JSON object", hint=HINT)
        return cls(path, values)

    def section(self, name: str) -> Fields:
        """The object under a name."""
        value = self._of(name)
        if not isinstance(value, dict):
            self.refuse(name, "is not an object")
        return Fields(self.path, value, within=f"{self._within}{name}.")

    def integer(self, name: str, *, least: int = 1, default: int | None = None) -> int:
        """A whole number, `least` or more."""
        value = self._of(name, default)
        if not _is_integer(value) or value < least:
            self.refuse(name, f"is {value!r}, not a whole number of {least} or more")
        return int(value)

    def number(self, name: str, *, above: float = 0.0, default: float | None = None) -> float:
        """A number larger than `above`."""
        value = self._of(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > above:
            self.refuse(name, f"is {value!r}, not a number above {above:g}")
        return float(value)

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        """True or false."""
        value = self._of(name, default)
        if not isinstance(value, bool):
            self.refuse(name, f"is {value!r}, neither true nor false")
        return value

    def integers(self, name: str, *, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """Whole numbers of 1 or more."""
        value = self._of(name, default)
        if not isinstance(value, list | tuple) or not all(_is_integer(number) and number >= 1 for number in value):
            self.refuse(name, f"is {value!r}, not a list of whole numbers")
        return tuple(value)

    def ids(self, name: str) -> dict[str, int]:
        """Names, each with an id."""
        value = self._of(name)
        if not isinstance(value, dict) or not all(_is_integer(number) for number in value.values()):
            self.refuse(name, f"is {value!r}, not names with an id each")
        return value

    def expect(self, name: str, expected: object, *, default: object = None) -> None:
        """Refuse any value but the one that is known here; a field that is not there or null is `default`."""
        value = self._values.get(name)
        value = default if value is None else value
        if value != expected:
            self.refuse(name, f"is {value!r}, and only {expected!r} is known here")

    def has(self, name: str) -> bool:
        """Whether there is such a field, and not null."""
        return self._values.get(name) is not None

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise the error of a field."""
        raise ModelFileError(str(self.path), why=f"can't be used: {self._within}{name} {why}", hint=HINT)

    def _of(self, name: str, default: object = None) -> Any:
        value = self._values.get(name)
        if value is None and default is None:
            self.refuse(name, "is missing")
        return default if value is None else value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
