"""The two pipes of a process that is spoken with by lines or frames, kept from libraries that read and print.

The speaking processes of a server and the measuring ones of `bench` begin with it.
"""

from __future__ import annotations

import os
from typing import BinaryIO


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take both pipes away from where libraries read and print: input is empty for them, and prints go to stderr.

    Returns:
        What comes in, and where answers go.
    """
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return source, sink
