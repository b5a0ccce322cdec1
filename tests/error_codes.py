"""Check the code of a caught error: `pytest.raises(RecordingError, check=has_code("too_short"))`."""

from __future__ import annotations

from collections.abc import Callable

from afterwords.errors import AfterwordsError


def has_code(code: str) -> Callable[[AfterwordsError], bool]:
    """Return a check for `pytest.raises` that accepts an error with this code."""
    return lambda error: error.code == code
