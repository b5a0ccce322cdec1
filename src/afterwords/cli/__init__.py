"""The command line: one file per command, joined in `app`; `output` prints, `options` has the shared options.

A command parses its options, calls `local`, the library or the client, and prints the result: to stdout the result
alone, to stderr everything else. Nothing heavier than typer and rich is loaded before a command needs it.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line, and exit with the code of its result."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback if Ctrl-C is pressed while the commands load
    from afterwords.cli.app import run

    run()
