"""Choose what to measure, and run each measurement in its own process, with a deadline. `cli.bench` calls it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Final, Protocol

from afterwords.backends import registry
from afterwords.backends.base import Progress, ignore_progress
from afterwords.backends.registry import Backend
from afterwords.errors import AfterwordsError, SynthesisError

N_RUNS: Final = 3
"""Utterances that are measured, after one to warm up."""
TIMEOUT_S: Final = 600.0
"""Default for one backend: on a CPU, large models take minutes."""
TIMEOUT_MAX_S: Final = 86_400.0
DEBUG_HINT: Final = "afterwords --debug bench shows what its process printed."
_EXIT_GRACE_S: Final = 5.0
_MEASURED_SHARE: Final = 0.4
"""Share of the progress bar before the backend is measured: its voice is prepared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """The figures of one backend, or its error. Times are medians; None means not measured.

    Attributes:
        backend: The backend that spoke; None if a server did not say.
        server: Address of the server that spoke; None for this machine.
        first_audio_ms: Time to the first audio, in ms.
        real_time_factor: Seconds of work for a second of audio; below 1 is faster than speech.
        audio_s: Duration of the audio, in seconds.
        similarity: Cosine of the speaker embeddings of speech and reference.
        similarity_by: The speaker encoder.
        similarity_note: Why the similarity is missing, or how far to trust it.
        memory_mib: Peak resident memory of the process, in MiB.
        device_memory_mib: Peak memory held on a GPU, in MiB.
        load_s: Time to load the weights, in seconds.
        prepare_s: Time to prepare the voice, in seconds; 0 if it was prepared before.
        error: Code of the error.
        reason: Message of the error.
        fix: Hint of the error.
        exit_code: Exit code for the error.
    """

    backend: str | None = None
    server: str | None = None
    first_audio_ms: float | None = None
    real_time_factor: float | None = None
    audio_s: float | None = None
    similarity: float | None = None
    similarity_by: str | None = None
    similarity_note: str | None = None
    memory_mib: float | None = None
    device_memory_mib: float | None = None
    load_s: float | None = None
    prepare_s: float | None = None
    error: str | None = None
    reason: str | None = None
    fix: str | None = None
    exit_code: int | None = None


class _Task(Protocol):
    """A function of `speaking` with its arguments."""

    def __call__(self, *, progress: Progress) -> BenchResult: ...


def choose_backends(
    names: Sequence[str] = (), *, lang: str, skips_slow: bool = False
) -> tuple[list[Backend], dict[str, str]]:
    """Choose the backends to measure.

    Args:
        names: Backends to measure; none: all that can run here and speak the language.
        skips_slow: Skip backends that are slower than speech here.

    Returns:
        The backends, best first; and the names of the skipped ones with the reason for each.

    Raises:
        InvalidInputError, BackendUnavailableError, UnsupportedLangError: A named backend can't be measured.
    """
    chosen, skipped = [], {}
    for backend in [registry.choose(name, lang=lang) for name in dict.fromkeys(names)] or registry.backends():
        if not backend.is_available:
            skipped[backend.name] = "can't run here (`afterwords backends` says why)"
        elif lang not in backend.languages:
            skipped[backend.name] = f"does not speak {lang}"
        elif skips_slow and backend.is_slow:
            skipped[backend.name] = "is slow here"
        else:
            chosen.append(backend)
    return chosen, skipped


def measure_backend(
    text: str,
    *,
    voice_id: str,
    lang: str,
    backend: str,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = ignore_progress,
) -> BenchResult:
    """Measure a backend of this machine with a voice of its library. A failure becomes part of the measurement.

    Raises:
        OSError: The system can't start another process.
    """
    from afterwords.bench import speaking

    deadline = time.monotonic() + timeout_s
    row = BenchResult(backend=backend)
    prepare = partial(speaking.prepare_voice, voice_id=voice_id, lang=lang, backend=backend)
    speak = partial(speaking.speak_here, text, voice_id=voice_id, lang=lang, backend=backend)
    try:
        # A process that prepared a voice is not measured: preparing may take more memory than speaking.
        prepared = _run(prepare, row, deadline, lambda done, step: progress(_MEASURED_SHARE * done, step))
        if prepared.error:
            return prepared
        speak = partial(speak, prepare_s=prepared.prepare_s)
        return _run(
            speak, row, deadline, lambda done, step: progress(_MEASURED_SHARE + (1 - _MEASURED_SHARE) * done, step)
        )
    except TimeoutError:
        return _with_error(row, _timeout_error(backend, timeout_s))


