"""The fake hosted service responds as the tables in docs/api.md say, and with nothing more."""

from __future__ import annotations

import ast
import json
import re
import threading
import wave
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.served import RECORDING, register, submit_text
from tests.hosted.client import (
    UNKNOWN_ID,
    create_voice,
    error_code,
    http_client,
    speak_and_wait,
    synthesize,
    wait_for_job,
    x_headers,
)
from tests.hosted.service import HostedService

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SPEECH_HEADERS = {"x-cache", "x-voice-id", "x-backend", "x-synthesis-time-ms"}


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedService]:
    with HostedService() as service:
        yield service


@pytest.fixture
def user(hosted: HostedService) -> Iterator[httpx.Client]:
    """Yield a client with its own account."""
    with http_client(hosted.url, hosted.admin_secret) as admin:
        key = admin.post("/v1/keys").json()["api_key"]
    with http_client(hosted.url, key) as client:
        yield client


@pytest.fixture
def voice_id(user: httpx.Client) -> str:
    return register(user, wav=RECORDING)


class TestRows:
    """Each row of the table: the status, the exact fields and the exact headers."""

    def test_health_has_no_version_and_needs_no_key(self, hosted: HostedService) -> None:
        response = httpx.get(f"{hosted.url}/v1/health", trust_env=False)
        assert (response.status_code, x_headers(response)) == (200, set())
        assert response.json() == {"status": "ok", "backends": ["qwen3-1.7b", "qwen3-0.6b"]}

    @pytest.mark.parametrize("body", [None, {}, {"label": "mine", "scopes": ["synthesize"], "character_limit": 1}])
    def test_admin_creates_a_key(self, hosted: HostedService, body: dict[str, Any] | None) -> None:
        with http_client(hosted.url, hosted.admin_secret) as admin:
            response = admin.post("/v1/keys") if body is None else admin.post("/v1/keys", json=body)
        created = response.json()
        assert (response.status_code, set(created)) == (201, {"api_key", "label", "created_at"})
        assert (created["api_key"][:3], created["label"]) == ("aw_", (body or {}).get("label"))
        assert TIME.fullmatch(created["created_at"])

    def test_voice_is_created_with_the_best_backend(self, user: httpx.Client) -> None:
        response = create_voice(user)
        created = response.json()
        assert (response.status_code, x_headers(response)) == (201, set())
        assert set(created) == {"voice_id", "name", "backend", "created_at"}
        assert (created["name"], created["backend"]) == ("me", "qwen3-1.7b")

    def test_list_has_no_pages_and_only_own_voices(self, user: httpx.Client) -> None:
        created = [register(user, name=f"voice {n}") for n in range(3)]
        response = user.get("/v1/voices", params={"limit": 1, "after": created[0]})
        assert [voice["voice_id"] for voice in response.json()] == created
        assert {frozenset(voice) for voice in response.json()} == {
            frozenset({"voice_id", "name", "backend", "lang", "created_at"})
        }
        assert "link" not in response.headers

    def test_voice_has_the_columns_of_its_table(self, hosted: HostedService, user: httpx.Client) -> None:
        voice_id = create_voice(user, ref_text="Öffne — 开门", lang="de", family="us", consent="self").json()[
            "voice_id"
        ]
        shown = user.get(f"/v1/voices/{voice_id}").json()
        del shown["created_at"]
        assert shown == {
            "voice_id": voice_id,
            "name": "me",
            "backend": "qwen3-1.7b",
            "ref_text": "Öffne — 开门",
            "lang": "de",
            "family": "us",
            "ref_audio_key": f"voices/{voice_id}/ref.wav",
            "metadata": None,
        }
        assert hosted.blobs[shown["ref_audio_key"]] == RECORDING

    def test_metadata_is_json_in_a_string(self, hosted: HostedService, user: httpx.Client, voice_id: str) -> None:
        hosted.annotate(voice_id, mood="calm")
        assert json.loads(user.get(f"/v1/voices/{voice_id}").json()["metadata"]) == {"mood": "calm"}

    def test_deleting_a_voice_deletes_its_jobs_and_audio(
        self, hosted: HostedService, user: httpx.Client, voice_id: str
    ) -> None:
        job_id = speak_and_wait(user, voice_id, "This will be deleted.")
        assert any(job_id in path for path in hosted.blobs)
        response = user.delete(f"/v1/voices/{voice_id}")
        assert (response.status_code, response.content) == (204, b"")
        assert not any(voice_id in path or job_id in path for path in hosted.blobs)
        assert [user.get(f"/v1/{path}").status_code for path in (f"voices/{voice_id}", f"jobs/{job_id}")] == [404, 404]

    def test_miss_is_a_job_and_hit_is_audio(self, user: httpx.Client, voice_id: str) -> None:
        miss = synthesize(user, voice_id, "Once, and again.")
        assert (miss.status_code, miss.json()) == (202, {"job_id": miss.json()["job_id"], "status": "pending"})
        wait_for_job(user, miss.json()["job_id"])
        hit = synthesize(user, voice_id, "Once, and again.", lang="en", backend="qwen3-1.7b")
        assert (hit.status_code, hit.headers["content-type"]) == (200, "audio/wav")
        assert [x_headers(miss), x_headers(hit)] == [SPEECH_HEADERS, SPEECH_HEADERS]
        about = [[each.headers[name] for name in ("x-cache", "x-voice-id", "x-backend")] for each in (miss, hit)]
        assert about == [["MISS", voice_id, "qwen3-1.7b"], ["HIT", voice_id, "qwen3-1.7b"]]
        assert (miss.headers["x-synthesis-time-ms"], hit.headers["x-synthesis-time-ms"].isdigit()) == ("-1", True)

    @pytest.mark.parametrize("other", [{"lang": "fr"}, {"backend": "qwen3-0.6b"}])
    def test_other_language_or_backend_is_a_miss(
        self, user: httpx.Client, voice_id: str, other: dict[str, str]
    ) -> None:
        speak_and_wait(user, voice_id, "Bonjour.")
        assert synthesize(user, voice_id, "Bonjour.", **other).headers["x-cache"] == "MISS"

    def test_job_is_pending_twice_and_then_ready(self, user: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(user, voice_id, "Poll this twice.")
        responses = [user.get(f"/v1/jobs/{job_id}", params={"wait": 30}) for _ in range(3)]
        assert [response.json() for response in responses] == [
            {"job_id": job_id, "status": "pending"},
            {"job_id": job_id, "status": "pending"},
            {"job_id": job_id, "status": "ready", "audio_url": f"https://cdn.example.invalid/v1/jobs/{job_id}/audio"},
        ]
        assert [x_headers(response) for response in responses] == [set(), set(), set()]

    def test_failed_job_is_free_of_charge(self, user: httpx.Client, voice_id: str) -> None:
        job = wait_for_job(user, submit_text(user, voice_id, "It will fail."))
        assert (set(job), job["status"]) == ({"job_id", "status", "error"}, "failed")
        assert user.get(f"/v1/jobs/{job['job_id']}/audio").status_code == 404
        assert user.get("/v1/usage").json()["characters"] == 0

    def test_duration_grows_with_the_text(self, user: httpx.Client, voice_id: str) -> None:
        lengths = []
        for text in ("Short.", "Ten times as long. " * 10):
            response = user.get(f"/v1/jobs/{speak_and_wait(user, voice_id, text)}/audio")
            assert (response.headers["content-type"], x_headers(response)) == ("audio/wav", {"x-job-id"})
            assert not {"etag", "cache-control"} & set(response.headers)
            with wave.open(BytesIO(response.content)) as wav:
                lengths.append(wav.getnframes() / wav.getframerate() / len(text))
        assert lengths == pytest.approx([0.06, 0.06], rel=0.02)

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [("bytes=10-19", slice(10, 20)), ("bytes=-5", slice(-5, None)), ("bytes=100-", slice(100, None))],
    )
    def test_range_returns_a_part(self, user: httpx.Client, voice_id: str, wanted: str, part: slice) -> None:
        url = f"/v1/jobs/{speak_and_wait(user, voice_id, 'In parts.')}/audio"
        whole, response = user.get(url), user.get(url, headers={"Range": wanted})
        assert (response.status_code, response.content) == (206, whole.content[part])
        assert response.headers["content-range"].endswith(f"/{len(whole.content)}")

    def test_range_beyond_the_end_returns_416(self, user: httpx.Client, voice_id: str) -> None:
        url = f"/v1/jobs/{speak_and_wait(user, voice_id, 'To the end.')}/audio"
        size = len(user.get(url).content)
        response = user.get(url, headers={"Range": f"bytes={size}-"})
        assert (response.status_code, response.headers["content-range"]) == (416, f"bytes */{size}")

    def test_usage_counts_characters_without_cache_hits(self, user: httpx.Client, voice_id: str) -> None:
        speak_and_wait(user, voice_id, "Twelve chars")
        synthesize(user, voice_id, "Twelve chars")
        usage = user.get("/v1/usage").json()
        assert set(usage) == {"characters", "limit", "period_start", "period_end"}
        assert (usage["characters"], usage["limit"]) == (12, None)
        assert usage["period_start"] < usage["period_end"]


