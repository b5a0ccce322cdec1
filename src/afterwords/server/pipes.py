"""The pipes of a child process that exchanges messages with the server: worker and decoding processes."""

from __future__ import annotations

import os
from typing import BinaryIO


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout away from libraries: they read nothing, and their prints go to stderr.

    Returns:
        The pipe to read requests from, and the pipe to write answers to.
    """
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return source, sink
