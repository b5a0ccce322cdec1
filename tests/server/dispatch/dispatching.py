"""A dispatcher at work for the length of a test, and what can be seen of it from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from afterwords.server.dispatch import InProcessDispatcher
from afterwords.server.settings import Settings
from tests.server.dispatch.desk import PATIENCE_S, Desk

LONG = "fault-slow " + 60 * "and so on, "
"""Takes about eight seconds to speak."""
ENDLESS = "fault-slow " + 400 * "and so on, "

ODD = '''
"""An engine for the ends that no fault word of the tone engine brings about."""
import os, time
from pathlib import Path
from afterwords.backends.tone import ToneEngine
from afterwords.errors import ModelFileError, SynthesisError

def note(word):
    with open(Path(os.environ["AFTERWORDS_HOME"]) / "odd.log", "a") as log:
        log.write(word + "\\n")

class Odd(ToneEngine):
    """One at a time, talkative, and endless if told so."""
    name = "odd"
    backends = ("odd",)
    max_concurrent = 1

    def load(self, backend, progress=lambda fraction, step: None):
        if (Path(os.environ["AFTERWORDS_HOME"]) / "broken").exists():
            raise ModelFileError("odd.bin", why="is missing", hint="wait")
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
    """Prepares without end, and reports it, until it may end; goes on where it was; hangs if the text asks for it."""
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

class Twin(Odd):
    """Of the same name, and another model, whose weights may be updated; it takes prompts of those it loaded."""
    backends = ("twin",)

    def load(self, backend, progress=lambda fraction, step: None):
        revision = Path(os.environ["AFTERWORDS_HOME"]) / "revision"
        self.prompt_version = revision.read_text() if revision.exists() else "1"

    def prepare(self, reference, progress=lambda fraction, step: None, *, fast=False):
        return self.prompt_version.encode()

    def synthesize(self, task):
        if task.prompt.decode() != self.prompt_version:
            raise SynthesisError(task.backend, why="it is a prompt of other weights")
        return super().synthesize(task)
'''


@asynccontextmanager
async def dispatching(
    desk: Desk, *, backends: tuple[str, ...] = ("tone",), **given: object
) -> AsyncIterator[InProcessDispatcher]:
    """A dispatcher with these settings, started, and stopped without grace."""
    dispatcher = InProcessDispatcher(Settings.model_validate({"backends": backends, **given}), desk)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop(grace_s=0)


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait, with a deadline, for something that tells nobody when it changes."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.005)


def children() -> list[psutil.Process]:
    """The processes that this one started, dead ones that nobody asked about among them."""
    return [child for child in psutil.Process().children() if child not in _others]


_others: set[psutil.Process] = set()


def leave_out_others() -> None:
    """Leave out the children that there are now: servers of other tests in this process."""
    _others.clear()
    _others.update(psutil.Process().children())


def install_odd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the odd engine into a folder on the path, of this process and of those it starts."""
    folder.mkdir()
    (folder / "odd.py").write_text(ODD, "utf-8")
    info = folder / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(
        "[afterwords.engines]\nodd = odd:Odd\nslow = odd:Slow\ntwin = odd:Twin\n", "utf-8"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
