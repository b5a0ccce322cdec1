"""Remote workers as processes, and a server without worker processes of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from afterwords.server.dispatch.protocol import PROTOCOL
from tests.cli.program import run
from tests.e2e.served import DEADLINE_S, Served, register, submit_text, wait_for_job, wait_until
from tests.forked import start_afterwords

SLOW = "fault-slow, four characters every 50 ms, so that this lasts about two seconds: " + "and on " * 12
LEASE_S = 3
_numbers = count()


def unique(text: str) -> str:
    """Return a text of which no audio is cached."""
    return f"{text} {next(_numbers)}"


class WorkerProgram:
    """`afterwords worker` as a process."""

    def __init__(self, folder: Path, *options: str, token: str, url: str, **env: str) -> None:
        self.log = folder / f"worker-{uuid4().hex[:8]}.log"
        settings = {
            "AFTERWORDS_HOME": str(folder / "worker"),
            "AFTERWORDS_BACKENDS": "tone",
            "AFTERWORDS_TESTING": "1",
            "AFTERWORDS_WORKER_TOKEN": token,
            "AFTERWORDS_LOG_LEVEL": "debug",
        }
        arguments = ["worker", "--server", url, *options]
        self.process = start_afterwords(arguments, {**os.environ, **settings, **env}, self.log)
        assert self.process.stdout is not None
        self.process.stdout.close()  # it has no result

    def wait_for_log(self, words: str) -> None:
        wait_until(lambda: words in self.log.read_text() or self.ended(), what=f"{words!r} in the log of the worker")
        assert words in self.log.read_text()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(DEADLINE_S)

    def engines(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


class World:
    """A server without worker processes, a client, a voice, and remote workers."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        defaults = {"AFTERWORDS_WORKERS": "0", "AFTERWORDS_LEASE_S": str(LEASE_S), "AFTERWORDS_RATE_LIMIT": "0"}
        self.served = Served(folder / "home", {**defaults, **settings}).start()
        self.token = self.new_token()
        self.client = self.served.client()
        self.voice_id = register(self.client)
        self.workers: list[WorkerProgram] = []

    def new_token(self) -> str:
        done = run("workers", "token", "create", env={"AFTERWORDS_HOME": str(self.served.home)})
        assert done.code == 0, done.err
        return done.out.strip()

    def start_worker(
        self, *options: str, token: str | None = None, url: str | None = None, **env: str
    ) -> WorkerProgram:
        worker = WorkerProgram(self.folder, *options, token=token or self.token, url=url or self.served.url, **env)
        self.workers.append(worker)
        return worker

    def submit(self, text: str, **fields: Any) -> str:
        return submit_text(self.client, self.voice_id, unique(text), **fields)

    def wait_for(self, job_id: str) -> str:
        job = wait_for_job(self.client, job_id)
        return str(job["error"] or job["status"])

    def speak(self, text: str) -> bytes:
        """Return the audio of a text, as a WAV file."""
        job_id = self.submit(text)
        assert self.wait_for(job_id) == "ready"
        return self.client.get(f"/v1/jobs/{job_id}/audio").content

    def offered(self) -> list[str]:
        return list(self.client.get("/v1/health").json()["backends"])

    def wait_for_step(self, job_id: str, step: str = "speaking") -> None:
        """Wait until the worker reports a step of a job."""
        wait_until(lambda: self.client.get(f"/v1/jobs/{job_id}").json()["step"] == step, what=f"step {step}")

    def close(self) -> None:
        self.client.close()
        for worker in self.workers:
            if not worker.ended():
                worker.process.kill()
            worker.process.wait(DEADLINE_S)
        with suppress(Exception):
            self.served.stop()
        if self.served.is_running:
            self.served.kill()


@contextmanager
def open_world(folder: Path, **settings: str) -> Iterator[World]:
    world = World(folder, **settings)
    try:
        yield world
    finally:
        world.close()


def claim_body(**fields: Any) -> Mapping[str, Any]:
    return {
        "protocol": PROTOCOL,
        "version": "9.9.9",
        "worker": "test",
        "claim_id": str(uuid4()),
        "number": 1,
        "offers": {"tone": {"languages": ["en"], "prompt_version": "1"}},
        "backends": ["tone"],
        "skip_voices": [],
        "wait_s": 0,
        **fields,
    }
