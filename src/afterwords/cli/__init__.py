"""The command line: one file a command, `app` joins them, `output` is how they talk.

A command reads its options, calls the studio or the library, and says what happened. stdout carries the result
alone; all else goes to stderr. Nothing heavier than typer and rich loads before a command needs it.
"""
