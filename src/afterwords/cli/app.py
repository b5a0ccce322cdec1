"""The program `afterwords`: joins the commands and turns what they raise into an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from afterwords.cli import backends, clone, demo, doctor, say, verify, voices
from afterwords.errors import AfterwordsError

app = typer.Typer(
    name="afterwords",
    help="Clone your voice once, own it forever, use it anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from afterwords import __version__
        from afterwords.cli.output import result

        result(f"afterwords {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["AFTERWORDS_DEBUG"] = "1"


app.command("clone")(clone.clone)
app.command("say")(say.say)
app.add_typer(voices.app, name="voices")
app.command("doctor")(doctor.doctor)
app.command("verify")(verify.verify)
app.command("backends")(backends.backends)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line; exits with the code of what happened."""
    try:
        app()
    except AfterwordsError as error:
        _fail(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain once more at exit, so stdout goes nowhere now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("AFTERWORDS_DEBUG"):
            raise
        _fail(
            AfterwordsError(
                f"Something went wrong that afterwords did not foresee ({type(error).__name__}).",
                hint="run it again as `afterwords --debug …` and report what it shows.",
            )
        )
        sys.exit(1)


def _fail(error: AfterwordsError) -> None:
    from afterwords.cli.output import console, shown

    if os.environ.get("AFTERWORDS_DEBUG"):
        console().print_exception()
    name = type(error).__name__
    console().print(f"[bold red]{name}[/bold red]: {shown(error.message)}")
    if error.hint:
        console().print(f"  [bold]Fix:[/bold] {shown(error.hint)}")
