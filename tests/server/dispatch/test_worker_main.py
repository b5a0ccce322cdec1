"""A worker process by itself: what it survives, what ends it, and what it keeps secret."""

from __future__ import annotations

import asyncio
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
from afterwords.server.dispatch.local import CLUSTER_SECRETS, environment_for
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import (
    COMMAND,
    WorkerCrashedError,
    WorkerError,
    WorkerLimits,
    WorkerProcess,
    WorkerUtterance,
)
from afterwords.server.settings import Settings
from tests.conftest import READER
from tests.server.dispatch.memory_queue import DEADLINE_S
from tests.server.dispatch.running import ENDLESS, eventually, install_odd

pytestmark = pytest.mark.anyio

LIMITS = WorkerLimits(start_allowance_s=60, stall_s=60, memory_bytes=1 << 30, recycle_after=100)


@asynccontextmanager
async def start_worker(backend: str, limits: WorkerLimits = LIMITS) -> AsyncIterator[WorkerProcess]:
    worker = await WorkerProcess.start(
        limits, {**environment_for(load_config(), os.environ), "AFTERWORDS_BACKENDS": backend}
    )
    try:
        await worker.load(backend, ignore_progress)
        yield worker
    finally:
        await worker.end()


def say(worker: WorkerProcess, text: str, *, backend: str = "tone") -> WorkerUtterance:
    work = Work(text=text, lang="en", backend=backend, voice_id="me", prompt=b"")
    return worker.speak(work, engine=backend)


def prepare(worker: WorkerProcess, transcript: str) -> WorkerUtterance:
    """Have the odd engine make a prompt, which takes over two seconds."""
    work = Work(
        text="hello",
        lang="en",
        backend="odd",
        voice_id="me",
        reference=READER.read_bytes(),
        ref_text=transcript,
    )
    return worker.speak(work, engine="odd")


async def read_pcm(utterance: WorkerUtterance) -> bytes:
    pcm = b""
    while (message := await utterance.next()) is not None:
        pcm += message.body if message.kind == "audio" else b""
    return pcm


async def test_prints_of_libraries_do_not_disturb_messages(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_odd(home, monkeypatch)
    async with start_worker("odd") as worker:
        assert len(await read_pcm(say(worker, "hello", backend="odd"))) == 2 * 5 * 24_000 * 6 // 100


async def test_cancelled_utterance_ends_within_two_chunks() -> None:
    async with start_worker("tone") as worker:
        cancelled, other = say(worker, ENDLESS), say(worker, "fault-slow and some more")
        assert await cancelled.next()
        worker.cancel(cancelled)
        further = len(await read_pcm(cancelled)) / 2 / 24_000 / 0.24
        assert further <= 3  # one that was on its way, and two
        assert len(await read_pcm(other)) == 2 * 24 * 24_000 * 6 // 100
        assert not worker.is_lost


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run on Windows")
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_work_for_a_process_that_has_just_died_is_lost() -> None:
    """uvloop, which servers run on, refuses to write to a pipe that it has closed."""
    async with start_worker("tone") as worker:
        os.kill(worker.pid, signal.SIGKILL)
        while not worker.is_lost:
            last = say(worker, "hello")
            await asyncio.sleep(0)
        with pytest.raises(WorkerCrashedError):
            await last.next()


async def test_preparation_can_be_cancelled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_odd(home, monkeypatch)
    async with start_worker("odd") as worker:
        utterance = prepare(worker, "chatty")
        await eventually((home / "odd.log").exists)
        worker.cancel(utterance)
        assert await utterance.next() is None
        assert (home / "odd.log").read_text().split() == ["prepare"]


async def test_preparation_without_progress_is_killed(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_odd(home, monkeypatch)
    async with start_worker("odd", WorkerLimits(1.8, 1.8, 1 << 30, 100)) as worker:
        assert await read_pcm(prepare(worker, "chatty"))
        with pytest.raises(WorkerCrashedError) as crashed:
            await read_pcm(prepare(worker, "silent"))
    assert crashed.value.code == "preparing_timed_out"
    assert "preparing a voice made no progress for 1.8 s at 0 % (AFTERWORDS_START_ALLOWANCE_S)" in caplog.text


async def test_load_of_unknown_backend_is_refused() -> None:
    async with start_worker("tone") as worker:
        with pytest.raises(WorkerError, match="no backend 'nothing'") as failed:
            await worker.load("nothing", ignore_progress)
        assert failed.value.code == "invalid_backend"


async def test_utterance_of_a_dead_process_raises() -> None:
    async with start_worker("tone") as worker:
        utterance = say(worker, ENDLESS)
        worker.kill()
        with pytest.raises(WorkerCrashedError):
            await read_pcm(utterance)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
async def test_signals_to_the_group_do_not_end_the_process(name: str) -> None:
    async with start_worker("tone") as worker:
        os.kill(worker.pid, getattr(signal, name))
        assert await read_pcm(say(worker, "hello"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this score")
async def test_kernel_kills_the_process_before_the_server() -> None:
    async with start_worker("tone") as worker:
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "1000\n"


@pytest.mark.parametrize("text", [ENDLESS, "now fault-hang"], ids=["speaking", "hanging"])
def test_process_ends_with_its_input_and_empty_stderr(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        work = {"text": text, "lang": "en", "backend": "tone", "voice_id": "me"}
        process.stdin.write(messages.pack("speak", b"prompt", number=1, work=work, parts={"prompt": 6}))
        process.stdin.flush()
        for kind in ("speaking", "audio"):
            message = messages.read(process.stdout)  # type: ignore[arg-type]
            assert message is not None
            assert message.kind == kind
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


async def test_ended_process_leaves_no_zombie() -> None:
    async with start_worker("tone") as worker:
        process = psutil.Process(worker.pid)
        process.kill()
        await eventually(lambda: not process.is_running())
        await eventually(lambda: worker.is_lost)


def test_worker_process_gets_the_model_settings(tmp_path: Path) -> None:
    config = Config(
        home=tmp_path,
        models=tmp_path / "weights",
        mlx_weights="4bit",
        idle_unload_s=60,
        precision="int8",
        is_offline=True,
    )
    assert load_config(environment_for(config, {})) == config


def test_secrets_in_any_case_are_left_out(tmp_path: Path) -> None:
    ours = ("AFTERWORDS_ADMIN_SECRET", "AFTERWORDS_CALLBACK_SECRET", "AFTERWORDS_DATABASE_URL", "AFTERWORDS_API_KEY")
    clouds = ("MODAL_IDENTITY_TOKEN", "RAY_AUTH_TOKEN", "RUNPOD_AI_API_KEY", "RUNPOD_JWT")
    names = (*ours, *clouds, "PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS")
    spellings = {spelling(name) for name in names for spelling in (str.upper, str.lower, str.title)}
    environ = dict.fromkeys(spellings, "canary") | {"PATH": "/bin", "MY_ENGINE": "set"}

    assert Settings.model_fields.keys() >= {"admin_secret", "callback_secret", "database_url", "storage_url"}
    given = environment_for(Config(home=tmp_path), environ)
    assert "canary" not in given.values()
    assert (given["PATH"], given["MY_ENGINE"]) == ("/bin", "set")
    kept = environment_for(Config(home=tmp_path), environ, kept=CLUSTER_SECRETS)
    assert {name.upper() for name, value in kept.items() if value == "canary"} == {"RAY_AUTH_TOKEN"}
