"""Options and arguments that several commands share, and the shell completion of voice names."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from afterwords.cli import output

_SHELL_WORD: Final = re.compile(r"\w[\w.+-]*")  # every shell reads it as one plain word


def complete_voice(incomplete: str) -> list[str]:
    """Return names of voices for the shell; none if the library can't be read, since a shell can't show why.

    Completion scripts insert a suggestion unquoted, and a name can come from an untrusted file: a voice whose name has
    characters that a shell interprets is suggested by its id.
    """
    from afterwords.config import load_config
    from afterwords.errors import AfterwordsError
    from afterwords.library.library import Library

    try:
        voices = Library(load_config().home).list()
    except AfterwordsError:
        return []
    words = [(voice.name, voice.name if _SHELL_WORD.fullmatch(voice.name) else voice.voice_id) for voice in voices]
    return [word for name, word in words if name.startswith(incomplete) or word.startswith(incomplete)]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
VoiceName = Annotated[str, typer.Argument(help="Voice, by name or ID.", autocompletion=complete_voice)]
Remote = Annotated[bool, typer.Option("--remote", help="Use the server of the current login.")]
Profile = Annotated[
    str | None, typer.Option("--profile", "-p", help="Use the server of this login; see `afterwords profiles`.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait for a job. (default: 600)")]
OutFile = Annotated[str | None, typer.Option("--out", "-o", help="File to write; - writes to stdout.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a voice that has the same name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation.")]
Fast = Annotated[bool, typer.Option("--fast", help="Take less time; the voice resembles the speaker less.")]


def is_remote(remote: bool, profile: str | None) -> bool:
    """Return whether the command uses a server: naming a login implies --remote."""
    return remote or profile is not None


def check_label(label: str | None) -> None:
    """Raise InvalidOptionError if a label is longer than the server accepts."""
    from afterwords.errors import InvalidOptionError
    from afterwords.models import NAME_MAX_CHARS

    if label and len(label) > NAME_MAX_CHARS:
        raise InvalidOptionError.for_option(
            "--label", value=f"{label[:20]}…", allowed=f"at most {NAME_MAX_CHARS} characters"
        )


def check_group_options(
    context: typer.Context, *, remote: bool = False, profile: str | None = None, as_json: bool = False
) -> None:
    """Raise UsageError if --remote, --profile or --json precedes the subcommand, which would ignore it."""
    if is_remote(remote, profile) or as_json:
        option = f"--profile {profile}" if profile is not None else "--remote" if remote else "--json"
        raise output.UsageError(
            f"{option.split(maxsplit=1)[0]} must come after the subcommand.",
            hint=f"put it last: {context.command_path} {context.invoked_subcommand} … {option}.",
        )
