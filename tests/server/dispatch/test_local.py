"""The local dispatcher without faults: the contract, prompts, order, streams, and imports."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.config import Config
from afterwords.errors import AudioMissingError, SynthesisError
from afterwords.server.dispatch import slots
from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.ports import Dispatcher
from afterwords.server.settings import Settings
from tests.contracts.dispatcher_contract import JobQueueUserContract, PreparationContract
from tests.server.dispatch.memory_queue import MemoryQueue
from tests.server.dispatch.running import ENDLESS, LONG, children, eventually, install_odd, running_dispatcher

pytestmark = pytest.mark.anyio


class TestLocalDispatcher(JobQueueUserContract, PreparationContract):
    @pytest.fixture
    async def dispatcher(self, queue: MemoryQueue) -> AsyncIterator[Dispatcher]:
        async with running_dispatcher(queue, lease_s=3) as dispatcher:
            yield dispatcher


async def test_prompt_is_made_once_and_stored(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue):
        await queue.wait_for(queue.submit("first"))
        await queue.wait_for(queue.submit("second"))
    assert list(queue.prompts) == [("me", "tone", "1")]
    assert [call for call, name in queue.calls if name == "me"] == [
        *("prompt", "reference", "checkpoint"),
        *("save_prompt", "prompt"),
    ]


async def test_prompt_is_stored_before_speech_that_may_crash(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue):
        assert await queue.wait_for(queue.submit("now fault-crash")) == ["worker_lost"]
    assert [call for call, _ in queue.calls].count("reference") == 1


async def test_speed_shortens_the_audio(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue):
        job_id = queue.submit("x" * 100, speed=2.0)
        await queue.wait_for(job_id)
    assert (len(queue.wavs[job_id]) - 44) // 2 == round(100 * SECONDS_PER_CHARACTER * SAMPLE_RATE / 2)


async def test_voice_without_reference_fails_job_without_audio(queue: MemoryQueue) -> None:
    queue.errors["reference"] = AudioMissingError(code="reference_missing")
    async with running_dispatcher(queue) as dispatcher:
        job_id = queue.submit("hello")
        listener = dispatcher.listen(job_id)
        assert listener is not None
        assert await listener.wait_until_started() is None
        assert await queue.wait_for(job_id) == ["reference_missing"]


async def test_server_without_workers_claims_nothing(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, workers=0) as dispatcher:
        dispatcher.wake()
        assert dispatcher.is_ready
        assert dispatcher.state == "only accepts jobs"
        assert list(dispatcher.backends) == ["tone"]
        assert dispatcher.listen("job") is None
        assert (queue.calls, children()) == ([], [])


async def test_two_workers_are_two_processes(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, workers=2) as dispatcher:
        await eventually(lambda: dispatcher.state == "ready")
        assert len(children()) == 2


async def test_capacity_of_one_runs_one_utterance_at_a_time(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    queue.prompts["me", "odd", "1"] = b"known"
    async with running_dispatcher(queue, backends=("odd",)):
        assert set(await queue.wait_for(*(queue.submit("hello " * 20, backend="odd") for _ in range(5)))) == {"ready"}
    assert (home / "odd.log").read_text().split() == ["begin", "end"] * 5


async def test_engines_of_one_name_have_separate_capacity(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    queue.prompts["me", "odd", "1"] = b"known"
    async with running_dispatcher(queue, backends=("odd", "other")):
        long = queue.submit(LONG, backend="odd")
        await eventually((home / "odd.log").exists)
        assert await queue.wait_for(queue.submit("hello", backend="other")) == ["ready"]
        assert not queue.is_final(long)


async def test_updated_weights_prepare_the_voice_again(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    async with running_dispatcher(queue, backends=("other",), recycle_after=1) as dispatcher:
        await eventually(lambda: dispatcher.state == "ready")
        (home / "revision").write_text("2")  # for the next process
        for _ in range(3):
            assert await queue.wait_for(queue.submit("hello", backend="other")) == ["ready"]
    assert queue.prompts == {("me", "other", version): version.encode() for version in "12"}


async def test_second_backend_is_loaded_on_first_use(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    queue.prompts["me", "odd", "1"] = b"known"
    async with running_dispatcher(queue, backends=("tone", "odd")) as dispatcher:
        assert list(dispatcher.backends) == ["tone", "odd"]
        jobs = [queue.submit("hello", backend=backend) for backend in ("odd", "tone", "odd")]
        assert await queue.wait_for(*jobs) == ["ready", "ready", "ready"]


async def test_cancelling_one_job_leaves_the_others(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        endless, slow = queue.submit(ENDLESS), queue.submit("fault-slow but not for long")
        listener = dispatcher.listen(endless)
        assert listener is not None
        await listener.wait_until_started()
        before = children()
        queue.cancel(endless)
        dispatcher.cancel(endless)
        assert await queue.wait_for(slow) == ["ready"]
        assert children() == before
        assert queue.calls_for(endless) == ["claimed"]


async def test_lost_job_stops_at_the_next_heartbeat(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    queue.prompts["me", "odd", "1"] = b"known"
    async with running_dispatcher(queue, backends=("odd",), lease_s=0.3):
        endless = queue.submit(ENDLESS, backend="odd")
        await queue.wait_until(lambda: ("heartbeat", endless) in queue.calls)
        queue.cancel(endless)
        assert await queue.wait_for(queue.submit("the next", backend="odd")) == ["ready"]
    assert queue.calls_for(endless) == ["claimed"]


async def test_new_attempt_replaces_the_older_one(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        job_id = queue.submit("fault-slow and some more of it")
        listener = dispatcher.listen(job_id)
        assert listener is not None
        await listener.wait_until_started()
        queue.requeue(job_id)
        dispatcher.wake()
        assert await queue.wait_for(job_id) == ["ready"]
        with pytest.raises(SynthesisError):
            _ = [pcm async for pcm in listener]
    assert queue.calls_for(job_id) == ["claimed", "claimed", "complete"]


async def test_lease_is_renewed_while_job_runs(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, lease_s=0.15):
        job_id = queue.submit(LONG)
        await queue.wait_until(lambda: queue.calls.count(("heartbeat", job_id)) >= 3)
        assert not queue.is_final(job_id)


async def test_late_listener_receives_all_audio(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        job_id = queue.submit("fault-slow and then some more of it")
        await queue.wait_until(lambda: ("save_prompt", "me") in queue.calls)
        listener = dispatcher.listen(job_id)
        assert listener is not None
        received = b"".join([pcm async for pcm in listener])
        await queue.wait_for(job_id)
    assert received == queue.wavs[job_id][44:]


async def test_waiting_listener_can_be_cancelled_or_closed(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        listener, other = dispatcher.listen("elsewhere"), dispatcher.listen("elsewhere")
        assert listener is not None
        assert other is not None
        waiting = asyncio.create_task(listener.wait_until_started())
        also_waiting = asyncio.create_task(other.wait_until_started())
        await asyncio.sleep(0)
        waiting.cancel()
        listener.close()
        other.close()
        assert await also_waiting is None
        assert [pcm async for pcm in other] == []
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.filterwarnings("ignore::afterwords.errors.UnknownSettingWarning")  # one of them is not ours yet
async def test_worker_process_gets_no_server_secret(queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADMIN_SECRET", "CALLBACK_SECRET", "STRIPE_SECRET_KEY", "DATABASE_URL", "STORAGE_URL"):
        monkeypatch.setenv(f"AFTERWORDS_{name}", f"canary-{name}-{'x' * 32}")
    monkeypatch.setenv("HARMLESS", "kept")
    async with running_dispatcher(queue) as dispatcher:
        await eventually(lambda: dispatcher.is_ready)
        environment = children()[0].environ()
    assert not [name for name, value in environment.items() if "canary" in value]
    assert environment["HARMLESS"] == "kept"
    assert environment["AFTERWORDS_BACKENDS"] == "tone"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "from afterwords.server.dispatch.local import LocalDispatcher;"
            "from afterwords.server.settings import Settings;"
            "assert 'lite' in LocalDispatcher(Settings(backends=('lite',)), None).backends",
            {"onnxruntime", "av", "soundfile", "soxr", "sanotts", "torch"},
        ),
        (
            "import afterwords.server.dispatch.worker_main; from afterwords.server.dispatch.worker import Worker;"
            "Worker().engine('tone')",
            {"fastapi", "starlette", "sqlalchemy", "alembic", "obstore", "uvicorn", "pydantic_settings", "onnxruntime"},
        ),
    ],
    ids=["server", "worker"],
)
def test_server_and_worker_import_only_what_they_need(
    statement: str, heavy: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not heavy & {name.partition(".")[0] for name in done.stdout.split()}


def test_state_says_why_no_backend_can_run(queue: MemoryQueue, home: Path) -> None:
    dispatcher = LocalDispatcher(Settings(), queue, config=Config(home=home, backends=("nothing",)))
    assert dispatcher.backends == {}
    assert not dispatcher.is_ready
    assert dispatcher.state == "no backend can run here: none is installed"


async def test_processes_forget_a_deleted_voice(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "FORGET_INTERVAL_S", 0.05)
    install_odd(home, monkeypatch)

    def notes() -> list[str]:
        return (home / "odd.log").read_text().split()

    async with running_dispatcher(queue, backends=("odd",)):
        await queue.wait_for(*(queue.submit("A text.", voice=voice, backend="odd") for voice in ("me", "you")))
        queue.deleted |= {"me", "unknown"}
        await eventually(lambda: "forget" in notes())
        await queue.wait_for(queue.submit("Another text.", voice="you", backend="odd"))
        queue.deleted.add("you")
        await eventually(lambda: notes().count("forget") == 2)
    assert notes().count("forget") == 2, "only what was spoken since is forgotten again"


async def test_deleted_voice_is_forgotten_after_its_speech(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "FORGET_INTERVAL_S", 0.05)
    install_odd(home, monkeypatch)
    log = home / "odd.log"
    async with running_dispatcher(queue, backends=("odd",)):
        queue.submit(ENDLESS, backend="odd")
        await eventually(lambda: log.exists() and "begin" in log.read_text())
        queue.deleted.add("me")
        await eventually(lambda: log.read_text().count("forget") >= 2)  # as long as the engine may read it again
