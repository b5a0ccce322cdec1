"""The code of a worker process: messages on standard input, messages on standard output, nothing else.

The server starts it as `python -m afterwords.server.dispatch.worker_main`; it ends when its input does, however busy it
is. An engine may crash, hang or run out of memory here without harm to the server.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

from afterwords.backends.base import InvalidPromptError, ResumableEngine
from afterwords.backends.memory import peak_bytes
from afterwords.errors import AfterwordsError
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import INVALID_PROMPT, Message
from afterwords.server.dispatch.worker import Work, Worker, is_out_of_memory
from afterwords.server.pipes import take_pipes

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve until the server is gone."""
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
    source, sink = take_pipes()
    MessageServer(sink).serve(source)
    os._exit(0)  # at once: a busy engine would delay an orderly exit


class UtteranceCancelledError(Exception):
    """Raised through an engine's `prepare` to cancel it."""


class MessageServer:
    """Handle each message in a thread, and answer with messages."""

    def __init__(self, sink: BinaryIO) -> None:
        self._worker = Worker()
        self._sink = sink
        self._lock = threading.Lock()
        self._cancelled: dict[int, threading.Event] = {}
        self._prompt_versions: dict[str, str] = {}  # as reported, by backend

    def serve(self, source: BinaryIO) -> None:
        """Handle messages until there are no more."""
        while (message := messages.read(source)) is not None:
            if message.kind == "load":
                self._start_thread(self._load, message.facts["backend"])
            elif message.kind == "speak":
                self._cancelled[message.facts["number"]] = threading.Event()
                self._start_thread(self._speak, message)
            elif message.kind == "cancel" and (cancelled := self._cancelled.get(message.facts["number"])):
                cancelled.set()

    def _start_thread(self, target: Callable[[Any], None], argument: Any) -> None:
        threading.Thread(target=target, args=(argument,), daemon=True).start()

    def _send(self, kind: str, body: bytes = b"", **facts: Any) -> None:
        with self._lock:
            self._sink.write(messages.pack(kind, body, **facts))
            self._sink.flush()

    def _load(self, backend: str) -> None:
        def progress(fraction: float, step: str) -> None:
            self._send("loading", backend=backend, fraction=_clip(fraction), step=step)

        try:
            engine = self._worker.engine(backend)
            engine.load(backend, progress)
        except Exception as error:  # noqa: BLE001 - engines fail in any way; the server decides what follows
            self._send("load-failed", backend=backend, **_describe(error))
            return
        self._prompt_versions[backend] = engine.prompt_version
        self._send(
            "loaded",
            backend=backend,
            engine=engine.backends[0],
            max_concurrent=engine.max_concurrent,
            prepares_alongside=isinstance(engine, ResumableEngine),
            prompt_version=engine.prompt_version,
            peak=peak_bytes(),
        )

    def _speak(self, message: Message) -> None:
        number: int = message.facts["number"]
        cancelled = self._cancelled[number]

        def progress(fraction: float, step: str) -> None:
            if cancelled.is_set():
                raise UtteranceCancelledError
            self._send("preparing", number=number, fraction=_clip(fraction), step=step)

        def save(checkpoint: bytes) -> None:
            self._send("checkpoint", checkpoint, number=number)

        parts: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        start = 0
        for name, n_bytes in message.facts["parts"].items():
            parts[name] = message.body[start : start + n_bytes]
            start += n_bytes
        try:
            with closing(self._worker.start(Work(**message.facts["work"], **parts), progress, save)) as stream:
                self._send("speaking", stream.new_prompt or b"", number=number, is_new=stream.new_prompt is not None)
                for pcm in stream:
                    if cancelled.is_set():
                        break
                    self._send("audio", pcm, number=number, sample_rate=stream.sample_rate)
            if stream.result is not None:  # it was not cancelled
                facts = {"synth_ms": stream.result.synth_ms}
        except UtteranceCancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - as above
            facts = _describe(error)
        del self._cancelled[number]
        is_outdated = any(  # an engine may have loaded other weights since it reported its version
            self._worker.engine(backend).prompt_version != version
            for backend, version in [*self._prompt_versions.items()]
        )
        self._send("ended", number=number, peak=peak_bytes(), is_outdated=is_outdated, **facts)


def _clip(fraction: float) -> float:
    return min(1.0, max(0.0, float(fraction)))  # NaN becomes 0


def _describe(error: Exception) -> dict[str, Any]:
    """Return the code and class of an error, and its message only if afterwords wrote it: others may quote the text."""
    code, words = (error.code, str(error)) if isinstance(error, AfterwordsError) else ("synthesis_failed", "")
    if isinstance(error.__cause__ or error, InvalidPromptError):
        code = INVALID_PROMPT
    return {
        "error": code,
        "words": words,
        "error_kind": type(error.__cause__ or error).__name__,
        "is_out_of_memory": is_out_of_memory(error),
    }


if __name__ == "__main__":
    main()
