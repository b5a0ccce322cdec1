"""Keys, texts and transcripts are never shown, and a key is sent to its own address only."""

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
from afterwords.testing import Fault
from tests.client.both_clients import ClientFactory
from tests.client.canned import canned_responses, json_response
from tests.client.faulty_proxy import FaultyServer
from tests.e2e.served import ADMIN_SECRET, RECORDING, Served

KEY = "aw_secret-of-the-owner"
TEXT = "This sentence is private."
TRANSCRIPT = "The transcript of the recording is private."
PRIVATE = (KEY, TEXT, TRANSCRIPT, ADMIN_SECRET)


def has_no_secret(text: str, *more: str) -> bool:
    return not any(secret in text for secret in (*PRIVATE, *more))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return a function that returns all log records, at the lowest level."""
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
    def test_parts_of_the_clients_show_no_secret(self, thing: object) -> None:
        assert has_no_secret(f"{thing!r} {thing!s} {[thing]}")

    def test_clients_and_their_results_show_no_secret(self, client: Client, key: str) -> None:
        voice = client.voices.create(RECORDING, name="me", text=TRANSCRIPT)
        job = client.synthesize(TEXT, voice=voice)
        with client.stream(TEXT, voice=voice) as speech:
            things = [client, client.voices, client.jobs, client.keys, voice, client.voices.get(voice), speech, job]
            things += [job.wait(), job.wait().audio(), client.synthesize(TEXT, voice=voice), client.keys.create()]
            things += [*client.jobs.list(), *client.keys.list(), client.usage()]
            assert has_no_secret(f"{things!r} {[str(thing) for thing in things]}", key)

    @pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.HTML, Fault.HALF_BODY, None])
    def test_errors_and_their_causes_show_no_secret(
        self, faulty: Client, faults: FaultyServer, key: str, fault: Fault | None
    ) -> None:
        if fault:
            faults.inject(fault, times=99)
        for call in (
            lambda: faulty.voices.create(RECORDING, name="me", text=TRANSCRIPT, lang="xx"),
            lambda: faulty.say(f"{TEXT}\0", voice=f"\0{TEXT}"[:1]),
            lambda: faulty.keys.rotate("unknown"),
        ):
            with pytest.raises(AfterwordsError) as caught:
                call()
            error = caught.value
            assert has_no_secret("".join(traceback.format_exception(error)), key)
            assert has_no_secret(f"{error!r} {error.hint} {vars(error)} {error.args}", key)


class TestLogs:
    def test_logs_contain_no_secret(
        self, faulty: Client, faults: FaultyServer, key: str, logged: Callable[[], str]
    ) -> None:
        voice = faulty.voices.create(RECORDING, name="me", text=TRANSCRIPT)
        for fault in (Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_BODY):
            faults.inject(fault)
            faulty.say(f"{TEXT} {fault}", voice="me")
        faulty.stream(TEXT, voice=voice).audio()
        faulty.voices.update(voice, text=f"{TRANSCRIPT} No.")
        created = faulty.keys.create()
        faults.inject(Fault.ANSWER, status=422)
        with pytest.raises(AfterwordsError):
            faulty.say(f"{TEXT} Again.", voice="me")
        assert "httpcore" in logged()
        assert "httpx" in logged()
        assert has_no_secret(logged(), key, created.api_key, str(created.webhook_secret))


class TestDestination:
    def test_each_request_carries_its_own_secret(self, faulty: Client, faults: FaultyServer, key: str) -> None:
        list(faulty.voices.list())
        faulty.keys.list()
        faulty.health()
        sent = [seen.headers["Authorization"] for seen in faults.seen]
        assert sent == [f"Bearer {key}", f"Bearer {ADMIN_SECRET}", None]

    @pytest.mark.parametrize("link", ["http://{}/v1/voices?after=x", "//{}/v1/voices"])
    def test_links_to_another_host_are_not_followed(self, make_client: ClientFactory, link: str) -> None:
        """Neither those of the next page nor of the audio."""
        with canned_responses(json_response([])) as (elsewhere, requests):
            job = json_response({"job_id": "j", "status": "ready", "audio_url": f"{elsewhere}/audio"})
            listed = json_response([], Link=f'<{link.format(elsewhere.removeprefix("http://"))}>; rel="next"')
            with canned_responses(listed, job) as (url, _):
                client = make_client(url, KEY)
                assert list(client.voices.list()) == []
                with pytest.raises(AfterwordsError):
                    client.jobs.get("j").audio()
        assert requests == []

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_no_proxy_is_used_for_a_server_on_this_machine(
        self, make_client: ClientFactory, server: Served, key: str, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        with canned_responses(json_response([])) as (proxy, requests):
            monkeypatch.setenv(name, proxy)
            assert list(make_client(server.url, key).voices.list()) == []
        assert requests == []


class TestInvalidSecrets:
    @pytest.mark.parametrize(
        "key", ["", "  ", "aw_line\nbreak", "aw_line\r\nX-Other: 1", "aw_ключ", "aw_two words", "aw_" + "x" * 600]
    )
    @pytest.mark.parametrize("kind", [Client, AsyncClient])
    def test_invalid_key_is_refused_without_showing_it(self, kind: type, key: str) -> None:
        for options in ({"api_key": key}, {"admin_secret": key}):
            if key == "" and "admin_secret" in options:
                continue  # the same as no secret
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
    def test_url_with_a_secret_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            Client(url)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))

    def test_space_around_a_key_is_removed(self, server: Served, key: str) -> None:
        async def main() -> int:
            async with AsyncClient(f" {server.url}/ ", api_key=f" {key}\n") as client:
                return (await client.usage()).characters

        assert asyncio.run(main()) == 0
