"""The process that speaks: frames on its standard input, frames on its standard output, nothing else.

The server starts it as `python -m afterwords.server.dispatch.worker_main` and decides over its life: it ends when its
input does, however busy it is. An engine may crash, hang or run out of memory here, and takes nobody along.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from afterwords.backends.base import InvalidPromptError, ResumableEngine
from afterwords.backends.memory import peak_bytes
from afterwords.errors import AfterwordsError
from afterwords.pipes import take_pipes
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import INVALID_PROMPT, Frame
from afterwords.server.dispatch.worker import Utterance, Work, Worker, is_out_of_memory

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Speak until the server is gone."""
    _leave_decisions_to_the_server()
    source, sink = take_pipes()
    Speaker(sink).serve(source)
    os._exit(0)  # at once: an engine at work would hold up an orderly end


def _leave_decisions_to_the_server() -> None:
    """Outlive what is sent to the whole group or service, be the first that the kernel kills for memory, and die
    with the server even where an engine holds the interpreter."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    logging.lastResort = None  # a library's warning may quote a text
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):  # a sandbox may have neither
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


class UtteranceCancelledError(Exception):
    """Raised through an engine's `prepare` when nobody wants the result any more."""


class Speaker:
    """Does what frames ask for, each in a thread of its own, and answers with frames."""

    def __init__(self, sink: BinaryIO) -> None:
        self._worker = Worker()
        self._sink = sink
        self._lock = threading.Lock()
        self._cancelled: dict[int, threading.Event] = {}
        self._told: dict[str, str] = {}  # prompt versions, by backend

    def serve(self, source: BinaryIO) -> None:
        """Take frames until there are no more."""
        while (frame := messages.read(source)) is not None:
            if frame.kind == "load":
                self._in_thread(self._load, frame.facts["backend"])
            elif frame.kind == "speak":
                self._cancelled[frame.facts["number"]] = threading.Event()
                self._in_thread(self._speak, frame)
            elif frame.kind == "cancel" and (cancelled := self._cancelled.get(frame.facts["number"])):
                cancelled.set()

    def _in_thread(self, work: Callable[[Any], None], argument: Any) -> None:
        threading.Thread(target=work, args=(argument,), daemon=True).start()

    def _send(self, kind: str, body: bytes = b"", **facts: Any) -> None:
        with self._lock:
            self._sink.write(messages.pack(kind, body, **facts))
            self._sink.flush()

    def _load(self, backend: str) -> None:
        def progress(fraction: float, step: str) -> None:
            self._send("loading", backend=backend, fraction=_within_one(fraction), step=step)

        try:
            engine = self._worker.load(backend, progress)
        except Exception as error:  # noqa: BLE001 - engines fail in any way; the server decides what follows
            self._send("load-failed", backend=backend, **_reason(error))
            return
        self._told[backend] = engine.prompt_version
        self._send(
            "loaded",
            backend=backend,
            engine=engine.backends[0],
            max_concurrent=engine.max_concurrent,
            prepares_alongside=isinstance(engine, ResumableEngine),
            prompt_version=engine.prompt_version,
            peak=peak_bytes(),
        )

    def _speak(self, frame: Frame) -> None:
        number: int = frame.facts["number"]
        cancelled = self._cancelled[number]

        def progress(fraction: float, step: str) -> None:
            if cancelled.is_set():
                raise UtteranceCancelledError
            self._send("preparing", number=number, fraction=_within_one(fraction), step=step)

        def save(checkpoint: bytes) -> None:
            self._send("checkpoint", checkpoint, number=number)

        try:
            ending = self._utter(number, self._worker.begin(_work(frame), progress, save), cancelled)
        except UtteranceCancelledError:
            ending = {}
        except Exception as error:  # noqa: BLE001 - as above
            ending = _reason(error)
        del self._cancelled[number]
        self._send("ended", number=number, peak=peak_bytes(), is_outdated=self._is_outdated(), **ending)

    def _is_outdated(self) -> bool:
        """Whether an engine has loaded other weights since it said for which prompts it has some."""
        return any(self._worker.engine(backend).prompt_version != version for backend, version in [*self._told.items()])

    def _utter(self, number: int, utterance: Utterance, cancelled: threading.Event) -> dict[str, Any]:
        """Send prompt and sound; returns what is to be told of the end."""
        self._send("speaking", utterance.new_prompt or b"", number=number, is_new=utterance.new_prompt is not None)
        try:
            for pcm in utterance:
                if cancelled.is_set():
                    return {}
                self._send("sound", pcm, number=number, sample_rate=utterance.sample_rate)
        finally:
            utterance.close()
        assert utterance.result is not None
        return {"synth_ms": utterance.result.synth_ms}


def _within_one(fraction: float) -> float:
    return min(1.0, max(0.0, float(fraction)))  # 0 for what is no number


def _work(frame: Frame) -> Work:
    parts: dict[str, Any] = {}
    place = 0
    for name, n_bytes in frame.facts["parts"].items():
        parts[name] = frame.body[place : place + n_bytes]
        place += n_bytes
    return Work(**frame.facts["work"], **parts)


def _reason(error: Exception) -> dict[str, Any]:
    """What may be told of an error: its code and its kind; its words only where afterwords wrote them."""
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
