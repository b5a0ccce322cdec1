"""`afterwords wyoming`: serve the voices of this machine to Home Assistant."""

from __future__ import annotations

from importlib.util import find_spec
from signal import SIGINT
from typing import Annotated

import typer

from afterwords.cli import output


def wyoming(
    uri: Annotated[
        str, typer.Option(help="Where to listen: tcp://HOST:PORT. Port 0 picks a free one.")
    ] = "tcp://127.0.0.1:10200",
) -> None:
    """Serve the voices of this machine to Home Assistant. Ctrl-C stops it.

    The protocol has no keys: anyone who can reach the address can speak with every voice. See docs/home-assistant.md.
    """
    if find_spec("wyoming") is None:
        from afterwords.errors import MissingExtraError

        raise MissingExtraError.for_extra("wyoming", purpose="Serving Home Assistant")
    from afterwords import local
    from afterwords.client.profiles import Access
    from afterwords.server.wyoming import serve

    if uri.startswith("tcp:") and not Access(uri).is_loopback:
        output.note(
            "[bold yellow]Warning:[/bold yellow] the protocol has no keys: anyone who can reach this address can speak "
            "with all voices of this machine."
        )

    def show_address(actual: str) -> None:
        output.result(actual)  # a parent process may wait for this line
        n_voices = len(local.voices())
        hint = "" if n_voices else ". Clone one: afterwords clone"
        output.note(f"{n_voices} voice{'' if n_voices == 1 else 's'}{hint}. Ctrl-C stops it.")

    with output.without_text_warnings():
        if voices := local.voices():
            with output.progress_bar() as progress:  # load the engine before the first request
                local.say("1", voice=local.default_voice() or voices[0], progress=progress)
        raise typer.Exit(130 if serve(uri, on_listening=show_address) == SIGINT else 0)
