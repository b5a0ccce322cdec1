"""A speaking process by itself, as the server sees it: what it outlives, what ends it, and what it never lets out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from afterwords.backends.base import ignore_progress
from afterwords.config import Config, load_config
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.local import environment_for
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import (
    COMMAND,
    Child,
    ChildFailedError,
    ChildLostError,
    Limits,
    Utterance,
)
from afterwords.server.settings import Settings
from tests.conftest import READER
from tests.server.dispatch.desk import PATIENCE_S
from tests.server.dispatch.dispatching import ENDLESS, eventually, install_odd

pytestmark = pytest.mark.anyio

LIMITS = Limits(start_allowance_s=60, stall_s=60, memory_bytes=1 << 30, recycle_after=100)


@asynccontextmanager
async def child_of(backend: str, limits: Limits = LIMITS) -> AsyncIterator[Child]:
    child = await Child.start(limits, {**environment_for(load_config(), os.environ), "AFTERWORDS_BACKENDS": backend})
    try:
        await child.load(backend, ignore_progress)
        yield child
    finally:
        await child.end()


def say(child: Child, text: str, *, backend: str = "tone") -> Utterance:
    work = Work(text=text, lang="en", backend=backend, voice_id="me", prompt=b"")
    return child.speak(work, engine=backend)


def prepare(child: Child, transcript: str) -> Utterance:
    """Have the odd engine make a prompt, which takes it over two seconds."""
    work = Work(
        text="hello",
        lang="en",
        backend="odd",
        voice_id="me",
        reference=READER.read_bytes(),
        ref_text=transcript,
    )
    return child.speak(work, engine="odd")


async def heard(utterance: Utterance) -> bytes:
    pcm = b""
    while (frame := await utterance.next()) is not None:
        pcm += frame.body if frame.kind == "sound" else b""
    return pcm


async def test_what_libraries_print_gets_in_nobodys_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_odd(home, monkeypatch)
    async with child_of("odd") as child:
        assert len(await heard(say(child, "hello", backend="odd"))) == 2 * 5 * 24_000 * 6 // 100


async def test_a_cancelled_utterance_ends_within_two_chunks_and_the_other_goes_on() -> None:
    async with child_of("tone") as child:
        cancelled, other = say(child, ENDLESS), say(child, "fault-slow and some more")
        assert await cancelled.next()
        child.cancel(cancelled)
        further = len(await heard(cancelled)) / 2 / 24_000 / 0.24
        assert further <= 3  # one that was on its way, and two
        assert len(await heard(other)) == 2 * 24 * 24_000 * 6 // 100
        assert not child.is_lost


async def test_making_a_prompt_can_be_cancelled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_odd(home, monkeypatch)
    async with child_of("odd") as child:
        utterance = prepare(child, "chatty")
        await eventually((home / "odd.log").exists)
        child.cancel(utterance)
        assert await utterance.next() is None
        assert (home / "odd.log").read_text().split() == ["prepare"]


async def test_a_preparation_is_killed_once_it_makes_no_progress(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_odd(home, monkeypatch)
    async with child_of("odd", Limits(1.8, 1.8, 1 << 30, 100)) as child:
        assert await heard(prepare(child, "chatty"))
        with pytest.raises(ChildLostError) as lost:
            await heard(prepare(child, "silent"))
    assert lost.value.code == "preparing_timed_out"
    assert "preparing a voice made no progress for 1.8 s at 0 % (AFTERWORDS_START_ALLOWANCE_S)" in caplog.text


async def test_a_backend_that_is_not_there_is_refused() -> None:
    async with child_of("tone") as child:
        with pytest.raises(ChildFailedError, match="no backend 'nothing'") as failed:
            await child.load("nothing", ignore_progress)
        assert failed.value.code == "invalid_backend"


async def test_what_is_spoken_to_a_dead_process_is_lost() -> None:
    async with child_of("tone") as child:
        utterance = say(child, ENDLESS)
        child.kill()
        with pytest.raises(ChildLostError):
            await heard(utterance)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
async def test_signals_to_everybody_are_for_the_server(name: str) -> None:
    async with child_of("tone") as child:
        os.kill(child.pid, getattr(signal, name))
        assert await heard(say(child, "hello"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of others has no such score")
async def test_the_kernel_takes_it_before_the_server() -> None:
    async with child_of("tone") as child:
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "1000\n"


@pytest.mark.parametrize("text", [ENDLESS, "now fault-hang"], ids=["speaking", "hanging"])
def test_it_ends_when_its_input_does_and_says_nothing_on_stderr(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        work = {"text": text, "lang": "en", "backend": "tone", "voice_id": "me"}
        process.stdin.write(messages.pack("speak", b"prompt", number=1, work=work, parts={"prompt": 6}))
        process.stdin.flush()
        for kind in ("speaking", "sound"):
            frame = messages.read(process.stdout)  # type: ignore[arg-type]
            assert frame is not None
            assert frame.kind == kind
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


async def test_a_process_that_ended_leaves_no_zombie() -> None:
    async with child_of("tone") as child:
        process = psutil.Process(child.pid)
        process.kill()
        await eventually(lambda: not process.is_running())
        await eventually(lambda: child.is_lost)


def test_a_speaking_process_finds_models_where_its_server_does_and_loads_them_likewise(tmp_path: Path) -> None:
    config = Config(
        home=tmp_path,
        models=tmp_path / "weights",
        mlx_weights="4bit",
        idle_unload_s=60,
        precision="int8",
        is_offline=True,
    )
    assert load_config(environment_for(config, {})) == config


def test_no_spelling_of_a_secret_reaches_a_speaking_process(tmp_path: Path) -> None:
    names = ("AFTERWORDS_ADMIN_SECRET", "AFTERWORDS_CALLBACK_SECRET", "AFTERWORDS_DATABASE_URL", "AFTERWORDS_API_KEY")
    spellings = {spelling(name) for name in (*names, "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN") for spelling in (
        str.upper, str.lower, str.title)}  # fmt: skip
    environ = dict.fromkeys(spellings, "canary") | {"PATH": "/bin", "MY_ENGINE": "set"}

    assert Settings.model_fields.keys() >= {"admin_secret", "callback_secret", "database_url", "storage_url"}
    given = environment_for(Config(home=tmp_path), environ)
    assert "canary" not in given.values()
    assert (given["PATH"], given["MY_ENGINE"]) == ("/bin", "set")
