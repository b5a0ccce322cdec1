"""The real server as a part of a test run: in a thread, on a free loopback port, with a tone for a voice.

Apart from the fixtures, which pytest loads in every run: this needs the extra `server`. Rows lie in SQLite and audio
in a folder, as with `afterwords serve`; speech is made in a process of its own, which ends with the server.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from afterwords.errors import MissingExtraError

if TYPE_CHECKING:
    import uvicorn

DEADLINE_S: Final = 60.0
"""For starting and for stopping; either takes about a second."""
LOOK_INTERVAL_S: Final = 0.02
STALL_S: Final = 1.0
"""After such a silence a speaking process is replaced, three times for a job: soon enough to test with `fault-hang`."""
DRAIN_S: Final = 1.0
"""Tests that are over wait for no job."""


class RunningServer:
    """A server for tests; use it as a context manager, or call `start` and `stop`.

    No setting of the developer's reaches it, and no environment variable of its own stays behind.

    Attributes:
        url: where it listens, once it is started.
        admin_secret: opens the admin routes.
        api_key: a key with an account of its own, made when it started.
    """

    def __init__(self, home: Path) -> None:
        """Make a server that keeps everything in an empty folder.

        Raises:
            MissingExtraError: the extra `server` is not installed.
        """
        if any(find_spec(name) is None for name in ("fastapi", "sqlalchemy", "pydantic_settings", "uvicorn")):
            raise MissingExtraError.for_extra("server", purpose="A server for tests")
        self.admin_secret = secrets.token_urlsafe(32)
        self.api_key = ""
        self._home = home
        self._socket = socket.create_server(("127.0.0.1", 0))  # first: links in answers name the port
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until it can speak.

        Raises:
            RuntimeError: it ended at once; the log of `uvicorn.error` says why.
            TimeoutError: it could not speak within 60 s.
        """
        try:
            with _own_environment(self._home):  # it is read while the server starts, and not again
                server = self._serve()
                self._wait_until(lambda: server.started, what="did not start")
            self._wait_until(lambda: self._ask("GET", "/readyz")[0] == 200, what="was not ready to speak")
            self.api_key = self.new_key()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop it; what it was speaking is given up after a second.

        Raises:
            TimeoutError: it did not end within 60 s.
        """
        self._socket.close()
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the server for tests did not end within {DEADLINE_S:g} s")

    def new_key(self, **fields: Any) -> str:
        """Make a key with an account of its own.

        Args:
            fields: of POST /v1/keys: `label`, `scopes`, `character_limit`.
        """
        status, answer = self._ask("POST", "/v1/keys", fields)
        if status != 201:
            raise ValueError(f"no key was made: {answer}")
        return str(answer["api_key"])

    def _serve(self) -> uvicorn.Server:
        import uvicorn

        from afterwords.server import create_app, load_settings

        settings = load_settings(
            home=self._home,
            port=self._socket.getsockname()[1],
            admin_secret=self.admin_secret,
            backends="tone",
            auth_failure_limit=0,  # a test may try any number of wrong keys
            stall_s=STALL_S,
            drain_s=DRAIN_S,
        )
        config = uvicorn.Config(
            create_app(settings), lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=round(DRAIN_S)
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(self._server,), name="afterwords-server", daemon=True)
        self._thread.start()
        return self._server

    def _run(self, server: uvicorn.Server) -> None:
        with suppress(SystemExit):  # so it ends where it can't start; its log says why
            server.run([self._socket])

    def _wait_until(self, look: Callable[[], bool], *, what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not look():
            if self._thread is None or not self._thread.is_alive():
                raise RuntimeError("the server for tests ended at once; the log of uvicorn.error says why")
            if time.monotonic() > end:
                raise TimeoutError(f"the server for tests {what} within {DEADLINE_S:g} s")
            time.sleep(LOOK_INTERVAL_S)

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON of an answer; as the admin, and past every proxy that may be set."""
        headers = {"Authorization": f"Bearer {self.admin_secret}", "Content-Type": "application/json"}
        with closing(HTTPConnection(self.url.removeprefix("http://"), timeout=DEADLINE_S)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@contextmanager
def _own_environment(home: Path) -> Iterator[None]:
    """Without what the developer set for afterwords, and with what makes the fault words of the tone work."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("AFTERWORDS_")]:
            patch.delenv(name)
        patch.setenv("AFTERWORDS_HOME", str(home))
        patch.setenv("AFTERWORDS_TESTING", "1")
        yield
