"""The twin of the hosted service answers as the tables in docs/api.md say, row by row, and nothing more."""

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

from tests.e2e.served import register, speak
from tests.hosted.client import NOBODY, RECORDING, ask, client_of, code_of, create, final, spoken, x_headers
from tests.hosted.service import HostedService

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ABOUT_SPEECH = {"x-cache", "x-voice-id", "x-backend", "x-synthesis-time-ms"}


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedService]:
    with HostedService() as service:
        yield service


@pytest.fixture
def user(hosted: HostedService) -> Iterator[httpx.Client]:
    """A client whose key has an account of its own."""
    with client_of(hosted.url, hosted.admin_secret) as admin:
        key = admin.post("/v1/keys").json()["api_key"]
    with client_of(hosted.url, key) as client:
        yield client


@pytest.fixture
def voice_id(user: httpx.Client) -> str:
    return register(user, wav=RECORDING)


class TestRows:
    """Each row of the table: the status, the exact fields and the exact headers."""

    def test_health_has_no_version_and_needs_no_key(self, hosted: HostedService) -> None:
        answer = httpx.get(f"{hosted.url}/v1/health", trust_env=False)
        assert (answer.status_code, x_headers(answer)) == (200, set())
        assert answer.json() == {"status": "ok", "backends": ["qwen3-1.7b", "qwen3-0.6b"]}

    @pytest.mark.parametrize("body", [None, {}, {"label": "mine", "scopes": ["synthesize"], "character_limit": 1}])
    def test_the_admin_makes_a_key(self, hosted: HostedService, body: dict[str, Any] | None) -> None:
        with client_of(hosted.url, hosted.admin_secret) as admin:
            answer = admin.post("/v1/keys") if body is None else admin.post("/v1/keys", json=body)
        made = answer.json()
        assert (answer.status_code, set(made)) == (201, {"api_key", "label", "created_at"})
        assert (made["api_key"][:3], made["label"]) == ("aw_", (body or {}).get("label"))
        assert TIME.fullmatch(made["created_at"])

    def test_a_voice_is_registered_with_the_best_backend(self, user: httpx.Client) -> None:
        answer = create(user)
        made = answer.json()
        assert (answer.status_code, x_headers(answer)) == (201, set())
        assert set(made) == {"voice_id", "name", "backend", "created_at"}
        assert (made["name"], made["backend"]) == ("me", "qwen3-1.7b")

    def test_voices_are_listed_without_pages_and_without_those_of_others(self, user: httpx.Client) -> None:
        made = [register(user, name=f"voice {n}") for n in range(3)]
        answer = user.get("/v1/voices", params={"limit": 1, "after": made[0]})
        assert [voice["voice_id"] for voice in answer.json()] == made
        assert {frozenset(voice) for voice in answer.json()} == {
            frozenset({"voice_id", "name", "backend", "lang", "created_at"})
        }
        assert "link" not in answer.headers

    def test_a_voice_shows_the_columns_of_its_table(self, hosted: HostedService, user: httpx.Client) -> None:
        voice_id = create(user, ref_text="Öffne — 开门", lang="de", family="us", consent="self").json()["voice_id"]
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

    def test_deleting_a_voice_leaves_nothing(self, hosted: HostedService, user: httpx.Client, voice_id: str) -> None:
        job_id = spoken(user, voice_id, "This will be deleted.")
        assert any(job_id in path for path in hosted.blobs)
        answer = user.delete(f"/v1/voices/{voice_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert not any(voice_id in path or job_id in path for path in hosted.blobs)
        assert [user.get(f"/v1/{path}").status_code for path in (f"voices/{voice_id}", f"jobs/{job_id}")] == [404, 404]

    def test_a_miss_is_a_job_and_a_hit_is_audio(self, user: httpx.Client, voice_id: str) -> None:
        miss = ask(user, voice_id, "Once, and again.")
        assert (miss.status_code, miss.json()) == (202, {"job_id": miss.json()["job_id"], "status": "pending"})
        final(user, miss.json()["job_id"])
        hit = ask(user, voice_id, "Once, and again.", lang="en", backend="qwen3-1.7b")
        assert (hit.status_code, hit.headers["content-type"]) == (200, "audio/wav")
        assert [x_headers(miss), x_headers(hit)] == [ABOUT_SPEECH, ABOUT_SPEECH]
        about = [[answer.headers[name] for name in ("x-cache", "x-voice-id", "x-backend")] for answer in (miss, hit)]
        assert about == [["MISS", voice_id, "qwen3-1.7b"], ["HIT", voice_id, "qwen3-1.7b"]]
        assert (miss.headers["x-synthesis-time-ms"], hit.headers["x-synthesis-time-ms"].isdigit()) == ("-1", True)

    @pytest.mark.parametrize("other", [{"lang": "fr"}, {"backend": "qwen3-0.6b"}])
    def test_another_language_or_backend_is_a_miss(
        self, user: httpx.Client, voice_id: str, other: dict[str, str]
    ) -> None:
        spoken(user, voice_id, "Bonjour.")
        assert ask(user, voice_id, "Bonjour.", **other).headers["x-cache"] == "MISS"

    def test_a_job_is_pending_for_two_looks_and_then_ready(self, user: httpx.Client, voice_id: str) -> None:
        job_id = speak(user, voice_id, "Look, and look again.")
        looks = [user.get(f"/v1/jobs/{job_id}", params={"wait": 30}) for _ in range(3)]
        assert [look.json() for look in looks] == [
            {"job_id": job_id, "status": "pending"},
            {"job_id": job_id, "status": "pending"},
            {"job_id": job_id, "status": "ready", "audio_url": f"https://cdn.example.invalid/v1/jobs/{job_id}/audio"},
        ]
        assert [x_headers(look) for look in looks] == [set(), set(), set()]

    def test_a_text_that_says_fail_fails_and_costs_nothing(self, user: httpx.Client, voice_id: str) -> None:
        job = final(user, speak(user, voice_id, "It will fail."))
        assert (set(job), job["status"]) == ({"job_id", "status", "error"}, "failed")
        assert user.get(f"/v1/jobs/{job['job_id']}/audio").status_code == 404
        assert user.get("/v1/usage").json()["characters"] == 0

    def test_audio_is_a_wav_that_grows_with_the_text(self, user: httpx.Client, voice_id: str) -> None:
        lengths = []
        for text in ("Short.", "Ten times as long. " * 10):
            answer = user.get(f"/v1/jobs/{spoken(user, voice_id, text)}/audio")
            assert (answer.headers["content-type"], x_headers(answer)) == ("audio/wav", {"x-job-id"})
            assert not {"etag", "cache-control"} & set(answer.headers)
            with wave.open(BytesIO(answer.content)) as wav:
                lengths.append(wav.getnframes() / wav.getframerate() / len(text))
        assert lengths == pytest.approx([0.06, 0.06], rel=0.02)

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [("bytes=10-19", slice(10, 20)), ("bytes=-5", slice(-5, None)), ("bytes=100-", slice(100, None))],
    )
    def test_audio_can_be_had_in_parts(self, user: httpx.Client, voice_id: str, wanted: str, part: slice) -> None:
        url = f"/v1/jobs/{spoken(user, voice_id, 'In parts.')}/audio"
        whole, answer = user.get(url), user.get(url, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (206, whole.content[part])
        assert answer.headers["content-range"].endswith(f"/{len(whole.content)}")

    def test_a_range_beyond_the_end_is_416(self, user: httpx.Client, voice_id: str) -> None:
        url = f"/v1/jobs/{spoken(user, voice_id, 'To the end.')}/audio"
        size = len(user.get(url).content)
        answer = user.get(url, headers={"Range": f"bytes={size}-"})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")

    def test_usage_counts_the_characters_of_the_month_and_no_hits(self, user: httpx.Client, voice_id: str) -> None:
        spoken(user, voice_id, "Twelve chars")
        ask(user, voice_id, "Twelve chars")
        usage = user.get("/v1/usage").json()
        assert set(usage) == {"characters", "limit", "period_start", "period_end"}
        assert (usage["characters"], usage["limit"]) == (12, None)
        assert usage["period_start"] < usage["period_end"]


class TestNothingMore:
    """What only our server has is not there, and what a client says of it is ignored."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/keys"),
            ("DELETE", f"/v1/keys/{NOBODY}"),
            ("POST", f"/v1/keys/{NOBODY}/rotate"),
            ("PATCH", f"/v1/voices/{NOBODY}"),
            ("GET", f"/v1/voices/{NOBODY}/export"),
            ("POST", "/v1/voices/import"),
            ("GET", "/v1/jobs"),
            ("DELETE", f"/v1/jobs/{NOBODY}"),
            ("PUT", f"/v1/jobs/{NOBODY}/audio"),
            ("POST", "/v1/audio/speech"),
            ("GET", "/v1/models"),
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
        ],
    )
    def test_routes_of_ours_are_404(self, user: httpx.Client, method: str, path: str) -> None:
        answer = user.request(method, path)
        assert (answer.status_code, code_of(answer)) == (404, "not_found")

    def test_a_repeated_request_is_a_second_voice_and_a_second_job(self, user: httpx.Client) -> None:
        user.headers["Idempotency-Key"] = "once"
        voices = {register(user) for _ in range(2)}
        assert len(voices) == 2
        assert len({speak(user, voices.copy().pop(), "Once.") for _ in range(2)}) == 2

    def test_waiting_formats_and_streams_are_ignored(self, user: httpx.Client, voice_id: str) -> None:
        ours = {"speed": 2, "seed": 7, "response_format": "mp3", "stream": True, "webhook_url": "http://127.0.0.1/"}
        user.headers["Prefer"] = "wait=30"
        miss = ask(user, voice_id, "Plainly.", **ours)
        assert (miss.status_code, miss.json()["status"]) == (202, "pending")
        final(user, miss.json()["job_id"])
        hit = ask(user, voice_id, "Plainly.")
        assert (hit.headers["x-cache"], hit.headers["content-type"]) == ("HIT", "audio/wav")

    def test_no_answer_says_when_to_come_again(self, user: httpx.Client, voice_id: str) -> None:
        answers = [ask(user, voice_id, "When?"), user.get("/v1/voices"), user.get(f"/v1/jobs/{NOBODY}")]
        ours = {"retry-after", "x-request-id", "etag", "link", "ratelimit-limit", "accept-ranges"}
        assert not [ours & set(answer.headers) for answer in answers if ours & set(answer.headers)]

    def test_it_knows_nothing_of_our_code(self) -> None:
        names = []
        for module in ("service.py", "sound.py", "wire.py"):
            for node in ast.walk(ast.parse(Path(__file__).with_name(module).read_text())):
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {"json", "tests.hosted.wire"} <= set(names)
        assert not [name for name in names if name.split(".")[0] in ("afterwords", "fastapi", "httpx")]


class TestTwin:
    """What tests can set and see."""

    def test_errors_can_be_plain_strings(self) -> None:
        with HostedService(error_style="string") as plain, client_of(plain.url, plain.api_key) as client:
            answer = client.get(f"/v1/voices/{NOBODY}")
        assert (answer.status_code, answer.json()) == (404, {"error": "There is no such voice."})

    def test_errors_are_objects(self, user: httpx.Client) -> None:
        answer = create(user, lang="xx")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (422, "unsupported_lang", "lang")
        assert set(error) == {"code", "message", "type", "param", "request_id"}

    def test_without_looks_a_job_is_ready_at_once(self) -> None:
        with HostedService(pending_looks=0) as quick, client_of(quick.url, quick.api_key) as client:
            job_id = speak(client, register(client), "At once.")
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "ready"

    def test_a_job_can_be_pending_for_a_time_however_often_it_is_looked_at(self) -> None:
        with HostedService(pending_looks=0, pending_s=3600) as slow, client_of(slow.url, slow.api_key) as client:
            job_id = speak(client, register(client), "In an hour.")
            assert {client.get(f"/v1/jobs/{job_id}").json()["status"] for _ in range(5)} == {"pending"}
            assert code_of(client.get(f"/v1/jobs/{job_id}/audio")) == "job_not_ready"

    def test_lite_speaks_english_only(self) -> None:
        with HostedService(backends=["lite"]) as lite, client_of(lite.url, lite.api_key) as client:
            assert create(client).json()["backend"] == "lite"
            assert code_of(create(client, lang="fr")) == "unsupported_lang"

    def test_it_tells_what_it_was_asked(self, hosted: HostedService, user: httpx.Client) -> None:
        user.get("/v1/jobs/none", params={"wait": 5}, headers={"Prefer": "wait=5"})
        method, path, headers = hosted.requests[-1]
        assert (method, path, headers["prefer"]) == ("GET", "/v1/jobs/none?wait=5", "wait=5")

    def test_a_body_in_chunks_is_read(self, user: httpx.Client, voice_id: str) -> None:
        body = json.dumps({"voice_id": voice_id, "text": "In chunks."}).encode()
        assert user.post("/v1/synthesize", content=(body[n : n + 7] for n in range(0, len(body), 7))).status_code == 202

    def test_many_can_ask_at_once(self, hosted: HostedService) -> None:
        made: list[str] = []

        def work() -> None:
            with client_of(hosted.url, hosted.api_key) as client:
                voice = register(client)
                made.extend(spoken(client, voice, f"Text {n}.") for n in range(3))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 24

    def test_it_ends_while_a_client_is_still_connected(self) -> None:
        before = set(threading.enumerate())
        with HostedService() as service:
            client = client_of(service.url, service.api_key)
            assert client.get("/v1/voices").status_code == 200
        client.close()
        assert not set(threading.enumerate()) - before
