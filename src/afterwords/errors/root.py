"""The root of the tree: what every error of afterwords carries."""

from __future__ import annotations


class AfterwordsError(Exception):
    """The root: catch it to catch everything that afterwords raises on purpose.

    The message is safe to print: what a terminal would act on is escaped, wherever it came from.
    """

    code: str = "error"
    http_status: int = 500
    exit_code: int = 1
    request_id: str | None = None
    """What a server calls the request that it refused, in its log."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _printable(message)
        self.hint = _printable(hint)
        super().__init__(self.message)


def quoted(value: object) -> str:
    """Return what was given in quotation marks, letter by letter, for the message of an error."""
    return f"'{value}'" if isinstance(value, str) else repr(value)


def _printable(text: str) -> str:
    """Text as it may be printed: escapes stand for what a terminal would act on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
