"""The same exchange with the hosted service's twin and with our server: ours answers all that the hosted one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.e2e.served import ADMIN_SECRET, Served, register, serving
from tests.hosted.client import NOBODY, RECORDING, ask, client_of, code_of, create, spoken, x_headers
from tests.hosted.service import HostedService
from tests.hosted.sound import sine_wav


@dataclass(frozen=True)
class Side:
    """One of the two, with a voice that has spoken."""

    user: httpx.Client
    admin: httpx.Client
    lose: Callable[[str], object]
    voice_id: str
    job_id: str

    def lost_reference(self) -> httpx.Response:
        voice_id = register(self.user)
        self.lose(f"voices/{voice_id}/ref.wav")
        return ask(self.user, voice_id, "Who am I?")

    def lost_audio(self, *, times: int) -> httpx.Response:
        job_id = spoken(self.user, self.voice_id, f"Lost, and asked for: {times}.")
        self.lose(f"jobs/{job_id}.wav")
        return [self.user.get(f"/v1/jobs/{job_id}/audio") for _ in range(times)][-1]

    def job_of_lost_audio(self) -> httpx.Response:
        job_id = spoken(self.user, self.voice_id, "Lost for good.")
        self.lose(f"jobs/{job_id}.wav")
        self.user.get(f"/v1/jobs/{job_id}/audio")
        return self.user.get(f"/v1/jobs/{job_id}")

    def failed(self, path: str) -> httpx.Response:
        return self.user.get(f"/v1/jobs/{spoken(self.user, self.voice_id, 'fault-fail it must')}{path}")


@contextmanager
def side(url: str, key: str, admin_secret: str, lose: Callable[[str], object]) -> Iterator[Side]:
    with client_of(url, key) as user, client_of(url, admin_secret) as admin:
        voice_id = register(user)
        yield Side(user, admin, lose, voice_id, spoken(user, voice_id, "The same words."))


@pytest.fixture(scope="module")
def twin() -> Iterator[Side]:
    with (
        HostedService(backends=["tone"]) as service,
        side(service.url, service.api_key, service.admin_secret, service.blobs.pop) as twin,
    ):
        yield twin


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    def lose(path: str) -> None:
        (served.home / "server" / "blobs" / path).unlink()

    served: Served
    with (
        serving(tmp_path_factory.mktemp("ours") / "home") as served,
        side(served.url, served.key, ADMIN_SECRET, lose) as ours,
    ):
        yield ours


EXCHANGES: dict[str, Callable[[Side], httpx.Response]] = {
    "health": lambda side: side.user.get("/v1/health"),
    "a key": lambda side: side.admin.post("/v1/keys"),
    "a key with a label": lambda side: side.admin.post("/v1/keys", json={"label": "mine", "unknown": 1}),
    "a key for a user": lambda side: side.user.post("/v1/keys"),
    "no key": lambda side: side.user.get("/v1/voices", headers={"Authorization": ""}),
    "another scheme": lambda side: side.user.get("/v1/voices", headers={"Authorization": "Basic dTpw"}),
    "the admin as a user": lambda side: side.admin.get("/v1/voices"),
    "a voice": lambda side: create(side.user),
    "a voice with all": lambda side: create(side.user, ref_text="Hear.", backend="tone", lang="en", family="us", x="1"),
    "a voice of a regional language": lambda side: create(side.user, lang="en-US"),
    "a voice without name": lambda side: side.user.post("/v1/voices", files={"ref_audio": ("a.wav", RECORDING)}),
    "a voice without sound": lambda side: side.user.post("/v1/voices", data={"name": "me"}, files={"x": ("x", b"x")}),
    "a voice of no WAV": lambda side: create(side.user, b"ID3 this is no WAV"),
    "a voice of 4.9 s": lambda side: create(side.user, sine_wav(4.9)),
    "a voice of 60.1 s": lambda side: create(side.user, sine_wav(60.1)),
    "a voice of 20 MiB and a byte": lambda side: create(side.user, RECORDING.ljust(20 * 2**20 + 1, b"\0")),
    "a voice of another backend": lambda side: create(side.user, backend="nobody"),
    "a voice of another language": lambda side: create(side.user, lang="xx"),
    "a voice with a long name": lambda side: create(side.user, name="n" * 201),
    "voices": lambda side: side.user.get("/v1/voices"),
    "the voice": lambda side: side.user.get(f"/v1/voices/{side.voice_id}"),
    "the voice of nobody": lambda side: side.user.get(f"/v1/voices/{NOBODY}"),
    "no voice id": lambda side: side.user.get("/v1/voices/nonsense"),
    "delete a voice": lambda side: side.user.delete(f"/v1/voices/{register(side.user)}"),
    "delete nobody": lambda side: side.user.delete(f"/v1/voices/{NOBODY}"),
    "a miss": lambda side: ask(side.user, side.voice_id, "New words."),
    "a hit": lambda side: ask(side.user, side.voice_id, "The same words."),
    "a hit with all named": lambda side: ask(side.user, side.voice_id, "The same words.", lang="en", backend="tone"),
    "a hit in a regional language": lambda side: ask(side.user, side.voice_id, "The same words.", lang="en-GB"),
    "speech of nobody": lambda side: ask(side.user, NOBODY, "hi"),
    "speech without voice": lambda side: side.user.post("/v1/synthesize", json={"text": "hi"}),
    "speech without text": lambda side: side.user.post("/v1/synthesize", json={"voice_id": side.voice_id}),
    "no JSON": lambda side: side.user.post(
        "/v1/synthesize", content=b"{", headers={"Content-Type": "application/json"}
    ),
    "an empty text": lambda side: ask(side.user, side.voice_id, ""),
    "5,000 characters": lambda side: ask(side.user, side.voice_id, "\U0001f600" * 5_000),
    "5,001 characters": lambda side: ask(side.user, side.voice_id, "a" * 5_001),
    "a NUL": lambda side: ask(side.user, side.voice_id, "a\0b"),
    "speech of another language": lambda side: ask(side.user, side.voice_id, "hi", lang="xx"),
    "speech of another backend": lambda side: ask(side.user, side.voice_id, "hi", backend="nobody"),
    "speech of a lost reference": lambda side: side.lost_reference(),
    "a ready job": lambda side: side.user.get(f"/v1/jobs/{side.job_id}"),
    "a failed job": lambda side: side.failed(""),
    "the audio of a failed job": lambda side: side.failed("/audio"),
    "the job of nobody": lambda side: side.user.get(f"/v1/jobs/{NOBODY}"),
    "the audio": lambda side: side.user.get(f"/v1/jobs/{side.job_id}/audio"),
    "a part of it": lambda side: side.user.get(f"/v1/jobs/{side.job_id}/audio", headers={"Range": "bytes=0-43"}),
    "the audio of nobody": lambda side: side.user.get(f"/v1/jobs/{NOBODY}/audio"),
    "lost audio": lambda side: side.lost_audio(times=1),
    "lost audio again": lambda side: side.lost_audio(times=2),
    "the job of lost audio": lambda side: side.job_of_lost_audio(),
    "usage": lambda side: side.user.get("/v1/usage"),
    "no route": lambda side: side.user.get("/v1/nothing"),
}


def fields_of(answer: httpx.Response) -> set[str]:
    """The fields of a JSON body, those of an item, if it is a list, and those of its error."""
    if answer.headers.get("content-type") != "application/json":
        return set()
    body = answer.json()
    if isinstance(body, list):
        return {f"[].{name}" for item in body for name in item}
    return set(body) | {f"error.{name}" for name in body["error"]} if answer.is_error else set(body)


def state_of(answer: httpx.Response) -> object:
    """The status that a body tells: of the service or of a job."""
    return answer.json().get("status") if "status" in fields_of(answer) else None


OUR_CODES = {"a key for a user": "admin_required", "a voice of no WAV": "unsupported_audio"}
"""Where our server says more: that the key is good, and that it takes other formats than WAV, too."""


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_our_server_answers_all_that_the_hosted_one_does(twin: Side, ours: Side, exchange: str) -> None:
    theirs, answer = (EXCHANGES[exchange](one) for one in (twin, ours))
    assert answer.status_code == theirs.status_code
    assert answer.headers.get("content-type") == theirs.headers.get("content-type")
    assert fields_of(theirs) <= fields_of(answer)
    assert x_headers(theirs) <= x_headers(answer)
    same = ("x-cache", "x-backend")
    assert [theirs.headers.get(name) for name in same] == [answer.headers.get(name) for name in same]
    assert state_of(theirs) == state_of(answer)
    if theirs.status_code >= 400:
        assert code_of(answer) == OUR_CODES.get(exchange, code_of(theirs))
        assert theirs.json()["error"]["type"] == answer.json()["error"]["type"]
    if theirs.status_code == 400:
        assert theirs.json()["error"]["param"] == answer.json()["error"]["param"]
