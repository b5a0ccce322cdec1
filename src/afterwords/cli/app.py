"""The program `afterwords`: imports the command to run, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from io import BytesIO, TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand
from typer.main import get_group

from afterwords.cli.help import HelpCommand, HelpGroup, examples

if TYPE_CHECKING:
    from types import FrameType

    from afterwords.errors import AfterwordsError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Entry(NamedTuple):
    """What the help shows of a command: its panel and its first sentences; and the module that has it."""

    panel: str
    module: str
    help: str


# Help and completion list the commands without importing them.
COMMANDS: Final = {
    "clone": Entry("Voices", "clone", "Make a voice from a recording."),
    "doctor": Entry(
        "Voices", "doctor", "Grade a recording from A to F, with reasons, and show the part that `clone` would use."
    ),
    "voices": Entry("Voices", "voices", "List, show, rename, remove, export and import voices."),
    "say": Entry("Speak", "say", "Speak a text with a voice, on this machine or on a server."),
    "narrate": Entry(
        "Speak",
        "narrate",
        "Speak a book into one audio file with chapters. After an interruption, run it again to go on.",
    ),
    "lexicon": Entry("Speak", "lexicon", "Set how a voice pronounces words, by an alias or by IPA."),
    "verify": Entry(
        "Speak", "verify", "Check whether a file is marked as synthetic speech. The exit code is 1 if it is not."
    ),
    "demo": Entry(
        "Speak",
        "demo",
        "Clone the voice of a recording that comes with afterwords, and speak a sentence into hello.wav.",
    ),
    "bench": Entry("Speak", "bench", "Measure the speed, similarity and memory of each backend on this machine."),
    "serve": Entry(
        "Server", "serve", "Serve the /v1 API: voices, speech and jobs for other programs. Ctrl-C stops it."
    ),
    "wyoming": Entry("Server", "wyoming", "Serve the voices of this machine to Home Assistant. Ctrl-C stops it."),
    "status": Entry(
        "Server",
        "status",
        "Show whether a running server is ready, its queue and workers. The exit code is 8 if it is not.",
    ),
    "backup": Entry("Server", "backup", "Back up the server's database and audio into one file, while it runs."),
    "restore": Entry("Server", "backup", "Restore the server on this machine from a backup. Stop the server first."),
    "db": Entry("Server", "db", "Migrate, check, copy, back up and restore the database of the server."),
    "import-cloudflare": Entry(
        "Server",
        "import_cloudflare",
        "Import accounts, keys, voices, jobs and audio of the hosted service on Cloudflare. Stop the server first.",
    ),
    "accounts": Entry(
        "Server", "keys", "List, show and close the accounts of the server on this machine, and set their plans."
    ),
    "keys": Entry(
        "Server", "keys", "List, create, rotate and revoke API keys of the server on this machine, or of another."
    ),
    "billing": Entry(
        "Server", "billing", "Read subscriptions from Stripe again, and create a key for a customer who lost theirs."
    ),
    "worker": Entry(
        "Server", "workers", "Run the jobs of a server elsewhere on this machine. Ctrl-C stops it after running jobs."
    ),
    "workers": Entry("Server", "workers", "Manage the tokens of remote workers."),
    "cluster": Entry("Server", "cluster", "Run engines in a Ray cluster, show and stop them."),
    "deploy": Entry("Server", "deploy", "Deploy an app that runs the jobs of a server on Modal or RunPod."),
    "audit": Entry(
        "Server",
        "audit",
        "Show what was done to keys, worker tokens, voices and accounts of the server on this machine.",
    ),
    "storage": Entry(
        "Server", "storage", "Check that the storage belongs to the server on this machine, and adopt it."
    ),
    "login": Entry("Remote", "login", "Log in to a server with an API key, which is asked for or read from stdin."),
    "logout": Entry(
        "Remote",
        "login",
        "Remove a login and its key from this machine. The key stays valid until `afterwords keys revoke`.",
    ),
    "whoami": Entry("Remote", "login", "Show the current server and login, and the backends that the server offers."),
    "push": Entry("Remote", "transfer", "Copy a voice to a server, with its takes. Running it again changes nothing."),
    "pull": Entry(
        "Remote", "transfer", "Copy a voice from a server into the library. Running it again changes nothing."
    ),
    "sync": Entry(
        "Remote",
        "transfer",
        "Sync voices both ways: copy those that only one side has. Nothing is removed or overwritten.",
    ),
    "usage": Entry("Remote", "usage", "Show the characters used in this billing period, by day."),
    "profiles": Entry("Remote", "login", "List your logins on several servers, and choose one."),
    "alias": Entry(
        "Remote", "alias", "Give a voice of a server a further name, such as alloy, for programs made for OpenAI."
    ),
    "jobs": Entry("Remote", "jobs", "List, show, wait for, cancel and download jobs of a server."),
    "backends": Entry("Setup", "backends", "List the backends that can run on this machine, and what the others need."),
    "models": Entry("Setup", "models", "List, download, verify and remove model weights."),
}
EXAMPLES: Final = {
    "clone": ("afterwords clone me.wav --name me --consent self", "afterwords clone --record --name me"),
    "doctor": ("afterwords doctor me.wav",),
    "say": (
        'afterwords say "Hello, this is my voice." --voice me',
        "afterwords say --file story.txt --voice me -o story.mp3",
        "echo Hello | afterwords say - -o - --format mp3 > hello.mp3",
        'afterwords say "Hello" --voice me --remote -o hello.wav',
        "afterwords say --file story.txt --voice me --remote --dry-run",
    ),
    "narrate": (
        "afterwords narrate book.epub --voice me",
        "afterwords narrate book.md --voice me --cast cast.toml -o book.m4b --srt book.srt",
        "afterwords narrate book.epub --dry-run",
    ),
    "lexicon": (
        "afterwords lexicon add nginx --alias 'engine x' --voice me",
        "afterwords lexicon import words.pls --voice me",
    ),
    "verify": ("afterwords verify hello.mp3",),
    "demo": ("afterwords demo",),
    "bench": ("afterwords bench me", "afterwords bench me --backend lite --json"),
    "serve": ("afterwords serve", "afterwords serve --host 0.0.0.0 --port 8000"),
    "wyoming": ("afterwords wyoming", "afterwords wyoming --uri tcp://0.0.0.0:10200"),
    "status": ("afterwords status", "afterwords status --url https://voice.example.com --json"),
    "backup": ("afterwords backup /backups/afterwords.tar",),
    "restore": ("afterwords restore /backups/afterwords.tar",),
    "worker": ("afterwords worker --server https://voices.example.com --token - < token.txt",),
    "login": ("afterwords login https://voices.example.com",),
    "push": ("afterwords push me",),
    "pull": ("afterwords pull me",),
    "sync": ("afterwords sync --dry-run",),
    "alias": ("afterwords alias alloy me", "afterwords alias", "afterwords alias alloy --remove"),
}


class RootGroup(HelpGroup):
    """A group that lists the commands of the table, and imports only the one to run."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, entry in COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _listed, rest = super().resolve_command(ctx, args)
        return name, name and load_command(name), rest


