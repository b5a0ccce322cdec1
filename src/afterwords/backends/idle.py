"""Close an engine that has been idle for a while; it loads again on its next use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class IdleTimer:
    """Calls `close` after a time without use.

    Args:
        close: Releases the memory.
        after_s: Idle time in seconds; 0: never close.
    """

    def __init__(self, close: Callable[[], None], *, after_s: float) -> None:
        self._close, self._after_s = close, after_s
        self._lock = threading.RLock()  # reentrant: a garbage-collected generator may exit in any thread
        self._n_busy = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark as in use inside the block. Waits for a running close."""
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
