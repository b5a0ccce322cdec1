"""A stand-in for Modal's and RunPod's machines: a process with their HTTP edges, whose child is the container.

`python -m tests.clouds.standin hosted` prints its port. It has a trigger at /trigger, RunPod's API at /v2/voices, and
/control, with which a test makes it fail and sees what it received.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import psutil

KEY: Final = "rpa_a-key-of-runpod-for-tests"
MODAL_TOKEN: Final = "as-a-secret-of-modal-for-tests"
FORM: Final = {
    "job_id", "voice_id", "ref_audio_b64", "ref_text", "text", "lang", "backend_name", "cache_key", "callback_url",
    "callback_secret",
}  # fmt: skip


class Container:
    """The process that speaks; it is started again when it dies, and its calls have failed."""

    def __init__(self, kind: str) -> None:
        self.states: dict[str, str] = {}
        self._kind = kind
        self._lock = threading.Lock()
        self.process = self._start()

    def call(self, given: dict[str, Any]) -> str:
        """Start a call and return its ID."""
        call_id = str(uuid4())
        with self._lock:
            self.states[call_id] = "IN_PROGRESS"
            assert self.process.stdin is not None
            try:
                self.process.stdin.write(json.dumps({"id": call_id, "input": given}) + "\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                self.states[call_id] = "FAILED"
        return call_id

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.clouds.container", self._kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._follow, args=[process], daemon=True).start()
        return process

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            done = json.loads(line)
            self.states[done["id"]] = "FAILED" if done["error"] else "COMPLETED"
        process.wait()
        with self._lock:
            for call_id, state in self.states.items():
                if state == "IN_PROGRESS":
                    self.states[call_id] = "FAILED"
            self.process = self._start()


class Edge(ThreadingHTTPServer):
    """The HTTP edge.

    Attributes:
        answer: The status of every answer, with its headers; 0: it never answers. The API of Modal is busy.
        refused: The methods of Modal that were called meanwhile.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.container = Container(kind)
        self.answer: tuple[int, dict[str, str]] | None = None
        self.refused: list[str] = []
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.modal_url = ""
        if kind == "modal":
            from tests.clouds import modal_api

            self.modal_url = modal_api.serve(self)


class Handler(BaseHTTPRequestHandler):
    server: Edge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path == "/control":
            self.server.answer = (body["status"], body["headers"]) if body else None
            return self.respond(200, {})
        self.server.received.append((dict(self.headers), body))
        if self.server.answer is not None:
            status, headers = self.server.answer
            if not status:
                threading.Event().wait()
            return self.respond(status, {}, headers)
        if self.path == "/trigger":
            if not FORM <= body.keys() <= FORM | {"speed", "seed"}:
                return self.respond(422, {})
            self.server.container.call(body)
            return self.respond(200, {"status": "accepted"})
        return self.runpod(body)

    def do_GET(self) -> None:
        container = self.server.container
        if self.path == "/control":
            facts = {"received": self.server.received, "pid": container.process.pid, "states": container.states}
            return self.respond(200, {**facts, "modal_url": self.server.modal_url, "refused": self.server.refused})
        return self.runpod({})

    def runpod(self, body: dict[str, Any]) -> None:
        container = self.server.container
        what, _, call_id = self.path.removeprefix("/v2/voices/").partition("/")
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.respond(401, {})
        if what == "run":
            return self.respond(200, {"id": container.call(body["input"]), "status": "IN_QUEUE"})
        if call_id not in container.states:
            return self.respond(404, {})
        if what == "cancel" and container.states[call_id] == "IN_PROGRESS":
            container.states[call_id] = "CANCELLED"
        return self.respond(200, {"id": call_id, "status": container.states[call_id]})

    def respond(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class StandIn:
    """A running stand-in, for tests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def fail(self, status: int, **headers: str) -> None:
        """Answer everything with a status from now on; 0: never answer."""
        self._http.post("/control", json={"status": status, "headers": headers}).raise_for_status()

    def work(self) -> None:
        """Answer normally again."""
        self._http.post("/control", json={}).raise_for_status()

    def requests_for(self, job_id: str) -> list[dict[str, Any]]:
        """Return the bodies of the requests that concern a job, oldest first."""
        return [body for _, body in self.look()["received"] if body.get("input", body).get("job_id") == job_id]

    def look(self) -> dict[str, Any]:
        """Return what it received, and the process of the container."""
        return dict(self._http.get("/control").json())


@contextmanager
def running(kind: str, home: Path, environment: dict[str, str]) -> Iterator[StandIn]:
    """Run a stand-in as a process."""
    home.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.clouds.standin", kind],
        env={**environment, "AFTERWORDS_HOME": str(home), "AFTERWORDS_TESTING": "1", "AFTERWORDS_BACKENDS": "tone"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield StandIn(f"http://127.0.0.1:{process.stdout.readline().strip()}")
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.communicate()


if __name__ == "__main__":
    edge = Edge(sys.argv[1])
    sys.stdout.write(f"{edge.server_address[1]}\n")
    sys.stdout.flush()
    edge.serve_forever()
