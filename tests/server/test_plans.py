"""Plans at a running server: headers with what is left, and the next period of a subscription."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from afterwords.errors import QuotaExceededError, ServiceUnavailableError
from afterwords.server import create_app, load_settings
from afterwords.server.app_state import ServerState, open_server
from afterwords.server.records import Caller
from afterwords.server.services.synthesis import AcceptedJob, SynthesisRequest
from afterwords.server.settings import Plan
from tests.contracts.store_world import ManualClock, World
from tests.e2e.served import register
from tests.server.test_embedding import RunningApp, common

PLANS = {"small": Plan(characters=100)}


# -- headers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans") / "home"


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[RunningApp]:
    with RunningApp(create_app(load_settings(**{**common(), "home": home, "workers": 1, "plans": PLANS}))) as running:
        yield running


def new_key(running: RunningApp, home: Path, *, plan: str | None) -> str:
    with running.client() as admin:
        made: dict[str, str] = admin.post("/v1/keys", json={}).json()
    with sqlite3.connect(home / "server" / "afterwords.db") as rows:
        rows.execute("UPDATE accounts SET plan = ? WHERE account_id = ?", [plan, made["account_id"]])
    rows.close()
    return made["api_key"]


def characters(response: httpx.Response) -> tuple[str | None, str | None]:
    assert response.status_code in (200, 202), response.text
    return response.headers.get("x-characters-used"), response.headers.get("x-characters-remaining")


def test_every_response_with_speech_has_the_characters_left(running: RunningApp, home: Path) -> None:
    with running.client(new_key(running, home, plan="small")) as user:
        voice_id = register(user)

        def speak(text: str, *, stream: bool = False, headers: dict[str, str] | None = None) -> httpx.Response:
            body = {"voice_id": voice_id, "text": text, "stream": stream}
            return user.post("/v1/synthesize", json=body, headers=headers)

        waited = speak("Ten chars.", headers={"Prefer": "wait=60"})
        hit = speak("Ten chars.")
        streamed = speak("Ten, and 16 more", stream=True)
        accepted = speak("Four", headers={"Idempotency-Key": "once"})
        repeated = speak("Four", headers={"Idempotency-Key": "once"})
        refused = speak("x" * 71)

    assert (waited.status_code, hit.headers["x-cache"], streamed.status_code) == (200, "HIT", 200)
    assert characters(waited) == characters(hit) == ("10", "90")
    assert characters(streamed) == ("26", "74")
    assert characters(accepted) == characters(repeated) == ("30", "70")
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert "30 of the 100 characters of its plan small" in refused.json()["error"]["message"]


def test_unlimited_key_gets_no_numbers(running: RunningApp, home: Path) -> None:
    with running.client(new_key(running, home, plan=None)) as user:
        response = user.post("/v1/synthesize", json={"voice_id": register(user), "text": "Hello."})
    assert characters(response) == (None, None)


@pytest.mark.anyio
async def test_start_names_plans_that_are_not_configured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings(**{**common(), "home": tmp_path, "plans": PLANS})
    for plan, is_named in (("small", False), ("gone", True)):
        async with open_server(settings) as state:
            world = World(state.store, ManualClock())
            await world.set_account(await world.caller(), plan=plan)
        caplog.clear()
        async with open_server(settings):
            assert ("plan='gone' accounts=1" in caplog.text) is is_named


# -- the next period ------------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerState]:
    async with open_server(load_settings(**{**common(), "home": tmp_path, "plans": PLANS})) as state:
        yield state


class Account:
    """An account whose period has ended with all of its characters used, and how it is renewed."""

    def __init__(self, server: ServerState) -> None:
        self.world = World(server.store, ManualClock(datetime.now(UTC)))
        self.synthesis = replace(server.synthesis, renew=self.renew)
        self.blobs = server.blobs
        self.asked: list[str] = []
        self.is_down = False

    async def spend(self) -> Caller:
        self.ann = await self.world.caller()
        self.voice = await self.world.add_voice(self.ann)
        await self.blobs.put(self.voice.ref_audio_key, b"reference")
        await self.begin(timedelta(days=-30), timedelta(seconds=-1))
        await self.world.add_job(self.ann, self.voice, char_count=100)
        return self.ann

    async def begin(self, start: timedelta, end: timedelta) -> None:
        now = datetime.now(UTC)
        await self.world.set_account(self.ann, plan="small", period_start=now + start, period_end=now + end)

    async def renew(self, account_id: str) -> bool:
        self.asked.append(account_id)
        if self.is_down:
            raise ServiceUnavailableError
        await self.begin(timedelta(seconds=-1), timedelta(days=30))
        return True

    async def speak(self) -> AcceptedJob:
        accepted = await self.synthesis.submit(self.ann, SynthesisRequest(self.voice.voice_id, "Hello."))
        assert isinstance(accepted, AcceptedJob)
        return accepted


@pytest.mark.anyio
async def test_ended_period_is_renewed_before_a_refusal(server: ServerState) -> None:
    account = Account(server)
    ann = await account.spend()

    accepted = await account.speak()

    assert accepted.quota is not None
    assert (accepted.is_new, accepted.quota.used, account.asked) == (True, 6, [ann.account_id])
    assert (await account.synthesis.get_usage(ann)).characters == 6
    assert account.asked == [ann.account_id]


@pytest.mark.anyio
async def test_usage_of_an_ended_period_is_renewed(server: ServerState) -> None:
    account = Account(server)
    ann = await account.spend()

    assert (await account.synthesis.get_usage(ann)).characters == 0
    assert account.asked == [ann.account_id]


@pytest.mark.anyio
async def test_failed_renewal_refuses_as_before(server: ServerState) -> None:
    account = Account(server)
    ann = await account.spend()
    account.is_down = True

    with pytest.raises(QuotaExceededError, match="100 of the 100"):
        await account.speak()
    assert (await account.synthesis.get_usage(ann)).characters == 100


@pytest.mark.anyio
async def test_current_period_is_not_renewed(server: ServerState) -> None:
    account = Account(server)
    await account.spend()
    await account.begin(timedelta(days=-29), timedelta(days=1))
    await account.world.add_job(account.ann, account.voice, char_count=100)

    with pytest.raises(QuotaExceededError):
        await account.speak()
    assert account.asked == []
