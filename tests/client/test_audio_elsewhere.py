"""Audio that a server keeps in a storage: a redirect to it is followed, without the key, and its bytes are checked."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import pytest

from afterwords.audio.wav import canonical_wav
from afterwords.client.profiles import Access
from afterwords.client.requests import RETRIES, Request, Response
from afterwords.client.transport import audio_location
from afterwords.errors import InvalidResponseError, UnreachableError
from tests.client.both_clients import ClientFactory
from tests.client.canned import canned_responses
from tests.hosted.http_server import HttpResponse
from tests.s3 import free_port

WAV = canonical_wav(np.sin(np.arange(4_800, dtype=np.float32) / 9) * np.float32(0.3), 24_000)
GET_AUDIO = Request("GET", "/v1/jobs/1/audio", is_download=True)


def redirect(storage: str, wav: bytes = WAV) -> HttpResponse:
    headers = {"Location": f"{storage}/bucket/jobs/1.wav?signature=s", "ETag": f'"{sha256(wav).hexdigest()}"'}
    return HttpResponse(307, b"", "audio/wav", headers)


def stored(status: int = 200, body: bytes = WAV, **headers: str) -> HttpResponse:
    """Return a response of a storage, whose content type and ETag are its own."""
    return HttpResponse(status, body, "binary/octet-stream", {"ETag": '"0123456789abcdef"', **headers})


def test_redirect_to_a_storage_is_followed_without_the_key(make_client: ClientFactory) -> None:
    with canned_responses(stored()) as (storage, seen), canned_responses(redirect(storage)) as (url, asked):
        assert make_client(url, "aw_secret").jobs.data("some-job") == WAV
    assert [request.headers.get("authorization") for request in asked] == ["Bearer aw_secret"]
    assert [request.target for request in seen] == ["/bucket/jobs/1.wav?signature=s"]
    assert "aw_secret" not in str(seen)
    assert seen[0].headers["accept-encoding"] == "identity"


def test_lost_connection_to_a_storage_is_resumed(make_client: ClientFactory) -> None:
    half = len(WAV) // 2
    headers = {"Content-Type": "audio/wav", "Content-Length": str(len(WAV)), "Connection": "close"}
    rest = {"Content-Range": f"bytes {half}-{len(WAV) - 1}/{len(WAV)}"}
    parts = HttpResponse(200, WAV[:half], None, headers), stored(206, WAV[half:], **rest)
    with canned_responses(*parts) as (storage, seen), canned_responses(redirect(storage)) as (url, asked):
        assert make_client(url, "aw_x").jobs.data("some-job") == WAV
    assert [request.headers.get("range") for request in seen] == [None, f"bytes={half}-"]
    assert "if-range" not in seen[1].headers
    assert len(asked) == 2


@pytest.mark.parametrize("body", [WAV[:-1] + b"\x7f", WAV[:-2], b""])
def test_altered_or_short_audio_of_a_storage_is_refused(make_client: ClientFactory, body: bytes) -> None:
    with (
        canned_responses(stored(body=body)) as (storage, seen),
        canned_responses(redirect(storage)) as (url, _),
        pytest.raises(InvalidResponseError, match="do not match its digest"),
    ):
        make_client(url, "aw_x").jobs.data("some-job")
    assert len(seen) == RETRIES + 1


def test_refusal_of_a_storage_is_an_error(make_client: ClientFactory) -> None:
    refused = HttpResponse(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
    with (
        canned_responses(refused) as (storage, seen),
        canned_responses(redirect(storage)) as (url, _),
        pytest.raises(InvalidResponseError, match="status 403"),
    ):
        make_client(url, "aw_x").jobs.data("some-job")
    assert len(seen) == 1


def test_unreachable_storage_is_named(make_client: ClientFactory) -> None:
    storage = f"http://127.0.0.1:{free_port()}"
    with canned_responses(redirect(storage)) as (url, _), pytest.raises(UnreachableError, match=storage) as caught:
        make_client(url, "aw_x").jobs.data("some-job")
    assert "signature" not in str(caught.value)


def test_storage_may_not_redirect_again(make_client: ClientFactory) -> None:
    with (
        canned_responses(stored()) as (third, seen),
        canned_responses(redirect(third)) as (second, _),
        canned_responses(redirect(second)) as (url, _),
        pytest.raises(InvalidResponseError, match="redirects"),
    ):
        make_client(url, "aw_x").jobs.data("some-job")
    assert seen == []


@pytest.mark.parametrize(
    ("server", "headers", "request_"),
    [
        ("https://a.example", {"location": "http://storage.example/1.wav"}, GET_AUDIO),
        ("http://127.0.0.1:1", {"location": "file:///etc/passwd"}, GET_AUDIO),
        ("http://127.0.0.1:1", {"location": "/elsewhere"}, GET_AUDIO),
        ("http://127.0.0.1:1", {"location": "http://a:b/"}, GET_AUDIO),
        ("http://127.0.0.1:1", {}, GET_AUDIO),
        ("http://127.0.0.1:1", {"location": "http://storage.example/"}, Request("GET", "/v1/voices")),
        ("http://127.0.0.1:1", {"location": "http://storage.example/"}, Request("POST", "/", is_download=True)),
    ],
)
def test_other_redirects_are_not_followed(server: str, headers: Mapping[str, str], request_: Request) -> None:
    assert audio_location(request_, Response(307, headers), Access(server, "aw_x")) is None
    elsewhere = {"location": "https://storage.example/1.wav"}
    assert str(audio_location(GET_AUDIO, Response(307, elsewhere), Access(server, "aw_x"))) == elsewhere["location"]
