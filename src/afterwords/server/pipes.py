"""How a child process of the server begins: its pipes, and its dependence on the server."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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


def end_with_server() -> None:
    """Let only the server end this process: not a terminal or a service manager, and not later than the server."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # sent to the whole group or service: the server decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    logging.lastResort = None  # a library's warning may quote a text
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):  # a sandbox may have neither
            # Die with the server even while an engine holds the interpreter, and be killed for memory before it.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
