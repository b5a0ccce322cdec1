"""The command line: one file a command, `app` joins them, `output` is how they talk.

A command reads its options, calls the studio or the library, and says what happened. stdout carries the result
alone; all else goes to stderr. Nothing heavier than typer and rich loads before a command needs it.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; exits with the code of what happened."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the commands load, Ctrl-C ends it without a traceback
    from afterwords.cli.app import run

    run()
