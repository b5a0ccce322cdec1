"""Run a dispatcher for the length of a test, and look at its processes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.settings import Settings
from tests.server.dispatch.memory_queue import DEADLINE_S, MemoryQueue

LONG = "fault-slow " + 60 * "and so on, "
"""About eight seconds of speech."""
ENDLESS = "fault-slow " + 400 * "and so on, "

ODD = '''
"""Engines for faults that no fault word of the tone engine causes."""
import os, time
from pathlib import Path
from afterwords.backends.tone import ToneEngine
from afterwords.errors import ModelError, SynthesisError

def note(word):
    with open(Path(os.environ["AFTERWORDS_HOME"]) / "odd.log", "a") as log:
        log.write(word + "\\n")

class Odd(ToneEngine):
    """One utterance at a time, prints to stdout, and endless if the text says so."""
    name = "odd"
    backends = ("odd",)
    max_concurrent = 1

    def forget_voices(self):
        note("forget")

    def load(self, backend, progress=lambda fraction, step: None):
        if (Path(os.environ["AFTERWORDS_HOME"]) / "broken").exists():
            raise ModelError.for_file("odd.bin", why="is missing", hint="wait")
        progress(0.4, "loading")
        progress(1.0, "done")

    def prepare(self, reference, progress=lambda fraction, step: None, *, fast=False):
        note("prepare")
        for step in range(24):
            time.sleep(0.1)
            if reference.text != "silent":
                progress(step / 24, "preparing")
        return b"odd prompt"

    def synthesize(self, task):
        note("begin")
        print("noise", flush=True)
        os.write(1, b"more noise")
        os.write(2, b"and more")
        try:
            while True:
                yield from super().synthesize(task)
                if "endless" not in task.text:
                    return
        finally:
            note("end")

class Slow(ToneEngine):
    """Prepares, with progress, until a file `go` exists; resumes from its checkpoint."""
    name = "slow"
    backends = ("slow",)
    max_concurrent = 2

    def prepare(self, reference, progress=lambda fraction, step: None, *, fast=False):
        note("fast" if fast else "full")
        return b"slow prompt"

    def resume(self, reference, progress=lambda fraction, step: None, *, checkpoint, save):
        step = int(checkpoint or b"0")
        note(f"from-{step}")
        home = Path(os.environ["AFTERWORDS_HOME"])
        while not (home / "go").exists():
            step += 1
            progress(0.4 + step / 1_000_000, "preparing")
            save(str(step).encode())
            time.sleep(0.05)
        progress(1.0, "done")
        return b"slow prompt"

class Other(Odd):
    """An engine of the same name for another model, whose weights may be updated; takes prompts of the loaded ones."""
    backends = ("other",)

    def load(self, backend, progress=lambda fraction, step: None):
        revision = Path(os.environ["AFTERWORDS_HOME"]) / "revision"
        self.prompt_version = revision.read_text() if revision.exists() else "1"

    def prepare(self, reference, progress=lambda fraction, step: None, *, fast=False):
        return self.prompt_version.encode()

    def synthesize(self, task):
        if task.prompt.decode() != self.prompt_version:
            raise SynthesisError.for_backend(task.backend, why="the prompt belongs to other weights")
        return super().synthesize(task)
'''


@asynccontextmanager
async def running_dispatcher(
    queue: MemoryQueue, *, backends: tuple[str, ...] = ("tone",), **settings: object
) -> AsyncIterator[LocalDispatcher]:
    """Start a dispatcher with these settings, and stop it without a grace period."""
    dispatcher = LocalDispatcher(Settings.model_validate({"backends": backends, **settings}), queue)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop(grace_s=0)


async def eventually(predicate: Callable[[], bool]) -> None:
    """Poll a predicate, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not predicate():
            await asyncio.sleep(0.005)


def children() -> list[psutil.Process]:
    """Return the child processes of this test, zombies included."""
    return [child for child in psutil.Process().children() if child not in _others]


_others: set[psutil.Process] = set()


def ignore_other_children() -> None:
    """Ignore the children that exist now: servers of other tests in this process."""
    _others.clear()
    _others.update(psutil.Process().children())


def install_odd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the engines above in a folder on the path of this process and of its children."""
    write_odd(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def write_odd(folder: Path) -> None:
    """Write the engines above into a folder, for processes that have it on their path."""
    folder.mkdir(exist_ok=True)
    (folder / "odd.py").write_text(ODD, "utf-8")
    info = folder / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(
        "[afterwords.engines]\nodd = odd:Odd\nslow = odd:Slow\nother = odd:Other\n", "utf-8"
    )


class JsonHandler(BaseHTTPRequestHandler):
    """Answers requests with JSON."""

    def respond(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_requests(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests in threads, and yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
