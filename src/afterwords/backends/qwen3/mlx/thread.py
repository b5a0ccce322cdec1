"""The one thread of this process that runs MLX, shared by all models, since Metal is not safe under concurrency."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

import mlx.core as mx

T = TypeVar("T")


class DeviceThreadGoneError(RuntimeError):
    """The interpreter is shutting down, and MLX runs no more."""


class DeviceThread:
    """Runs calls one after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_ending = False
        # A daemon, ended by `atexit`: MLX crashes the process if a thread that used it ends with its streams.
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def run(self, call: Callable[[], T]) -> T:
        """Run a call on the thread and return its result, or raise its exception.

        Raises:
            DeviceThreadGoneError: The interpreter is shutting down.
        """
        if threading.current_thread() is self._thread:
            return call()
        future: Future[T] = Future()

        def complete() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised in the calling thread
                future.set_exception(error)

        self.later(complete)
        return future.result()

    def later(self, call: Callable[[], None]) -> None:
        """Queue a call, which must not raise.

        Raises:
            DeviceThreadGoneError: The interpreter is shutting down.
        """
        with self._lock:
            if self._is_ending:
                raise DeviceThreadGoneError
            self._calls.put(call)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
        mx.clear_streams()

    def _end(self) -> None:
        with self._lock:
            self._is_ending = True
            self._calls.put(None)
        self._thread.join()


_creation = threading.Lock()
_create = cache(DeviceThread)


def device_thread() -> DeviceThread:
    """Return the device thread of this process, starting it at the first call."""
    with _creation:  # a cache alone would let two threads create one each
        return _create()
