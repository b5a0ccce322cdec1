"""A measurement as its caller sees it: a process is started, watched until its deadline, and gone in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from afterwords.backends.base import Progress, ignore_progress
from afterwords.bench.report import LOOK, Failure, Order, Row, Told
from afterwords.errors import AfterwordsError, SynthesisError

COMMAND: Final = (sys.executable, "-P", "-m", "afterwords.bench.child")  # -P: no module of the folder it is in
TIMEOUT_S: Final = 600.0
"""How long one may take in all, unless something else is said: on a CPU, large models take minutes."""
TIMEOUT_MAX_S: Final = 86_400.0
_GRACE_S: Final = 5.0


def measure(order: Order, *, timeout_s: float = TIMEOUT_S, progress: Progress = ignore_progress) -> Row:
    """Measure in a process of its own. What goes wrong there is told in the row; the process is gone either way.

    Args:
        order: what to say, and who shall.
        timeout_s: for all of it: loading, preparing the voice, and speaking.
        progress: told how far it is.

    Raises:
        OSError: the system starts no more processes.
    """
    ends = time.monotonic() + timeout_s
    try:
        end = _run(order, ends, progress)
        if end.prepare_s is not None:
            end = _run(order.model_copy(update={"prepare_s": end.prepare_s}), ends, progress)
    except TimeoutError:
        end = Told(
            failure=Failure.of(
                SynthesisError(f"Measuring {order.name} took longer than {timeout_s:g} s.", code="measurement_timeout")
            )
        )
    backend = end.figures.backend if end.figures else order.backend
    return Row(backend=backend, server=order.server, figures=end.figures, failure=end.failure)


def _run(order: Order, ends: float, progress: Progress) -> Told:
    """Run one process to its last word.

    Raises:
        TimeoutError: it was not done at the deadline, a time of `time.monotonic`.
    """
    is_late = threading.Event()
    with _process() as process:

        def give_up() -> None:
            is_late.set()
            _kill(process)

        clock = threading.Timer(max(0.0, ends - time.monotonic()), give_up)
        clock.daemon = True
        clock.start()
        try:
            end = _followed(process, order, progress)
        finally:
            clock.cancel()
        if end is None and is_late.is_set():
            raise TimeoutError
        return end or Told(failure=Failure.of(_lost(process, order)))


@contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """Start it. What it prints is dropped, unless somebody looks for a fault: a library may print what it speaks."""
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("AFTERWORDS_DEBUG") else subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the caller, and what the process starts can be killed with it
    )
    try:
        yield process
    finally:
        _kill(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # an order that was never read
                    pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it, with all that it started; it is not waited for before, so its number can't be another's."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)


def _followed(process: subprocess.Popen[bytes], order: Order, progress: Progress) -> Told | None:
    """Order, and hear how far it is until the last line; None where that never came."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(order.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    for line in process.stdout:
        told = Told.model_validate_json(line)
        if told.fraction is None:
            return told
        progress(told.fraction, told.step)
    return None


def _lost(process: subprocess.Popen[bytes], order: Order) -> AfterwordsError:
    """Why it ended without a word."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    status = process.returncode
    why = "its process died"
    if status is not None and status < 0:
        why = f"its process was killed by {_signal_name(-status)}"
    error = SynthesisError.for_backend(order.name, why=why)
    error.hint = LOOK
    return error


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
