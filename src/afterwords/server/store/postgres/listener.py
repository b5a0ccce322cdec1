"""Messages between the servers that share a database: LISTEN in a thread, with a connection of its own.

A message is only a reason to look into the database: it may be lost, so that what waits for it also polls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg

from afterwords.server.store.postgres.connections import abort, is_pooled

log = logging.getLogger("afterwords.server")

CHANNEL: Final = "afterwords"
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0


class Listener:
    """A thread that receives messages until `stop`. It reconnects by itself."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], on_message: Callable[[str], None]) -> None:
        self._connect = connect
        self._on_message = on_message
        self._stopping = threading.Event()
        self._driver: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="afterwords-listen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. This call blocks."""
        self._stopping.set()
        if (driver := self._driver) is not None:
            abort(driver)
        self._thread.join()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.wait(0):
            try:
                with self._connect() as driver:
                    self._driver = driver
                    if is_pooled(driver):
                        log.info("servers do not wake each other: a pooler is in front of Postgres; they poll")
                        return
                    driver.execute(f"LISTEN {CHANNEL}", prepare=False)
                    pause_s = FIRST_PAUSE_S
                    while not self._stopping.is_set():
                        for message in driver.notifies(timeout=LONGEST_PAUSE_S):
                            self._on_message(message.payload)
            except psycopg.Error:
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            finally:
                self._driver = None
