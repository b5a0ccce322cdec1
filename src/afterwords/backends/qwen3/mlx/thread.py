"""The one thread of this process that runs MLX: Metal is not safe under concurrency, so all models share it."""

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


class OwnerGoneError(RuntimeError):
    """The interpreter is going down, and nobody runs MLX any more."""


class Owner:
    """Runs what it is given, one after the other."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_ending = False
        # A daemon, ended by `atexit`: MLX takes the process down hard if a thread that used it ends with its streams.
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def run(self, work: Callable[[], T]) -> T:
        """Have work done, and wait for what comes of it; whatever it raises is raised here.

        Raises:
            OwnerGoneError: the interpreter is going down.
        """
        if threading.current_thread() is self._thread:
            return work()
        told: Future[T] = Future()

        def tell() -> None:
            try:
                told.set_result(work())
            except BaseException as error:  # noqa: BLE001 - of whoever asked, and raised there
                told.set_exception(error)

        self.later(tell)
        return told.result()

    def later(self, work: Callable[[], None]) -> None:
        """Have work done behind what is already asked for. It must not raise.

        Raises:
            OwnerGoneError: the interpreter is going down.
        """
        with self._lock:
            if self._is_ending:
                raise OwnerGoneError
            self._asked.put(work)

    def _run(self) -> None:
        while (work := self._asked.get()) is not None:
            work()
        mx.clear_streams()

    def _end(self) -> None:
        with self._lock:
            self._is_ending = True
            self._asked.put(None)
        self._thread.join()


_making = threading.Lock()


def owner() -> Owner:
    """The owner of this process."""
    with _making:  # a cache alone lets two threads make one each
        return _make()


@cache
def _make() -> Owner:
    return Owner()