def load_command(name: str) -> Any:
    """Import a command or a group from its module, where it has the same name."""
    source = getattr(import_module(f"afterwords.cli.{COMMANDS[name].module}"), name.replace("-", "_"))
    parent = typer.Typer()
    if isinstance(source, typer.Typer):
        parent.add_typer(source, name=name, help=COMMANDS[name].help)
    else:
        parent.command(name, cls=HelpCommand, epilog=examples(*EXAMPLES.get(name, ())))(source)
    return get_group(parent).commands[name]


app = typer.Typer(
    name="afterwords",
    help="Clone your voice once, own it forever, use it anywhere.",
    cls=RootGroup,
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
        from afterwords.cli import output

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
        raise typer.Exit(2)  # wrong usage
    from afterwords.cli import output
    from afterwords.config import unknown_variables
    from afterwords.errors import UnknownSettingWarning

    warnings.simplefilter("ignore", UnknownSettingWarning)  # printed here, in one line each
    for sentence in unknown_variables(os.environ):
        output.note(f"[bold yellow]Warning:[/bold yellow] {output.shown(sentence)}")


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
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of the output has closed it
        code = 1
    except Exception as error:
        translated = _translate(error)
        if translated is None:
            raise
        from afterwords.cli import output

        code = translated.exit_code
        if os.environ.get("AFTERWORDS_DEBUG"):
            output.console().print_exception()
        output.note(f"[bold red]Error ({translated.code}):[/bold red] {output.shown(translated.message)}")
        if translated.hint:
            output.note(f"  [bold]Fix:[/bold] {output.shown(translated.hint)}")
    if code == INTERRUPTED:
        from afterwords.cli import output

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
    from afterwords.cli.output import UsageError
    from afterwords.errors import AfterwordsError

    if isinstance(error, AfterwordsError):
        return error
    if isinstance(error, _ClickUsageError):
        context: typer.Context | None = getattr(error, "ctx", None)
        see = f"see {context.command_path if context else 'afterwords'} --help."
        message = str(getattr(error, "format_message", error.__str__)()).strip()
        if message.startswith("Got unexpected extra argument"):  # click repeats them; they may be words of a text
            return UsageError("Too many arguments.", hint=f"put a text in quotes, and options before it; {see}")
        if message.startswith("No such option"):
            see = f"a text or name that begins with - goes last, after -- ; {see}"
        return UsageError(message if message.endswith((".", "?")) else f"{message}.", hint=see)
    if isinstance(error, typer.Abort):
        return UsageError("The input ended before the question was answered.", hint="answer it.")
    if os.environ.get("AFTERWORDS_DEBUG"):
        return None
    if isinstance(error, OSError) and error.strerror:
        hint = "check the free disk space and the permissions of your folders, then run it again."
        message = f"The operating system reported: {error.strerror.lower()}."
        return AfterwordsError(message, code="system_error", hint=hint)
    return AfterwordsError(
        f"Unexpected exception ({type(error).__name__}).",
        code="unexpected_error",
        hint="run it again as `afterwords --debug …` and report the traceback.",
    )
