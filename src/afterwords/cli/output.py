"""How commands talk: results to stdout, progress and notices to stderr, errors as one line and a fix.

Text from outside is escaped before it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape


def console() -> Console:
    """The terminal, by stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """Say something to the person; not part of the result."""
    console().print(message, markup=True)


def plain(text: str) -> str:
    """Text from outside, safe to print: what a terminal would act on is escaped."""
    from afterwords.text import printable

    return printable(text)


def shown(text: str) -> str:
    """As `plain`, for lines with markup."""
    return escape(plain(text))


def result(line: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(f"{line}\n")


def result_json(value: Any) -> None:
    """Print the result as JSON."""
    result(json.dumps(value, ensure_ascii=False, indent=2))


def result_table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table: aligned columns, no frame, so that it can be read and cut alike."""
    from afterwords.text import printable

    cells = [headers, *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def is_terminal() -> bool:
    """Whether a person can be asked: both stdin and stderr are terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A progress bar on stderr; on anything but a terminal, nothing."""
    target = console()
    if not target.is_terminal:
        yield lambda _fraction, _step: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=target, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda fraction, step: bar.update(task, completed=fraction, description=step)


def ask(question: str, *, choices: dict[str, str] | None = None, default: str | None = None) -> str:
    """Ask the person at the terminal; by stderr, so that stdout stays the result's."""
    from rich.prompt import Prompt

    target = console()
    for choice, meaning in (choices or {}).items():
        target.print(f"  [bold]{escape(choice)}[/bold]  {escape(meaning)}")
    answer = Prompt.ask(
        escape(question),
        console=target,
        choices=list(choices) if choices else None,
        default=default,
        show_default=False,
    )
    return answer or ""
