"""Keys, texts and transcripts are shown nowhere; and a key goes to the address that it was given for, nowhere else."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable

import pytest

from afterwords import AsyncClient, Client
from afterwords.client.parsing import SpeechResponse
from afterwords.client.profiles import Access, Profile
from afterwords.client.requests import Request, Response
from afterwords.errors import AfterwordsError, InvalidInputError
from afterwords.models import NewApiKey, now
from afterwords.testing import Fault, FaultyServer
from tests.client.answering import answering, page
from tests.client.front import Either
from tests.e2e.served import ADMIN_SECRET, READER, Served

KEY = "aw_secret-of-the-owner"
TEXT = "Nobody but us shall ever read this sentence."
TRANSCRIPT = "What was said in the recording is private too."
PRIVATE = (KEY, TEXT, TRANSCRIPT, ADMIN_SECRET)


def shows_nothing(shown: str, *more: str) -> bool:
    return not any(secret in shown for secret in (*PRIVATE, *more))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All that was logged, by anyone, at the lowest level."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "afterwords", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    return lambda: "\n".join(f"{record.name} {record.getMessage()} {record.__dict__!r}" for record in caplog.records)


class TestRepr:
    @pytest.mark.parametrize(
        "thing",
        [
            Access("https://a.example", KEY, ADMIN_SECRET, "p"),
            Profile("p", "https://a.example", KEY),
            Request(
                "POST", "/", json={"text": TEXT}, form={"ref_text": TRANSCRIPT}, file=TEXT.encode(), body=TEXT.encode()
            ),
            Response(200, {"x": KEY}, TEXT.encode(), stream=TEXT),
            SpeechResponse(TEXT.encode(), None, None, stream=TEXT),
            NewApiKey(api_key=KEY, label="mine", created_at=now(), webhook_secret=KEY),
        ],
        ids=lambda thing: type(thing).__name__,
    )
    def test_what_the_clients_are_made_of_shows_no_secret(self, thing: object) -> None:
        assert shows_nothing(f"{thing!r} {thing!s} {[thing]}")

    def test_clients_and_what_they_give_show_no_secret(self, client: Client, key: str) -> None:
        voice = client.voices.create(READER, name="me", text=TRANSCRIPT)
        job = client.synthesize(TEXT, voice=voice)
        with client.stream(TEXT, voice=voice) as speech:
            things = [client, client.voices, client.jobs, client.keys, voice, client.voices.get(voice), speech, job]
            things += [job.wait(), job.wait().audio(), client.synthesize(TEXT, voice=voice), client.keys.create()]
            things += [*client.jobs.list(), *client.keys.list(), client.usage()]
            assert shows_nothing(f"{things!r} {[str(thing) for thing in things]}", key)

    @pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.HTML, Fault.HALF_BODY, None])
    def test_errors_show_no_secret_in_all_that_they_came_from(
        self, faulty: Client, faults: FaultyServer, key: str, fault: Fault | None
    ) -> None:
        if fault:
            faults.inject(fault, times=99)
        for call in (
            lambda: faulty.voices.create(READER, name="me", text=TRANSCRIPT, lang="xx"),
            lambda: faulty.say(f"{TEXT}\0", voice=f"\0{TEXT}"[:1]),
            lambda: faulty.keys.rotate("nothing"),
        ):
            with pytest.raises(AfterwordsError) as caught:
                call()
            error = caught.value
            assert shows_nothing("".join(traceback.format_exception(error)), key)
            assert shows_nothing(f"{error!r} {error.hint} {vars(error)} {error.args}", key)


class TestLogs:
    def test_a_whole_exchange_is_logged_without_secrets(
        self, faulty: Client, faults: FaultyServer, key: str, logged: Callable[[], str]
    ) -> None:
        voice = faulty.voices.create(READER, name="me", text=TRANSCRIPT)
        for fault in (Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_BODY):
            faults.inject(fault)
            faulty.say(f"{TEXT} {fault}", voice="me")
        faulty.stream(TEXT, voice=voice).audio()
        faulty.voices.update(voice, text=f"{TRANSCRIPT} No.")
        made = faulty.keys.create()
        faults.inject(Fault.ANSWER, status=422)
        with pytest.raises(AfterwordsError):
            faulty.say(f"{TEXT} Again.", voice="me")
        assert "httpcore" in logged()
        assert "httpx" in logged()
        assert shows_nothing(logged(), key, made.api_key, str(made.webhook_secret))


class TestWhereKeysGo:
    def test_it_goes_where_the_client_points(self, faulty: Client, faults: FaultyServer, key: str) -> None:
        list(faulty.voices.list())
        faulty.keys.list()
        faulty.health()
        sent = [seen.headers["Authorization"] for seen in faults.seen]
        assert sent == [f"Bearer {key}", f"Bearer {ADMIN_SECRET}", None]

    @pytest.mark.parametrize("link", ["http://{}/v1/voices?after=x", "//{}/v1/voices"])
    def test_links_to_elsewhere_are_not_followed(self, either: Either, link: str) -> None:
        """Neither the next page nor the place of the audio: where they are is known, not told."""
        with answering(page([])) as (elsewhere, seen):
            job = page({"job_id": "j", "status": "ready", "audio_url": f"{elsewhere}/audio"})
            listed = page([], Link=f'<{link.format(elsewhere.removeprefix("http://"))}>; rel="next"')
            with answering(listed, job) as (url, _):
                client = either(url, KEY)
                assert list(client.voices.list()) == []
                with pytest.raises(AfterwordsError):
                    client.jobs.get("j").audio()
        assert seen == []

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
        self, either: Either, server: Served, key: str, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        with answering(page([])) as (proxy, seen):
            monkeypatch.setenv(name, proxy)
            assert list(either(server.url, key).voices.list()) == []
        assert seen == []


class TestRefusals:
    @pytest.mark.parametrize(
        "key", ["", "  ", "aw_line\nbreak", "aw_line\r\nX-Other: 1", "aw_ключ", "aw_two words", "aw_" + "x" * 600]
    )
    @pytest.mark.parametrize("kind", [Client, AsyncClient])
    def test_a_key_that_can_not_be_sent_is_refused_unseen(self, kind: type, key: str) -> None:
        for options in ({"api_key": key}, {"admin_secret": key}):
            if key == "" and "admin_secret" in options:
                continue  # as good as none
            with pytest.raises(InvalidInputError) as caught:
                kind("https://a.example", **options)
            assert not key.strip() or key.strip() not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        "url",
        [
            "https://me:hunter2@a.example",
            "https://hunter2@a.example",
            "https://a.example/?key=hunter2",
            "https://a.example/#hunter2",
            "ftp://hunter2",
            "hunter2",
            "https://a.example:hunter2/",
            "https://[hunter2",
            "https://a.example/\nhunter2",
            "https://a.example\\@hunter2/",
        ],
    )
    def test_an_address_that_may_hold_a_secret_is_refused_unseen(self, url: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            Client(url)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))

    def test_a_key_with_space_around_it_is_taken_without(self, server: Served, key: str) -> None:
        async def main() -> int:
            async with AsyncClient(f" {server.url}/ ", api_key=f" {key}\n") as client:
                return (await client.usage()).characters

        assert asyncio.run(main()) == 0
