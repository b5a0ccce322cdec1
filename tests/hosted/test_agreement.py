"""Our server responds to each request with all that the hosted service does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.e2e.served import ADMIN_SECRET, RECORDING, Served, register, serving
from tests.hosted.audio import sine_wav
from tests.hosted.client import (
    UNKNOWN_ID,
    create_voice,
    error_code,
    http_client,
    speak_and_wait,
    synthesize,
    x_headers,
)
from tests.hosted.service import HostedService


@dataclass(frozen=True)
class Service:
    """One of the two services, with a voice and a job."""

    user: httpx.Client
    admin: httpx.Client
    lose: Callable[[str], object]
    voice_id: str
    job_id: str

    def lost_reference(self) -> httpx.Response:
        voice_id = register(self.user)
        self.lose(f"voices/{voice_id}/ref.wav")
        return synthesize(self.user, voice_id, "Reference lost.")

    def lost_audio(self, *, times: int) -> httpx.Response:
        job_id = speak_and_wait(self.user, self.voice_id, f"Lost, and requested {times} times.")
        self.lose(f"jobs/{job_id}.wav")
        return [self.user.get(f"/v1/jobs/{job_id}/audio") for _ in range(times)][-1]

    def job_of_lost_audio(self) -> httpx.Response:
        job_id = speak_and_wait(self.user, self.voice_id, "Lost for good.")
        self.lose(f"jobs/{job_id}.wav")
        self.user.get(f"/v1/jobs/{job_id}/audio")
        return self.user.get(f"/v1/jobs/{job_id}")

    def failed(self, path: str) -> httpx.Response:
        return self.user.get(f"/v1/jobs/{speak_and_wait(self.user, self.voice_id, 'fault-fail')}{path}")


@contextmanager
def open_service(url: str, key: str, admin_secret: str, lose: Callable[[str], object]) -> Iterator[Service]:
    with http_client(url, key) as user, http_client(url, admin_secret) as admin:
        voice_id = register(user)
        yield Service(user, admin, lose, voice_id, speak_and_wait(user, voice_id, "The same words."))


@pytest.fixture(scope="module")
def fake() -> Iterator[Service]:
    with (
        HostedService(backends=["tone"]) as hosted,
        open_service(hosted.url, hosted.api_key, hosted.admin_secret, hosted.blobs.pop) as fake,
    ):
        yield fake


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    def lose(path: str) -> None:
        (served.home / "server" / "blobs" / path).unlink()

    served: Served
    with (
        serving(tmp_path_factory.mktemp("ours") / "home") as served,
        open_service(served.url, served.key, ADMIN_SECRET, lose) as ours,
    ):
        yield ours


REQUESTS: dict[str, Callable[[Service], httpx.Response]] = {
    "health": lambda service: service.user.get("/v1/health"),
    "a key": lambda service: service.admin.post("/v1/keys"),
    "a key with a label": lambda service: service.admin.post("/v1/keys", json={"label": "mine", "unknown": 1}),
    "a key for a user": lambda service: service.user.post("/v1/keys"),
    "no key": lambda service: service.user.get("/v1/voices", headers={"Authorization": ""}),
    "another scheme": lambda service: service.user.get("/v1/voices", headers={"Authorization": "Basic dTpw"}),
    "the admin as a user": lambda service: service.admin.get("/v1/voices"),
    "a voice": lambda service: create_voice(service.user),
    "a voice with all": lambda service: create_voice(
        service.user, ref_text="Hello.", backend="tone", lang="en", family="us", x="1"
    ),
    "a voice of a regional language": lambda service: create_voice(service.user, lang="en-US"),
    "a voice without name": lambda service: service.user.post("/v1/voices", files={"ref_audio": ("a.wav", RECORDING)}),
    "a voice without sound": lambda service: service.user.post(
        "/v1/voices", data={"name": "me"}, files={"x": ("x", b"x")}
    ),
    "a voice of no WAV file": lambda service: create_voice(service.user, b"ID3 not a WAV file"),
    "a voice of 4.9 s": lambda service: create_voice(service.user, sine_wav(4.9)),
    "a voice of 60.1 s": lambda service: create_voice(service.user, sine_wav(60.1)),
    "a voice of 20 MiB and a byte": lambda service: create_voice(service.user, RECORDING.ljust(20 * 2**20 + 1, b"\0")),
    "a voice of another backend": lambda service: create_voice(service.user, backend="unknown"),
    "a voice of another language": lambda service: create_voice(service.user, lang="xx"),
    "a voice with a long name": lambda service: create_voice(service.user, name="n" * 201),
    "voices": lambda service: service.user.get("/v1/voices"),
    "the voice": lambda service: service.user.get(f"/v1/voices/{service.voice_id}"),
    "an unknown voice": lambda service: service.user.get(f"/v1/voices/{UNKNOWN_ID}"),
    "a malformed voice ID": lambda service: service.user.get("/v1/voices/nonsense"),
    "delete a voice": lambda service: service.user.delete(f"/v1/voices/{register(service.user)}"),
    "delete an unknown voice": lambda service: service.user.delete(f"/v1/voices/{UNKNOWN_ID}"),
    "a miss": lambda service: synthesize(service.user, service.voice_id, "New words."),
    "a hit": lambda service: synthesize(service.user, service.voice_id, "The same words."),
    "a hit with all named": lambda service: synthesize(
        service.user, service.voice_id, "The same words.", lang="en", backend="tone"
    ),
    "a hit in a regional language": lambda service: synthesize(
        service.user, service.voice_id, "The same words.", lang="en-GB"
    ),
    "speech of an unknown voice": lambda service: synthesize(service.user, UNKNOWN_ID, "hi"),
    "speech without voice": lambda service: service.user.post("/v1/synthesize", json={"text": "hi"}),
    "speech without text": lambda service: service.user.post("/v1/synthesize", json={"voice_id": service.voice_id}),
    "no JSON": lambda service: service.user.post(
        "/v1/synthesize", content=b"{", headers={"Content-Type": "application/json"}
    ),
    "an empty text": lambda service: synthesize(service.user, service.voice_id, ""),
    "5,000 characters": lambda service: synthesize(service.user, service.voice_id, "\U0001f600" * 5_000),
    "5,001 characters": lambda service: synthesize(service.user, service.voice_id, "a" * 5_001),
    "a NUL": lambda service: synthesize(service.user, service.voice_id, "a\0b"),
    "speech of another language": lambda service: synthesize(service.user, service.voice_id, "hi", lang="xx"),
    "speech of another backend": lambda service: synthesize(service.user, service.voice_id, "hi", backend="unknown"),
    "speech of a lost reference": lambda service: service.lost_reference(),
    "a ready job": lambda service: service.user.get(f"/v1/jobs/{service.job_id}"),
    "a failed job": lambda service: service.failed(""),
    "the audio of a failed job": lambda service: service.failed("/audio"),
    "an unknown job": lambda service: service.user.get(f"/v1/jobs/{UNKNOWN_ID}"),
    "the audio": lambda service: service.user.get(f"/v1/jobs/{service.job_id}/audio"),
    "a part of it": lambda service: service.user.get(
        f"/v1/jobs/{service.job_id}/audio", headers={"Range": "bytes=0-43"}
    ),
    "the audio of an unknown job": lambda service: service.user.get(f"/v1/jobs/{UNKNOWN_ID}/audio"),
    "lost audio": lambda service: service.lost_audio(times=1),
    "lost audio again": lambda service: service.lost_audio(times=2),
    "the job of lost audio": lambda service: service.job_of_lost_audio(),
    "usage": lambda service: service.user.get("/v1/usage"),
    "no route": lambda service: service.user.get("/v1/nothing"),
}


def fields_of(response: httpx.Response) -> set[str]:
    """Return the fields of a JSON body, of its items and of its error."""
    if response.headers.get("content-type") != "application/json":
        return set()
    body = response.json()
    if isinstance(body, list):
        return {f"[].{name}" for item in body for name in item}
    return set(body) | {f"error.{name}" for name in body["error"]} if response.is_error else set(body)


def status_of(response: httpx.Response) -> object:
    """Return the status in a body, of the service or of a job. Only our voices have one."""
    fields = fields_of(response)
    return response.json()["status"] if "status" in fields and "name" not in fields else None


OUR_CODES = {"a key for a user": "admin_required", "a voice of no WAV file": "unsupported_audio"}
"""Our server recognizes a valid key, and accepts more formats than WAV."""


@pytest.mark.parametrize("request_name", REQUESTS)
def test_our_server_responds_with_all_of_the_hosted_service(fake: Service, ours: Service, request_name: str) -> None:
    theirs, response = (REQUESTS[request_name](each) for each in (fake, ours))
    assert response.status_code == theirs.status_code
    assert response.headers.get("content-type") == theirs.headers.get("content-type")
    assert fields_of(theirs) <= fields_of(response)
    assert x_headers(theirs) <= x_headers(response)
    same = ("x-cache", "x-backend")
    assert [theirs.headers.get(name) for name in same] == [response.headers.get(name) for name in same]
    assert status_of(theirs) == status_of(response)
    if theirs.status_code >= 400:
        assert error_code(response) == OUR_CODES.get(request_name, error_code(theirs))
        assert theirs.json()["error"]["type"] == response.json()["error"]["type"]
    if theirs.status_code == 400:
        assert theirs.json()["error"]["param"] == response.json()["error"]["param"]
