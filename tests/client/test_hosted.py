"""The hosted service: all that it can do, and one typed error for what it can't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from afterwords import Client
from afterwords.errors import (
    AudioMissingError,
    ConnectionLostError,
    JobFailedError,
    JobTimeoutError,
    NotFoundError,
    UnsupportedByServerError,
    VoiceNotFoundError,
)
from afterwords.models import JobStatus
from afterwords.testing import Fault, FaultyServer
from tests.client.front import Either
from tests.e2e.served import READER
from tests.error_codes import has_code
from tests.hosted.client import NOBODY
from tests.hosted.service import HostedService

TEXT = "The same client speaks here too."


@pytest.fixture(params=["object", "string"])
def hosted(request: pytest.FixtureRequest) -> Iterator[HostedService]:
    with HostedService(error_style=request.param) as service:
        yield service


@pytest.fixture
def client(either: Either, hosted: HostedService) -> Client:
    return either(hosted.url, hosted.api_key, admin_secret=hosted.admin_secret)


class TestLife:
    def test_a_voice_is_made_seen_and_deleted(self, client: Client, hosted: HostedService) -> None:
        made = client.voices.create(READER, name="me", text="What I say.", lang="de", family="mine")
        hosted.annotate(made.voice_id, mood="calm")
        shown = client.voices.get("me")
        assert (shown.voice_id, shown.lang, shown.ref_text, shown.family) == (
            made.voice_id,
            "de",
            "What I say.",
            "mine",
        )
        assert (shown.metadata, shown.reference, shown.consent) == ({"mood": "calm"}, None, None)
        assert [voice.voice_id for voice in client.voices.list(page_size=1)] == [made.voice_id]
        client.voices.delete("me")
        with pytest.raises(VoiceNotFoundError):
            client.voices.get(made)

    def test_a_text_is_spoken_and_then_had_at_once(self, client: Client) -> None:
        voice = client.voices.create(READER, name="me")
        first = client.say(TEXT, voice="me", lang="fr", backend="qwen3-0.6b")
        assert first.duration_s == pytest.approx(len(TEXT) * 0.06, abs=0.01)
        assert first.tags  # the mark, which the service does not put there
        again = client.synthesize(TEXT, voice=voice, lang="fr", backend="qwen3-0.6b")
        assert (again.status, again.job_id) == (JobStatus.READY, None)
        assert np.array_equal(again.audio().samples, first.samples)

    def test_a_job_is_followed_and_its_audio_fetched_where_the_key_belongs(
        self, client: Client, hosted: HostedService, tmp_path: Path
    ) -> None:
        client.voices.create(READER, name="me")
        job = client.synthesize(TEXT, voice="me")
        assert client.jobs.get(str(job.job_id)).status is JobStatus.PENDING
        ready = job.wait()
        assert str(ready.audio_url).startswith("https://cdn.example.invalid/")  # which leads nowhere, and is not asked
        assert ready.download(tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"
        assert hosted.requests[-1].path == f"/v1/jobs/{job.job_id}/audio"

    def test_what_fails_says_so(self, client: Client, hosted: HostedService) -> None:
        client.voices.create(READER, name="me")
        with pytest.raises(JobFailedError) as failed:
            client.say("This will fail.", voice="me")
        assert failed.value.reason == "The worker could not speak the text."
        with pytest.raises(NotFoundError, check=has_code("job_not_found")):
            client.jobs.get(NOBODY)
        job = client.synthesize(TEXT, voice="me").wait()
        del hosted.blobs[f"jobs/{job.job_id}.wav"]
        with pytest.raises(AudioMissingError if hosted.error_style == "object" else NotFoundError):
            job.audio()

    def test_a_job_that_takes_long_goes_on(self, either: Either) -> None:
        with HostedService(pending_s=60) as slow:
            client = either(slow.url, slow.api_key)
            client.voices.create(READER, name="me")
            with pytest.raises(JobTimeoutError):
                client.say(TEXT, voice="me", timeout_s=0.2)
            assert len([seen for seen in slow.requests if seen.path.startswith("/v1/jobs/")]) < 6

    def test_keys_usage_and_health(self, client: Client, either: Either, hosted: HostedService) -> None:
        made = client.keys.create(label="theirs")
        assert (made.label, made.key_id) == ("theirs", None)
        theirs = either(hosted.url, made.api_key)
        assert (theirs.usage().characters, theirs.usage().limit) == (0, None)
        assert (theirs.health().version, theirs.health().backends) == (None, hosted.backends)


CANT: list[Callable[[Client], object]] = [
    lambda client: client.voices.export("me"),
    lambda client: client.voices.export(NOBODY),
    lambda client: client.voices.import_(b"PK"),
    lambda client: client.voices.update("me", name="you"),
    lambda client: list(client.jobs.list()),
    lambda client: client.jobs.cancel(NOBODY),
    lambda client: client.synthesize(TEXT, voice="me").cancel(),
    lambda client: client.keys.list(),
    lambda client: client.keys.revoke(NOBODY),
    lambda client: client.keys.rotate(NOBODY),
]
IGNORED: list[Callable[[Client], object]] = [
    lambda client: client.say(TEXT, voice="me", speed=1.5),
    lambda client: client.say(TEXT, voice="me", seed=0),
    lambda client: client.stream(TEXT, voice="me", speed=0.5),
    lambda client: client.synthesize(TEXT, voice="me", format="mp3"),
    lambda client: client.synthesize(TEXT, voice="me", webhook_url="https://example.com/"),
    lambda client: client.keys.create(scopes=["voices:read"]),
    lambda client: client.keys.create(character_limit=5),
]


class TestLimits:
    @pytest.mark.parametrize("call", CANT, ids=range(len(CANT)))
    def test_what_it_can_not_do_is_one_typed_error(self, client: Client, call: Callable[[Client], object]) -> None:
        client.voices.create(READER, name="me")
        with pytest.raises(UnsupportedByServerError) as caught:
            call(client)
        assert (caught.value.code, caught.value.exit_code) == ("unsupported_by_server", 5)

    @pytest.mark.parametrize("call", IGNORED, ids=range(len(IGNORED)))
    def test_what_it_would_ignore_is_not_even_sent(
        self, client: Client, hosted: HostedService, call: Callable[[Client], object]
    ) -> None:
        client.voices.create(READER, name="me")
        n_posts = sum(seen.method == "POST" for seen in hosted.requests)
        with pytest.raises(UnsupportedByServerError):
            call(client)
        assert sum(seen.method == "POST" for seen in hosted.requests) == n_posts

    @pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.HALF_BODY])
    @pytest.mark.parametrize(
        "call", [lambda client: client.keys.revoke(NOBODY), lambda client: client.jobs.cancel(NOBODY)]
    )
    def test_a_lost_refusal_is_not_taken_for_success(
        self, either: Either, hosted: HostedService, fault: Fault, call: Callable[[Client], object]
    ) -> None:
        with FaultyServer(hosted.url) as faults:
            faults.inject(fault, method="DELETE", times=2)
            with pytest.raises(UnsupportedByServerError):
                call(either(faults.url, hosted.api_key, admin_secret=hosted.admin_secret))

    def test_a_voice_that_is_not_there_is_not_a_call_that_is_not_there(self, client: Client) -> None:
        for call in (client.voices.get, client.voices.delete):
            with pytest.raises(VoiceNotFoundError):
                call(NOBODY)

    @pytest.mark.parametrize("error_style", ["object", "string"])
    def test_that_it_is_the_hosted_one_is_asked_once(
        self, either: Either, error_style: Literal["object", "string"]
    ) -> None:
        with HostedService(error_style=error_style) as hosted:
            client = either(hosted.url, hosted.api_key)
            for _ in range(3):
                with pytest.raises(UnsupportedByServerError):
                    list(client.jobs.list())
            assert [seen.path for seen in hosted.requests].count("/v1/health") == 1

    def test_where_it_can_not_be_told_what_failed_first_is_told(self, either: Either, hosted: HostedService) -> None:
        with FaultyServer(hosted.url) as faults:
            client = either(faults.url, hosted.api_key)
            faults.inject(Fault.DROP_BEFORE, path="/v1/synthesize")
            faults.inject(Fault.HTML, path="/v1/health")
            with pytest.raises(ConnectionLostError):
                client.synthesize(TEXT, voice=NOBODY)
