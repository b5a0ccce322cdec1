"""A server with its audio in a bucket: downloads that go to the bucket, and buckets that can't be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from afterwords import Client
from tests.cli.program import run
from tests.e2e.served import Served, register, serving, submit_text, wait_for_job
from tests.s3 import S3, free_port, running_s3

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-bucket"}
TEXT = "This is in a bucket."


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def served(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {**KEYS, "AFTERWORDS_STORAGE_URL": s3.new_bucket(), "AFTERWORDS_AUDIO_REDIRECT": "true"}
    with serving(tmp_path_factory.mktemp("served") / "home", settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as http:
        yield http


@pytest.fixture(scope="module")
def voice_id(client: httpx.Client) -> str:
    return register(client)


def speak(client: httpx.Client, voice_id: str, text: str, **fields: str) -> str:
    """Return the path of the audio of a job that is ready."""
    job_id = submit_text(client, voice_id, text, **fields)
    assert wait_for_job(client, job_id)["status"] == "ready"
    return f"/v1/jobs/{job_id}/audio"


@pytest.fixture(scope="module")
def path(client: httpx.Client, voice_id: str) -> str:
    return speak(client, voice_id, TEXT)


def test_download_is_redirected_to_a_signed_url(client: httpx.Client, path: str, s3: S3, served: Served) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (307, b"")
    assert answer.headers["cache-control"] == "private, no-store"
    url = answer.headers["location"]
    assert url.startswith(f"{s3.url}/")
    assert "X-Amz-Expires=300&" in url
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in url
    audio = httpx.get(url)
    assert audio.status_code == 200
    assert sha256(audio.content).hexdigest() == answer.headers["etag"].strip('"')
    assert (audio.headers["content-type"], audio.headers["cache-control"]) == ("audio/wav", "private, no-store")
    part = httpx.get(url, headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, audio.content[4:12])
    assert "X-Amz" not in served.log.read_text()


def test_clients_follow_the_redirect_without_their_key(
    client: httpx.Client, served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(served.url, api_key=served.key) as sdk, caplog.at_level(logging.INFO, "httpx"):
        audio = sdk.jobs.data(path.split("/")[3])
    assert len(caplog.messages) == 2
    assert "X-Amz" not in caplog.text  # anyone can use a signed URL
    with httpx.Client(follow_redirects=True, headers=client.headers) as browser:
        assert browser.get(f"{served.url}{path}").content == audio
    assert audio.startswith(b"RIFF")


def test_everything_else_is_answered_by_the_server(
    client: httpx.Client, served: Served, voice_id: str, path: str
) -> None:
    head = client.head(path)
    assert (head.status_code, head.headers["content-type"]) == (200, "audio/wav")
    hit = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": TEXT})
    assert (hit.status_code, hit.headers["x-cache"], hit.content[:4]) == (200, "HIT", b"RIFF")
    flac = client.get(speak(client, voice_id, "This is converted.", response_format="flac"))
    assert (flac.status_code, flac.headers["content-type"], flac.content[:4]) == (200, "audio/flac", b"fLaC")
    with served.client(served.new_key()) as other:
        assert other.get(path).status_code == 404


def test_audio_missing_in_the_bucket_fails_its_job(client: httpx.Client, s3: S3, voice_id: str) -> None:
    path = speak(client, voice_id, "This gets lost.")
    s3.delete(client.get(path).headers["location"])
    answers = [client.get(path) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [500, 404]
    assert answers[0].json()["error"]["code"] == "audio_lost"


# -- at start -------------------------------------------------------------------------------------------------


def refusal(storage_url: str, code: str, exit_code: int) -> str:
    env = {**KEYS, "AFTERWORDS_BACKENDS": "tone", "AFTERWORDS_TESTING": "1", "AFTERWORDS_STORAGE_URL": storage_url}
    return run("serve", "--port", "0", env=env).expect_error(exit_code, code)


def test_server_with_a_missing_bucket_does_not_start(s3: S3, tmp_path: Path) -> None:
    error = refusal(s3.storage_url("no-such-bucket"), "storage_refused", 2)
    assert "The bucket no-such-bucket can't be listed and read: the storage answers NoSuchBucket." in error
    assert "Fix: create the bucket" in error
    assert not list(tmp_path.rglob("afterwords.db"))


def test_server_with_a_storage_that_is_down_does_not_start() -> None:
    url = f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=auto"
    assert "Fix: start it, or correct AFTERWORDS_STORAGE_URL." in refusal(url, "storage_unavailable", 8)


def test_redirects_need_a_bucket() -> None:
    env = {"AFTERWORDS_BACKENDS": "tone", "AFTERWORDS_TESTING": "1", "AFTERWORDS_AUDIO_REDIRECT": "true"}
    error = run("serve", "--port", "0", env=env).expect_error(5, "invalid_option")
    assert "AFTERWORDS_AUDIO_REDIRECT" in error
    assert "false, unless AFTERWORDS_STORAGE_URL is s3://" in error
