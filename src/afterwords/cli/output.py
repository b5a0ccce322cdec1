"""How commands talk: results to stdout, progress and notices to stderr, errors as one line and a fix.

Text from outside is escaped before it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from typer import Exit

from afterwords.errors import AfterwordsError, UnwritableOutputError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress


class UsageError(AfterwordsError):
    """The command was called in a way that it can't be."""

    code = "usage"
    exit_code = 2


# -- results --------------------------------------------------------------------------------------------------


def result(line: str) -> None:
    """Print a line of the result."""
    with _stdout_errors():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def result_wrapped(line: str, *, indent: int) -> None:
    """Print a line of the result; on a terminal, broken between words at its width."""
    if not sys.stdout.isatty():
        result(line)
        return
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    indent = min(indent, width // 2)
    wrapped = textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    result("\n".join(wrapped))


def result_json(value: Any) -> None:
    """Print the result as JSON, in ASCII: no terminal acts on it, and every encoding can carry it."""
    result(json.dumps(value, indent=2))


def result_facts(facts: Mapping[str, Any]) -> None:
    """Print what is known of one thing, a line for each fact that there is."""
    for name, value in facts.items():
        told = "  ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        if told not in (None, ""):
            result(f"{name:<12} {plain(str(told))}")


def result_table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table: aligned columns, no frame, so that people and `cut` can read it.

    On a terminal, the last column is wrapped between words at its width.
    """
    from rich.cells import cell_len

    cells = [headers, *(tuple(plain(cell) for cell in row) for row in rows)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(headers))]
    indent = sum(widths[:-1]) + 2 * len(widths[:-1])
    for row in cells:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        result_wrapped("  ".join(padded).rstrip(), indent=indent)


def flush() -> None:
    """See that what others have printed, such as the help, has reached its reader."""
    with _stdout_errors():
        sys.stdout.flush()


@contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwritableOutputError("The output", why=(error.strerror or str(error)).lower()) from error


def free_path(path: Path) -> Path:
    """A file that nobody named, and that is not there yet.

    Raises:
        UnwritableOutputError: one that is there is kept.
    """
    if path.exists():
        raise UnwritableOutputError(path, why="it exists already", hint=f"to replace it, add -o {path}")
    return path


# -- notices --------------------------------------------------------------------------------------------------


def console() -> Console:
    """The terminal, by stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def note(message: str) -> None:
    """Say something to the person; not part of the result."""
    console().print(message, markup=True)


def note_left_out(backend: str, words: Sequence[str]) -> None:
    """Name the words of a text that were not spoken, if there are any."""
    from afterwords.text import left_out

    if words:
        note(f"  [yellow]![/yellow] {escape(left_out(backend, words))}")


@contextmanager
def without_text_warnings() -> Iterator[None]:
    """Keep Python's warning of words that are left out from a command that names them."""
    from afterwords.errors import TextWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        yield


def plain(text: str) -> str:
    """Text from outside, safe to print: what a terminal would act on is escaped."""
    from afterwords.text import printable

    return printable(text)


def shown(text: str) -> str:
    """As `plain`, for lines with markup."""
    return escape(plain(text))


def duration(seconds: float) -> str:
    """How long something took, as a person would say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def note_how_to_listen(file: str) -> None:
    """Name the command that plays a file here, if there is one."""
    import shutil

    command = {"darwin": "open", "win32": "start"}.get(sys.platform) or ("xdg-open" if shutil.which("xdg-open") else "")
    if command:
        note(f"Next: {command} {quoted(file)}")


def quoted(text: str) -> str:
    """As `shown`, for a command that the person may copy."""
    import shlex

    return shown(shlex.quote(text))


LINE_EVERY_S: Final = 10.0
"""How often long work says where it is, where no bar can be drawn."""


class Bar:
    """A progress bar: call it with how far the work is, from 0 to 1, and with what is being done."""

    def __init__(self, bar: Progress | None, step: str) -> None:
        self._bar = bar
        self._task = bar.add_task(shown(step), total=1.0) if bar else None
        self.line = step

    def __call__(self, fraction: float, step: str) -> None:
        if fraction < 1:  # at the end "done" is said, and what comes next may take its time
            self.line = f"{step}, {fraction:.0%}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=fraction, description=shown(step))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take it off the terminal while a person is asked."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        yield
        self._bar.start()


@contextmanager
def progress_bar(step: str = "loading") -> Iterator[Bar]:
    """Show a progress bar on stderr, with the time so far and an estimate of the rest.

    On anything but a terminal it is a plain line every 10 s.

    Args:
        step: what is being done at first.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        with _lines(Bar(None, step)) as plain_bar:
            yield plain_bar
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<23}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left about"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console(), transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar:
        yield Bar(bar, step)


@contextmanager
def _lines(bar: Bar) -> Iterator[Bar]:
    is_over = threading.Event()

    def print_lines() -> None:
        started = time.monotonic()
        with suppress(OSError):  # whatever read stderr has gone
            while not is_over.wait(LINE_EVERY_S):
                note(f"{shown(bar.line)} after {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield bar
    finally:
        is_over.set()
        thread.join()


@contextmanager
def waiting(step: str) -> Iterator[Callable[[str], None]]:
    """Show that something is waited for, and how long it has been; on anything but a terminal, nothing.

    Yields a function that changes what is shown.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda _step: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    bar = Progress(*columns, console=console(), transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar:
        task = bar.add_task(shown(step), total=None)
        yield lambda step: bar.update(task, description=shown(step))


# -- questions ------------------------------------------------------------------------------------------------


def is_terminal() -> bool:
    """Whether a person can be asked: both stdin and stderr are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask(question: str, *, choices: dict[str, str] | None = None) -> str:
    """Ask the person at the terminal; by stderr, so that stdout stays the result's."""
    from rich.prompt import Prompt

    target = console()
    for choice, meaning in (choices or {}).items():
        target.print(f"  [bold]{escape(choice)}[/bold]  {escape(meaning)}")
    return (
        Prompt.ask(
            shown(question), console=target, choices=list(choices) if choices else None, default="", show_default=False
        )
        or ""
    )


def ask_hidden(question: str) -> str:
    """Ask the person at the terminal for a secret, which is not shown."""
    from getpass import getpass

    return getpass(f"{plain(question)} ", stream=sys.stderr)  # which asks once nothing is shown any more


def confirm_removal(warning: str) -> None:
    """Ask the person at the terminal whether a removal is meant; the warning is markup.

    Raises:
        UsageError: there is nobody to ask.
        Exit: it is not meant.
    """
    if not is_terminal():
        raise UsageError("There is nobody to ask whether that is meant.", hint="add --yes.")
    note(warning)
    if ask("Type yes to go on").strip().lower() != "yes":
        note("Nothing was removed.")
        raise Exit(1)


def confirm_replacing(told: str) -> None:
    """Tell of a voice that is in the way, and ask whether another may take its place; the telling is markup.

    Raises:
        Exit: it may not.
    """
    note(told)
    if ask("Type yes to replace it, for good").strip().lower() != "yes":
        note("Nothing was changed.")
        raise Exit(1)


def correct(question: str, text: str) -> str:
    """Let the person edit a text in its line; where the terminal can't, Enter takes it and a new text replaces it."""
    note(shown(question))
    try:
        import readline
    except ImportError:  # Windows
        return input() or text
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return input() or text
    finally:
        readline.set_startup_hook(None)
