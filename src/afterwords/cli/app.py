"""The program `afterwords`: registers the commands, and turns errors into messages and exit codes."""

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

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["AFTERWORDS_DEBUG"] = "1"
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(output.UsageError.exit_code)
    from afterwords.config import unknown_variables

    warnings.simplefilter("ignore", UnknownSettingWarning)  # printed here, in one line each
    for sentence in unknown_variables(os.environ):
        output.note(f"[bold yellow]Warning:[/bold yellow] {output.shown(sentence)}")


def _add(name: str, function: Callable[..., None], panel: str, *lines: str) -> None:
    """Register a command in a panel of the help, with examples."""
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


_ClickUsageError = typer.BadParameter.__mro__[1]
"""click's UsageError, which typer raises and does not export."""


def run() -> None:
    """Run the command line, and exit with the code of its result."""
    if sys.stdout is None:  # the shell closed it: `>&-`
        sys.stdout = TextIOWrapper(BytesIO())
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an encoding without some character must not fail
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        code: int | None = app(prog_name="afterwords", standalone_mode=False)
        output.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of the output has closed it
        code = 1
    except Exception as error:
        translated = _translate(error)
        if translated is None:
            raise
        code = translated.exit_code
        if os.environ.get("AFTERWORDS_DEBUG"):
            output.console().print_exception()
        output.note(f"[bold red]{type(translated).__name__}[/bold red]: {output.shown(translated.message)}")
        if translated.hint:
            output.note(f"  [bold]Fix:[/bold] {output.shown(translated.hint)}")
    if code == INTERRUPTED:
        output.note("Stopped.")
    if code:
        # Python flushes stdout again at exit, and would complain about output that can't be written.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


def _exit_on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    """Exit through the `finally` blocks, so that no partial file is left."""
    sys.exit(128 + signum)


def _translate(error: Exception) -> AfterwordsError | None:
    """Return the error to print, or None to show the traceback."""
    if isinstance(error, AfterwordsError):
        return error
    if isinstance(error, _ClickUsageError):
        context: typer.Context | None = getattr(error, "ctx", None)
        see = f"see {context.command_path if context else 'afterwords'} --help."
        message = str(getattr(error, "format_message", error.__str__)()).strip()
        if message.startswith("Got unexpected extra argument"):  # click repeats them; they may be words of a text
            return output.UsageError("Too many arguments.", hint=f"put a text in quotes, and options before it; {see}")
        if message.startswith("No such option"):
            see = f"a text or name that begins with - goes last, after -- ; {see}"
        return output.UsageError(message if message.endswith((".", "?")) else f"{message}.", hint=see)
    if isinstance(error, typer.Abort):
        return output.UsageError("The input ended before the question was answered.", hint="answer it.")
    if os.environ.get("AFTERWORDS_DEBUG"):
        return None
    if isinstance(error, OSError) and error.strerror:
        hint = "check the free disk space and the permissions of your folders, then run it again."
        return AfterwordsError(f"The operating system reported: {error.strerror.lower()}.", hint=hint)
    return AfterwordsError(
        f"Unexpected error ({type(error).__name__}).",
        hint="run it again as `afterwords --debug …` and report the traceback.",
    )
