"""Run `afterwords serve` as a real process on loopback, with clients that have its key."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from afterwords.audio.wav import canonical_wav, read_wav
from tests.forked import Program, start_afterwords

READER = Path(str(files("afterwords") / "data" / "reader.wav"))
RECORDING: Final = canonical_wav(read_wav(READER.read_bytes())[0][:88_000], 16_000)
"""Its first 5.5 s, which a server grades in a tenth of the time."""
ADMIN_SECRET = "an-admin-secret-for-tests-0123456789"
DEADLINE_S = 120.0

T = TypeVar("T")


def wait_until(look: Callable[[], T | None], *, deadline_s: float = DEADLINE_S, what: str = "it") -> T:
    """Poll until the result is truthy, and return it."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {deadline_s:g} s")


class Served:
    """A server process, which can be started again with the same home folder."""

    def __init__(
        self,
        home: Path,
        settings: Mapping[str, str] | None = None,
        *,
        before: Sequence[str | Path] = (),
        port: int = 0,
    ) -> None:
        self.home = home
        self.port = port  # 0: a free one at each start
        self.before = before  # a command to run the server under
        self.settings = dict(settings or {})
        self.log = home.parent / f"{home.name}.server.log"
        self.key = ""
        self.url = ""
        self.process: Program | None = None

    def start(self, **more: str) -> Served:
        """Start the server and wait until it responds."""
        env = {
            **os.environ,
            "AFTERWORDS_HOME": str(self.home),
            "AFTERWORDS_BACKENDS": "tone",
            "AFTERWORDS_TESTING": "1",
            "AFTERWORDS_ADMIN_SECRET": ADMIN_SECRET,
            "AFTERWORDS_AUTH_FAILURE_LIMIT": "0",
            "PYTHONUNBUFFERED": "1",
            **self.settings,
            **more,
        }
        self.process = start_afterwords(["serve", "--port", str(self.port)], env, self.log, before=self.before)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("aw_"):
                self.key = line.strip()
            elif line.startswith("http"):
                self.url = line.strip()
                return self
        raise AssertionError(f"it did not start ({self.process.wait(60)}):\n{self.log.read_text()}")

    def ready(self) -> Served:
        """Wait until the server is ready."""
        wait_until(lambda: httpx.get(f"{self.url}/readyz", verify=False).status_code == 200, what="readiness")
        return self

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Stop the server with a signal, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(sig)
        return self._ended()

    def kill(self) -> None:
        """Kill the server."""
        assert self.process is not None
        self.process.kill()
        self._ended()

    def died(self) -> int:
        """Wait for the server to exit, and return its exit code."""
        return self._ended()

    def _ended(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(40)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            if self.process.stdout:
                self.process.stdout.close()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """Return a client with a key, by default the first one."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key or self.key}", **headers},
            timeout=60,
            trust_env=False,
            verify=False,  # nothing uses TLS, and loading the authorities takes 20 ms
        )

    @property
    def admin(self) -> httpx.Client:
        return self.client(ADMIN_SECRET)

    def new_key(self, **body: Any) -> str:
        """Create a key with a new account."""
        with self.admin as admin:
            answer = admin.post("/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["api_key"])


@contextmanager
def serving(home: Path, settings: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Run a server that is ready, and stop it at the end."""
    served = Served(home, settings)
    try:
        yield served.start().ready()
    finally:
        if served.is_running:
            with suppress(Exception):
                served.stop()
        if served.is_running:
            served.kill()


def register(client: httpx.Client, *, name: str = "me", wav: bytes | None = None, **fields: str) -> str:
    """Register a voice and return its ID."""
    answer = client.post(
        "/v1/voices",
        data={"name": name, **fields},
        files={"ref_audio": ("me.wav", wav or RECORDING, "audio/wav")},
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["voice_id"])


def wait_until_prepared(client: httpx.Client, voice_id: str) -> None:
    """Wait for the preparation of a new voice."""
    wait_until(lambda: client.get(f"/v1/voices/{voice_id}").json()["status"] == "ready", what="the preparation")


def submit_text(client: httpx.Client, voice_id: str, text: str, **fields: Any) -> str:
    """Submit a text and return the job's ID."""
    answer = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def wait_for_job(client: httpx.Client, job_id: str, *, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """Return the job once it is final."""

    def look() -> dict[str, Any] | None:
        answer = client.get(f"/v1/jobs/{job_id}", params={"wait": 5})
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.json()["status"] != "pending" else None

    return wait_until(look, deadline_s=deadline_s, what="the end of the job")