def measure_server(
    text: str,
    *,
    voice_id: str,
    lang: str,
    server: str,
    profile: str | None,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = ignore_progress,
) -> BenchResult:
    """Measure a server with the voice that was pushed to it. A failure becomes part of the measurement.

    Raises:
        OSError: The system can't start another process.
    """
    from afterwords.bench import speaking

    row = BenchResult(server=server)
    speak = partial(speaking.speak_on_server, text, voice_id=voice_id, lang=lang, profile=profile)
    try:
        return _run(speak, row, time.monotonic() + timeout_s, progress)
    except TimeoutError:
        return _with_error(row, _timeout_error(server, timeout_s))


def _timeout_error(name: str, timeout_s: float) -> SynthesisError:
    return SynthesisError(f"Measuring {name} took longer than {timeout_s:g} s.", code="measurement_timeout")


def _with_error(row: BenchResult, error: AfterwordsError) -> BenchResult:
    return replace(row, error=error.code, reason=error.message, fix=error.hint, exit_code=error.exit_code)


def _run(task: _Task, row: BenchResult, deadline: float, progress: Progress) -> BenchResult:
    """Run a task in a new process, which is gone at the end.

    Raises:
        TimeoutError: It was not done at the deadline, a time of `time.monotonic`.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run_in_child, args=(writer, task, row))
    with reader:
        with writer:
            if sys.platform == "win32":
                process.start()
            else:  # the process never gets SIGINT: Ctrl-C is for the caller, which then kills it
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            while reader.poll(max(0.0, deadline - time.monotonic())):
                received = reader.recv()
                if isinstance(received, BenchResult):
                    return received
                progress(*received)
            raise TimeoutError
        except EOFError:
            process.join(_EXIT_GRACE_S)
            why, status = "its process died", process.exitcode or 0
            if status < 0:
                names = {number.value: number.name for number in signal.Signals}
                why = f"its process was killed by {names.get(-status, f'signal {-status}')}"
            error = SynthesisError.for_backend(row.backend or row.server or "", why=why)
            error.hint = DEBUG_HINT
            return _with_error(row, error)
        finally:
            if process.pid is not None and process.exitcode is None and sys.platform != "win32":
                with suppress(ProcessLookupError, PermissionError):  # it leads its group once it runs
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            process.close()


# -- in the child ---------------------------------------------------------------------------------------------


def _run_in_child(writer: Connection, task: _Task, row: BenchResult) -> None:
    """Run a task; send its progress, then its measurement. The process ends with its parent."""
    is_debugging = bool(os.environ.get("AFTERWORDS_DEBUG"))
    if sys.platform != "win32":
        os.setsid()  # so that the caller can kill all that an engine starts
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if is_debugging else nothing, 1)  # a library may print the text
    if not is_debugging:
        os.dup2(nothing, 2)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        result = task(progress=lambda fraction, step: writer.send((fraction, step)))
        result = replace(result, backend=row.backend or result.backend, server=row.server)
    except AfterwordsError as error:
        if isinstance(error, SynthesisError):
            error.hint = DEBUG_HINT  # its own hint is for `say`
        result = _with_error(row, error)
        if is_debugging:
            traceback.print_exception(error)
    except Exception as error:  # noqa: BLE001 - engines fail in any way, and their messages may hold the text
        failure = SynthesisError.for_backend(row.backend or row.server or "", why=f"it raised {type(error).__name__}")
        failure.hint, failure.__cause__ = DEBUG_HINT, error
        result = _with_error(row, failure)
        if is_debugging:
            traceback.print_exception(failure)
    writer.send(result)
    os._exit(0)  # at once: a busy engine would delay an orderly exit


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
