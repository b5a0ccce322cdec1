"""The program `afterwords`: joins the commands and turns what they raise into an exit code."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from types import FrameType
from typing import Annotated, NoReturn

import typer

from afterwords.cli import (
    backends,
    backup,
    bench,
    clone,
    demo,
    doctor,
    jobs,
    keys,
    login,
    models,
    output,
    say,
    serve,
    storage,
    transfer,
    verify,
    voices,
)
from afterwords.cli.help import HelpCommand, HelpGroup, examples
from afterwords.errors import AfterwordsError, UnknownSettingWarning

INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended: 128 + SIGINT

VOICES, SPEAK, SERVER, REMOTE, SETUP = "Voices", "Speak", "Server", "Remote", "Setup"

app = typer.Typer(
    name="afterwords",
    help="Clone your voice once, own it forever, use it anywhere.",
    cls=HelpGroup,
    epilog=examples(
        "afterwords demo",
        "afterwords clone me.wav --name me --consent self",
        'afterwords say "Hello, this is my voice." --voice me -o hello.wav',
    ),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from afterwords import __version__

        output.result(f"afterwords {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["AFTERWORDS_DEBUG"] = "1"
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(output.UsageError.exit_code)
    _warn_of_unknown_settings()


def _warn_of_unknown_settings() -> None:
    """Say in one line each which variables are misspelled; libraries would be told by a Python warning."""
    from afterwords.config import unknown_variables

    warnings.simplefilter("ignore", UnknownSettingWarning)
    for sentence in unknown_variables(os.environ):
        output.note(f"[bold yellow]Warning:[/bold yellow] {output.shown(sentence)}")


def _add(name: str, function: Callable[..., None], panel: str, *lines: str) -> None:
    """Add a command to its panel of the help, with examples of calls."""
    app.command(name, cls=HelpCommand, rich_help_panel=panel, epilog=examples(*lines))(function)


_add(
    "clone",
    clone.clone,
    VOICES,
    "afterwords clone me.wav --name me --consent self",
    "afterwords clone --record --name me",
)
app.add_typer(voices.app, name="voices", rich_help_panel=VOICES)
_add("doctor", doctor.doctor, VOICES, "afterwords doctor me.wav")
_add(
    "say",
    say.say,
    SPEAK,
    'afterwords say "Hello, this is my voice." --voice me',
    "afterwords say --file story.txt --voice me -o story.mp3",
    "echo Hello | afterwords say - -o - --format mp3 > hello.mp3",
    'afterwords say "Hello" --voice me --remote -o hello.wav',
)
_add("verify", verify.verify, SPEAK, "afterwords verify hello.mp3")
_add("demo", demo.demo, SPEAK, "afterwords demo")
_add("bench", bench.bench, SPEAK, "afterwords bench me", "afterwords bench me --backend lite --json")
_add("serve", serve.serve, SERVER, "afterwords serve", "afterwords serve --host 0.0.0.0 --port 8000")
app.add_typer(keys.app, name="keys", rich_help_panel=SERVER)
_add("backup", backup.backup, SERVER, "afterwords backup /backups/afterwords.tar")
_add("restore", backup.restore, SERVER, "afterwords restore /backups/afterwords.tar")
_add("accounts", keys.accounts, SERVER, "afterwords accounts")
app.add_typer(storage.app, name="storage", rich_help_panel=SERVER)
_add("login", login.login, REMOTE, "afterwords login https://voices.example.com")
_add("logout", login.logout, REMOTE)
_add("whoami", login.whoami, REMOTE)
app.add_typer(login.profiles_app, name="profiles", rich_help_panel=REMOTE)
_add("push", transfer.push, REMOTE, "afterwords push me")
_add("pull", transfer.pull, REMOTE, "afterwords pull me")
_add("sync", transfer.sync, REMOTE, "afterwords sync --dry-run")
app.add_typer(jobs.app, name="jobs", rich_help_panel=REMOTE)
_add("usage", login.usage, REMOTE)
_add("backends", backends.backends, SETUP)
app.add_typer(models.app, name="models", rich_help_panel=SETUP)


def run() -> None:
    """Run the command line; exits with the code of what happened."""
    if sys.stdout is None:  # the shell closed it: `>&-`
        sys.stdout = TextIOWrapper(BytesIO())
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a result never fails for what an encoding lacks
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _stop)
    code = _run()
    if code:
        # What a failed output still holds can't be written: Python would try once more at exit, and complain.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    """End in order, so that no part of a file is left."""
    sys.exit(128 + signum)


def _run() -> int:
    try:
        code: int | None = app(prog_name="afterwords", standalone_mode=False)
        output.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read the output has left
        code = 1
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        return _failed(told)
    if code == INTERRUPTED:
        output.note("Stopped.")
    return code or 0


_CallError = typer.BadParameter.__mro__[1]
"""What typer raises of a wrong call: click's UsageError, which has no public name in typer."""


def _told(error: Exception) -> AfterwordsError | None:
    """What happened, for the person; None where only a traceback can tell."""
    if isinstance(error, AfterwordsError):
        return error
    if isinstance(error, _CallError):
        return _usage_error(error)
    if isinstance(error, typer.Abort):
        return output.UsageError("The input ended before the question was answered.", hint="answer it.")
    if os.environ.get("AFTERWORDS_DEBUG"):
        return None
    if isinstance(error, OSError) and error.strerror:
        hint = "see that the disk has space and the folders are yours, then run it again."
        return AfterwordsError(f"The system refused: {error.strerror.lower()}.", hint=hint)
    return AfterwordsError(
        f"Something went wrong that afterwords did not foresee ({type(error).__name__}).",
        hint="run it again as `afterwords --debug …` and report what it shows.",
    )


def _usage_error(error: Exception) -> AfterwordsError:
    context: typer.Context | None = getattr(error, "ctx", None)
    see = f"see {context.command_path if context else 'afterwords'} --help."
    message = str(getattr(error, "format_message", error.__str__)()).strip()
    if message.startswith("Got unexpected extra argument"):  # it would repeat them: words of a text, most likely
        return output.UsageError(
            "There are more arguments than it takes.", hint=f"put a text in quotes, and options before it; {see}"
        )
    if message.startswith("No such option"):
        see = f"a text or name that begins with - goes last, after -- ; {see}"
    return output.UsageError(message if message.endswith((".", "?")) else f"{message}.", hint=see)


def _failed(error: AfterwordsError) -> int:
    """Say what went wrong in one line, and the fix; returns the exit code."""
    if os.environ.get("AFTERWORDS_DEBUG"):
        output.console().print_exception()
    output.note(f"[bold red]{type(error).__name__}[/bold red]: {output.shown(error.message)}")
    if error.hint:
        output.note(f"  [bold]Fix:[/bold] {output.shown(error.hint)}")
    return error.exit_code
