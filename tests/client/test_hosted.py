"""The clients with the hosted service: its features, and a typed error for every other."""

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
from afterwords.testing import Fault
from tests.client.both_clients import ClientFactory
from tests.client.faulty_proxy import FaultyServer
from tests.e2e.served import RECORDING
from tests.error_codes import has_code
from tests.hosted.client import UNKNOWN_ID
from tests.hosted.service import HostedService

TEXT = "The same client works here."


@pytest.fixture(params=["object", "string"])
def hosted(request: pytest.FixtureRequest) -> Iterator[HostedService]:
    with HostedService(error_style=request.param) as service:
        yield service


@pytest.fixture
def client(make_client: ClientFactory, hosted: HostedService) -> Client:
    return make_client(hosted.url, hosted.api_key, admin_secret=hosted.admin_secret)


class TestFeatures:
    def test_voice_is_created_shown_and_deleted(self, client: Client, hosted: HostedService) -> None:
        created = client.voices.create(RECORDING, name="me", text="What I say.", lang="de", family="mine")
        hosted.annotate(created.voice_id, mood="calm")
        shown = client.voices.get("me")
        assert (shown.voice_id, shown.lang, shown.ref_text, shown.family) == (
            created.voice_id,
            "de",
            "What I say.",
            "mine",
        )
        assert (shown.metadata, shown.reference, shown.consent) == ({"mood": "calm"}, None, None)
        assert [voice.voice_id for voice in client.voices.list(page_size=1)] == [created.voice_id]
        client.voices.delete("me")
        with pytest.raises(VoiceNotFoundError):
            client.voices.get(created)

    def test_text_is_spoken_and_then_cached(self, client: Client) -> None:
        voice = client.voices.create(RECORDING, name="me")
        first = client.say(TEXT, voice="me", lang="fr", backend="qwen3-0.6b")
        assert first.duration_s == pytest.approx(len(TEXT) * 0.06, abs=0.01)
        assert first.tags  # the mark, which the client adds
        again = client.synthesize(TEXT, voice=voice, lang="fr", backend="qwen3-0.6b")
        assert (again.status, again.job_id) == (JobStatus.READY, None)
        assert np.array_equal(again.audio().samples, first.samples)

    def test_audio_is_fetched_from_the_address_of_the_key(
        self, client: Client, hosted: HostedService, tmp_path: Path
    ) -> None:
        client.voices.create(RECORDING, name="me")
        job = client.synthesize(TEXT, voice="me")
        assert client.jobs.get(str(job.job_id)).status is JobStatus.PENDING
        ready = job.wait()
        assert str(ready.audio_url).startswith("https://cdn.example.invalid/")  # and is not requested
        assert ready.download(tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"
        assert hosted.requests[-1].path == f"/v1/jobs/{job.job_id}/audio"

    def test_failures_raise_typed_errors(self, client: Client, hosted: HostedService) -> None:
        client.voices.create(RECORDING, name="me")
        with pytest.raises(JobFailedError) as failed:
            client.say("This will fail.", voice="me")
        assert failed.value.reason == "The worker could not speak the text."
        with pytest.raises(NotFoundError, check=has_code("job_not_found")):
            client.jobs.get(UNKNOWN_ID)
        job = client.synthesize(TEXT, voice="me").wait()
        del hosted.blobs[f"jobs/{job.job_id}.wav"]
        with pytest.raises(AudioMissingError if hosted.error_style == "object" else NotFoundError):
            job.audio()

    def test_timeout_stops_polling(self, make_client: ClientFactory) -> None:
        with HostedService(pending_s=60) as slow:
            client = make_client(slow.url, slow.api_key)
            client.voices.create(RECORDING, name="me")
            with pytest.raises(JobTimeoutError):
                client.say(TEXT, voice="me", timeout_s=0.2)
            assert len([seen for seen in slow.requests if seen.path.startswith("/v1/jobs/")]) < 6

    def test_keys_usage_and_health(self, client: Client, make_client: ClientFactory, hosted: HostedService) -> None:
        created = client.keys.create(label="theirs")
        assert (created.label, created.key_id) == ("theirs", None)
        theirs = make_client(hosted.url, created.api_key)
        assert (theirs.usage().characters, theirs.usage().limit) == (0, None)
        assert (theirs.health().version, theirs.health().backends) == (None, hosted.backends)


UNSUPPORTED: list[Callable[[Client], object]] = [
    lambda client: client.voices.export("me"),
    lambda client: client.voices.export(UNKNOWN_ID),
    lambda client: client.voices.import_(b"PK"),
    lambda client: client.voices.update("me", name="you"),
    lambda client: client.estimate(TEXT, voice="me"),
    lambda client: list(client.jobs.list()),
    lambda client: client.jobs.cancel(UNKNOWN_ID),
    lambda client: client.synthesize(TEXT, voice="me").cancel(),
    lambda client: client.keys.list(),
    lambda client: client.keys.revoke(UNKNOWN_ID),
    lambda client: client.keys.rotate(UNKNOWN_ID),
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
    @pytest.mark.parametrize("call", UNSUPPORTED, ids=range(len(UNSUPPORTED)))
    def test_unsupported_call_raises(self, client: Client, call: Callable[[Client], object]) -> None:
        client.voices.create(RECORDING, name="me")
        with pytest.raises(UnsupportedByServerError) as caught:
            call(client)
        assert (caught.value.code, caught.value.exit_code) == ("unsupported_by_server", 5)

    @pytest.mark.parametrize("call", IGNORED, ids=range(len(IGNORED)))
    def test_option_that_would_be_ignored_is_not_sent(
        self, client: Client, hosted: HostedService, call: Callable[[Client], object]
    ) -> None:
        client.voices.create(RECORDING, name="me")
        n_posts = sum(seen.method == "POST" for seen in hosted.requests)
        with pytest.raises(UnsupportedByServerError):
            call(client)
        assert sum(seen.method == "POST" for seen in hosted.requests) == n_posts

    @pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.HALF_BODY])
    @pytest.mark.parametrize(
        "call", [lambda client: client.keys.revoke(UNKNOWN_ID), lambda client: client.jobs.cancel(UNKNOWN_ID)]
    )
    def test_lost_404_is_not_success(
        self, make_client: ClientFactory, hosted: HostedService, fault: Fault, call: Callable[[Client], object]
    ) -> None:
        with FaultyServer(hosted.url) as faults:
            faults.inject(fault, method="DELETE", times=2)
            with pytest.raises(UnsupportedByServerError):
                call(make_client(faults.url, hosted.api_key, admin_secret=hosted.admin_secret))

    def test_unknown_voice_is_not_an_unsupported_call(self, client: Client) -> None:
        for call in (client.voices.get, client.voices.delete):
            with pytest.raises(VoiceNotFoundError):
                call(UNKNOWN_ID)

    @pytest.mark.parametrize("error_style", ["object", "string"])
    def test_kind_of_server_is_requested_once(
        self, make_client: ClientFactory, error_style: Literal["object", "string"]
    ) -> None:
        with HostedService(error_style=error_style) as hosted:
            client = make_client(hosted.url, hosted.api_key)
            for _ in range(3):
                with pytest.raises(UnsupportedByServerError):
                    list(client.jobs.list())
            assert [seen.path for seen in hosted.requests].count("/v1/health") == 1

    def test_first_failure_is_raised_if_health_fails_too(
        self, make_client: ClientFactory, hosted: HostedService
    ) -> None:
        with FaultyServer(hosted.url) as faults:
            client = make_client(faults.url, hosted.api_key)
            faults.inject(Fault.DROP_BEFORE, path="/v1/synthesize")
            faults.inject(Fault.HTML, path="/v1/health")
            with pytest.raises(ConnectionLostError):
                client.synthesize(TEXT, voice=UNKNOWN_ID)