class TestMissingFeatures:
    """Features of our server are missing, and their options are ignored."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/keys"),
            ("DELETE", f"/v1/keys/{UNKNOWN_ID}"),
            ("POST", f"/v1/keys/{UNKNOWN_ID}/rotate"),
            ("PATCH", f"/v1/voices/{UNKNOWN_ID}"),
            ("GET", f"/v1/voices/{UNKNOWN_ID}/export"),
            ("POST", "/v1/voices/import"),
            ("GET", "/v1/jobs"),
            ("DELETE", f"/v1/jobs/{UNKNOWN_ID}"),
            ("PUT", f"/v1/jobs/{UNKNOWN_ID}/audio"),
            ("POST", "/v1/audio/speech"),
            ("GET", "/v1/models"),
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
        ],
    )
    def test_route_of_our_server_returns_404(self, user: httpx.Client, method: str, path: str) -> None:
        response = user.request(method, path)
        assert (response.status_code, error_code(response)) == (404, "not_found")

    def test_idempotency_key_is_ignored(self, user: httpx.Client) -> None:
        user.headers["Idempotency-Key"] = "once"
        voices = {register(user) for _ in range(2)}
        assert len(voices) == 2
        assert len({submit_text(user, voices.copy().pop(), "Once.") for _ in range(2)}) == 2

    def test_long_polls_formats_and_streams_are_ignored(self, user: httpx.Client, voice_id: str) -> None:
        options = {"speed": 2, "seed": 7, "response_format": "mp3", "stream": True, "webhook_url": "http://127.0.0.1/"}
        user.headers["Prefer"] = "wait=30"
        miss = synthesize(user, voice_id, "Hello.", **options)
        assert (miss.status_code, miss.json()["status"]) == (202, "pending")
        wait_for_job(user, miss.json()["job_id"])
        hit = synthesize(user, voice_id, "Hello.")
        assert (hit.headers["x-cache"], hit.headers["content-type"]) == ("HIT", "audio/wav")

    def test_headers_of_our_server_are_missing(self, user: httpx.Client, voice_id: str) -> None:
        responses = [
            synthesize(user, voice_id, "No headers."),
            user.get("/v1/voices"),
            user.get(f"/v1/jobs/{UNKNOWN_ID}"),
        ]
        names = {"retry-after", "x-request-id", "etag", "link", "ratelimit-limit", "accept-ranges"}
        assert not [names & set(response.headers) for response in responses if names & set(response.headers)]

    def test_fake_does_not_import_the_package(self) -> None:
        names = []
        for module in ("service.py", "audio.py", "http_server.py"):
            for node in ast.walk(ast.parse(Path(__file__).with_name(module).read_text())):
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {"json", "tests.hosted.http_server"} <= set(names)
        assert not [name for name in names if name.split(".")[0] in ("afterwords", "fastapi", "httpx")]


class TestOptions:
    """Options of the fake, and its behavior as a server."""

    def test_errors_can_be_strings(self) -> None:
        with HostedService(error_style="string") as plain, http_client(plain.url, plain.api_key) as client:
            response = client.get(f"/v1/voices/{UNKNOWN_ID}")
        assert (response.status_code, response.json()) == (404, {"error": "There is no such voice."})

    def test_errors_are_objects(self, user: httpx.Client) -> None:
        response = create_voice(user, lang="xx")
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (422, "unsupported_lang", "lang")
        assert set(error) == {"code", "message", "type", "param", "request_id"}

    def test_job_is_ready_at_once_without_pending_looks(self) -> None:
        with HostedService(pending_looks=0) as quick, http_client(quick.url, quick.api_key) as client:
            job_id = submit_text(client, register(client), "At once.")
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "ready"

    def test_job_is_pending_for_pending_s(self) -> None:
        with HostedService(pending_looks=0, pending_s=3600) as slow, http_client(slow.url, slow.api_key) as client:
            job_id = submit_text(client, register(client), "In an hour.")
            assert {client.get(f"/v1/jobs/{job_id}").json()["status"] for _ in range(5)} == {"pending"}
            assert error_code(client.get(f"/v1/jobs/{job_id}/audio")) == "job_not_ready"

    def test_lite_speaks_english_only(self) -> None:
        with HostedService(backends=["lite"]) as lite, http_client(lite.url, lite.api_key) as client:
            assert create_voice(client).json()["backend"] == "lite"
            assert error_code(create_voice(client, lang="fr")) == "unsupported_lang"

    def test_requests_are_logged(self, hosted: HostedService, user: httpx.Client) -> None:
        user.get("/v1/jobs/none", params={"wait": 5}, headers={"Prefer": "wait=5"})
        method, path, headers = hosted.requests[-1]
        assert (method, path, headers["prefer"]) == ("GET", "/v1/jobs/none?wait=5", "wait=5")

    def test_chunked_body_is_read(self, user: httpx.Client, voice_id: str) -> None:
        body = json.dumps({"voice_id": voice_id, "text": "In chunks."}).encode()
        assert user.post("/v1/synthesize", content=(body[n : n + 7] for n in range(0, len(body), 7))).status_code == 202

    def test_requests_can_be_concurrent(self, hosted: HostedService) -> None:
        created: list[str] = []

        def work() -> None:
            with http_client(hosted.url, hosted.api_key) as client:
                voice = register(client)
                created.extend(speak_and_wait(client, voice, f"Text {n}.") for n in range(3))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(created)) == 24

    def test_service_ends_while_a_client_is_connected(self) -> None:
        before = set(threading.enumerate())
        with HostedService() as service:
            client = http_client(service.url, service.api_key)
            assert client.get("/v1/voices").status_code == 200
        client.close()
        assert not set(threading.enumerate()) - before
