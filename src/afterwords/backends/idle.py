"""Giving memory back: an engine that nobody has used for a while is closed, and loads anew when it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Idle:
    """Closes something once nobody has been busy with it for some time.

    Args:
        close: gives the memory back.
        after_s: seconds until then; 0 keeps it for ever.
    """

    def __init__(self, close: Callable[[], None], *, after_s: float) -> None:
        self._close, self._after_s = close, after_s
        self._lock = threading.RLock()  # a generator that is collected may leave in the middle of another one's entry
        self._n_busy = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """It is in use as long as this is entered. Waits while it is being closed."""
        with self._lock:
            self._n_busy += 1
            if self._timer is not None:
                self._timer.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._n_busy -= 1
                if not self._n_busy and self._after_s:
                    self._timer = threading.Timer(self._after_s, self._close_if_idle)
                    self._timer.daemon = True
                    self._timer.start()

    def _close_if_idle(self) -> None:
        with self._lock:
            if not self._n_busy:
                self._close()
