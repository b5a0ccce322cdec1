"""The code of a worker process: messages on standard input, messages on standard output, nothing else.

The server starts it as `python -m afterwords.server.dispatch.worker_main`; it ends when its input does, however busy it
is. An engine may crash, hang or run out of memory here without harm to the server.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

from afterwords.backends.base import ResumableEngine
from afterwords.backends.memory import peak_bytes
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import Message
from afterwords.server.dispatch.worker import Work, Worker, clip, describe_error
from afterwords.server.pipes import end_with_server, take_pipes


def main() -> None:
    """Serve until the server is gone."""
    end_with_server()
    source, sink = take_pipes()
    MessageServer(sink).serve(source)
    os._exit(0)  # at once: a busy engine would delay an orderly exit


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
            elif message.kind == "forget":
                self._start_thread(lambda _: self._worker.forget_voices(), None)
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
            self._send("loading", backend=backend, fraction=clip(fraction), step=step)

        try:
            engine = self._worker.engine(backend)
            engine.load(backend, progress)
        except Exception as error:  # noqa: BLE001 - engines fail in any way; the server decides what follows
            self._send("load-failed", backend=backend, **describe_error(error))
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
        send = partial(self._send, number=number)
        facts = self._worker.speak(Work.from_message(message), self._cancelled[number], send)
        del self._cancelled[number]
        is_outdated = any(  # an engine may have loaded other weights since it reported its version
            self._worker.engine(backend).prompt_version != version
            for backend, version in [*self._prompt_versions.items()]
        )
        self._send("ended", number=number, peak=peak_bytes(), is_outdated=is_outdated, **facts)


if __name__ == "__main__":
    main()
