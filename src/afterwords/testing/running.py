"""The real server in a test run: in a thread, on a free loopback port, with a test tone as its engine.

It stores rows in SQLite and audio in a folder, as `afterwords serve` does; its worker process ends with it. Unlike
`plugin`, which pytest loads in every run, it needs the extra `server`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from afterwords.errors import MissingExtraError

if TYPE_CHECKING:
    import uvicorn

DEADLINE_S: Final = 60.0
"""For the start and for the stop, each of which takes about a second."""
POLL_INTERVAL_S: Final = 0.02
STALL_S: Final = 1.0
"""Silence after which a worker process is replaced, three times for a job: short, for tests with `fault-hang`."""
DRAIN_S: Final = 1.0
"""Short, since no test waits for a job any more."""


class RunningServer:
    """A server for tests; use it as a context manager, or call `start` and `stop`.

    It ignores the developer's settings, and leaves the environment as it was, except that it disables the
    telemetry of libraries.

    Attributes:
        url: Its address.
        admin_secret: Secret of the admin routes.
        api_key: A key with its own account, created by `start`.
        settings: Its settings, once it was started.
    """

    def __init__(self, home: Path, **settings: Any) -> None:
        """Create a server that stores everything in a folder.

        Args:
            home: The data folder.
            settings: Settings of the server, without the prefix and in lower case: `workers=0`.

        Raises:
            MissingExtraError: The extra `server` is not installed.
        """
        if any(find_spec(name) is None for name in ("fastapi", "sqlalchemy", "pydantic_settings", "uvicorn")):
            raise MissingExtraError.for_extra("server", purpose="A server for tests")
        self.admin_secret = secrets.token_urlsafe(32)
        self.api_key = ""
        self._home = home
        self._options = settings
        self._socket = socket.create_server(("127.0.0.1", 0))  # now, since links in responses contain the port
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until its engine is loaded.

        Raises:
            RuntimeError: It ended at once; the log of `uvicorn.error` says why.
            TimeoutError: Its engine was not loaded within 60 s.
        """
        import uvicorn

        from afterwords.server import create_app, load_settings

        try:
            with pytest.MonkeyPatch.context() as patch:  # the server reads the environment only when it starts
                for name in [name for name in os.environ if name.upper().startswith("AFTERWORDS_")]:
                    patch.delenv(name)
                patch.setenv("AFTERWORDS_HOME", str(self._home))
                patch.setenv("AFTERWORDS_TESTING", "1")  # enables the fault words of the tone
                settings = load_settings(
                    home=self._home,
                    port=self._socket.getsockname()[1],
                    admin_secret=self.admin_secret,
                    backends="tone",
                    auth_failure_limit=0,  # tests may use any number of wrong keys
                    stall_s=STALL_S,
                    **{"drain_s": DRAIN_S, **self._options},
                )
                self.settings = settings
                config = uvicorn.Config(
                    create_app(settings),
                    lifespan="on",
                    ws="none",
                    log_config=None,
                    timeout_graceful_shutdown=round(DRAIN_S),
                )
                self._server = server = uvicorn.Server(config)

                def run() -> None:
                    with suppress(SystemExit):  # uvicorn exits if it can't start; its log says why
                        server.run([self._socket])

                self._thread = threading.Thread(target=run, name="afterwords-server", daemon=True)
                self._thread.start()
                self._wait_until(lambda: server.started, what="did not start")
            self._wait_until(lambda: self._request("GET", "/readyz")[0] == 200, what="did not load its engine")
            self.api_key = self.new_key()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop it; running jobs have one second to finish.

        Raises:
            TimeoutError: It did not end within 60 s.
        """
        self._socket.close()
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the server for tests did not end within {DEADLINE_S:g} s")

    def new_key(self, **fields: Any) -> str:
        """Create a key with its own account.

        Args:
            fields: Of POST /v1/keys: `label`, `scopes`, `character_limit`.

        Raises:
            ValueError: The server refused the fields.
        """
        status, body = self._request("POST", "/v1/keys", fields)
        if status != 201:
            raise ValueError(f"no key was created: {body}")
        return str(body["api_key"])

    def _wait_until(self, predicate: Callable[[], bool], *, what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not predicate():
            if self._thread is None or not self._thread.is_alive():
                raise RuntimeError("the server for tests ended at once; the log of uvicorn.error says why")
            if time.monotonic() > end:
                raise TimeoutError(f"the server for tests {what} within {DEADLINE_S:g} s")
            time.sleep(POLL_INTERVAL_S)

    def _request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request as the admin, without a proxy; return the status and the JSON of the response."""
        headers = {"Authorization": f"Bearer {self.admin_secret}", "Content-Type": "application/json"}
        with closing(HTTPConnection(self.url.removeprefix("http://"), timeout=DEADLINE_S)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
