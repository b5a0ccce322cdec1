"""Print results to stdout, progress and notices to stderr, and ask questions at a terminal.

Untrusted text is escaped before it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from typer import Exit

from afterwords.errors import AfterwordsError, FileError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress


class UsageError(AfterwordsError):
    """The arguments of the command are invalid."""

    code = "usage"
    exit_code = 2


# -- results --------------------------------------------------------------------------------------------------


def result(line: str) -> None:
    """Print a line of the result."""
    with _stdout_errors():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def result_wrapped(line: str, *, indent: int) -> None:
    """Print a line of the result; on a terminal, wrap it between words."""
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
    """Print the result as JSON in ASCII, which is safe in every terminal and encoding."""
    result(json.dumps(value, indent=2))


def result_facts(facts: Mapping[str, Any]) -> None:
    """Print the facts about one thing, one per line, without the empty ones."""
    for name, value in facts.items():
        text = "  ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        if text not in (None, ""):
            result(f"{name:<12} {plain(str(text))}")


def result_table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table with aligned columns and without a frame; on a terminal, wrap the last column."""
    from rich.cells import cell_len

    cells = [headers, *(tuple(plain(cell) for cell in row) for row in rows)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(headers))]
    indent = sum(widths[:-1]) + 2 * len(widths[:-1])
    for row in cells:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        result_wrapped("  ".join(padded).rstrip(), indent=indent)


@contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileError.unwritable("The output", why=(error.strerror or str(error)).lower()) from error


def free_path(path: Path) -> Path:
    """Return the path of a file that the user did not name, if it does not exist yet.

    Raises:
        FileError: The file exists.
    """
    if path.exists():
        raise FileError.unwritable(path, why="it already exists", hint=f"to replace it, add -o {path}")
    return path


# -- notices --------------------------------------------------------------------------------------------------


def console() -> Console:
    """Return a console for stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def note(message: str) -> None:
    """Print a notice to stderr, with Rich markup."""
    console().print(message, markup=True)


def note_left_out(backend: str, words: Sequence[str]) -> None:
    """Print the words of a text that were not spoken, if there are any."""
    from afterwords.text import describe_left_out

    if words:
        note(f"  [yellow]![/yellow] {escape(describe_left_out(backend, words))}")


@contextmanager
def without_text_warnings() -> Iterator[None]:
    """Suppress TextWarning in a command that prints the left-out words itself."""
    from afterwords.errors import TextWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        yield


def plain(text: str) -> str:
    """Return untrusted text with control characters escaped, safe to print."""
    from afterwords.text import printable

    return printable(text)


def shown(text: str) -> str:
    """Return text like `plain`, escaped for a line with markup."""
    return escape(plain(text))


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def note_how_to_listen(file: str) -> None:
    """Print the command that plays a file on this system, if there is one."""
    import shutil

    command = {"darwin": "open", "win32": "start"}.get(sys.platform) or ("xdg-open" if shutil.which("xdg-open") else "")
    if command:
        note(f"Next: {command} {quoted(file)}")


def quoted(text: str) -> str:
    """Return text like `shown`, quoted for a command that the user can copy."""
    import shlex

    return shown(shlex.quote(text))


LINE_EVERY_S: Final = 10.0
"""Interval of the progress lines that replace the bar where stderr is not a terminal."""
RECENT_LINES: Final = 7
"""Lines whose pace gives the time left."""


class Bar:
    """A progress bar: call it with the fraction done, from 0 to 1, and the current step."""

    def __init__(self, bar: Progress | None, step: str) -> None:
        self._bar = bar
        self._task = bar.add_task(shown(step), total=1.0) if bar else None
        self.line = step
        self.fraction = 0.0

    def __call__(self, fraction: float, step: str) -> None:
        self.fraction = fraction
        if fraction < 1:  # the last step is "done", and the next may be slow
            self.line = f"{step}, {fraction:.0%}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=fraction, description=shown(step))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the bar while a question is asked."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        yield
        self._bar.start()


@contextmanager
def progress_bar(step: str = "loading") -> Iterator[Bar]:
    """Show a progress bar on stderr, with the elapsed and the remaining time; without a terminal, a line every 10 s.

    Args:
        step: The first step.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        plain_bar, is_over = Bar(None, step), threading.Event()

        def print_lines() -> None:
            started = time.monotonic()
            recent = deque([(started, 0.0)], maxlen=RECENT_LINES)
            with suppress(OSError):  # the reader of stderr has closed it
                while not is_over.wait(LINE_EVERY_S):
                    recent.append((time.monotonic(), plain_bar.fraction))
                    (since, before), (until, fraction) = recent[0], recent[-1]
                    left_s = (until - since) * (1 - fraction) / (fraction - before) if fraction > before else 0.0
                    left = f", about {duration(left_s)} left" if left_s >= LINE_EVERY_S else ""
                    note(f"{shown(plain_bar.line)} after {until - started:.0f} s{left}")

        thread = threading.Thread(target=print_lines, daemon=True)
        thread.start()
        try:
            yield plain_bar
        finally:
            is_over.set()
            thread.join()
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
def waiting(step: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the elapsed time on a terminal; yield a function that changes its text."""
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
    """Return whether questions can be asked: both stdin and stderr are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask(question: str, *, choices: dict[str, str] | None = None) -> str:
    """Ask a question at the terminal, on stderr: stdout carries the result."""
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
    """Ask for a secret at the terminal, without showing it."""
    from getpass import getpass

    return getpass(f"{plain(question)} ", stream=sys.stderr)


def confirm_removal(warning: str) -> None:
    """Ask at the terminal whether to remove something.

    Args:
        warning: What is lost, as Rich markup.

    Raises:
        UsageError: There is no terminal to ask at.
        Exit: The user said no.
    """
    if not is_terminal():
        raise UsageError("Removing needs a confirmation, and stdin is not a terminal.", hint="add --yes.")
    note(warning)
    if ask("Type yes to continue").strip().lower() != "yes":
        note("Nothing was removed.")
        raise Exit(1)


def confirm_replacing(message: str) -> None:
    """Ask at the terminal whether to replace an existing voice.

    Args:
        message: Which voice exists, as Rich markup.

    Raises:
        Exit: The user said no.
    """
    note(message)
    if ask("Type yes to replace it for good").strip().lower() != "yes":
        note("Nothing was changed.")
        raise Exit(1)


def edit_line(question: str, text: str) -> str:
    """Let the user edit a text in place; on Windows, Enter accepts it and a new text replaces it."""
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
