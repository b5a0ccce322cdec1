"""The contract of the hosted service, and what this server adds, against a real server process."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import httpx
import pytest

from afterwords.audio.wav import canonical_wav, read_wav
from afterwords.server import create_app
from afterwords.server.cache_key import cache_key
from afterwords.server.services.synthesis import ONE_TAKE
from tests.conftest import clipped
from tests.e2e.served import ADMIN_SECRET, READER, RECORDING, Served, register, serving, submit_text, wait_for_job

CALLBACK_SECRET = "a-callback-secret-that-workers-share"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ORIGIN = "https://app.example"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {
        "AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET,
        "AFTERWORDS_PUBLIC_URL": "https://voice.example",
        "AFTERWORDS_CORS_ORIGINS": f"{ORIGIN}, http://localhost:5173",
    }
    with serving(tmp_path_factory.mktemp("contract") / "home", settings) as running:
        yield running


@pytest.fixture(scope="module")
def accepting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server without workers, which only accepts jobs."""
    settings = {"AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET, "AFTERWORDS_WORKERS": "0"}
    with serving(tmp_path_factory.mktemp("accepting") / "home", settings) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def voice_id(served: Served) -> str:
    with served.client() as client:
        return register(client, ref_text="What was read aloud.", family="readers")


def error_code(answer: httpx.Response) -> str:
    """Return the error code of a response, and check its shape."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "type", "param", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return str(error["code"])


class TestHealth:
    def test_health_needs_no_key_and_lists_backends(self, served: Served) -> None:
        answer = httpx.get(f"{served.url}/v1/health")
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["backends"]) == ("ok", ["tone"])

    def test_every_response_has_its_own_request_id(self, served: Served) -> None:
        ids = {httpx.get(f"{served.url}/v1/health").headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3


class TestCors:
    """CORS, as a browser uses it."""

    def test_preflight_allows_headers_of_every_route(self, served: Served) -> None:
        paths = create_app().openapi()["paths"]
        browser = httpx.Client(base_url=served.url)  # without a key
        for path, method in [(path, method.upper()) for path, methods in paths.items() for method in methods]:
            asked = {
                "Origin": ORIGIN,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
            }
            answer = browser.options(path.replace("{", "").replace("}", ""), headers=asked)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN), path
            assert method in answer.headers["access-control-allow-methods"], path
            assert "idempotency-key" in answer.headers["access-control-allow-headers"].lower(), path
            assert "access-control-allow-credentials" not in answer.headers, path
        browser.close()

    def test_only_listed_origins_may_read_responses(self, client: httpx.Client, voice_id: str) -> None:
        wait_for_job(client, submit_text(client, voice_id, "Played in a browser."))
        ask = {"voice_id": voice_id, "text": "Played in a browser."}
        for origin in (ORIGIN, "http://localhost:5173"):
            spoken = client.post("/v1/synthesize", json=ask, headers={"Origin": origin})
            refused = client.post("/v1/synthesize", json={}, headers={"Origin": origin})
            for answer in (spoken, refused):
                assert answer.headers["access-control-allow-origin"] == origin
                assert "Origin" in answer.headers["vary"]
                shown = set(answer.headers["access-control-expose-headers"].split(", "))
                assert {"X-Request-Id", "X-Cache", "X-Job-Id", "Retry-After", "RateLimit-Reset"} <= shown
                assert {"X-Left-Out", "X-Notices"} <= shown
            assert (spoken.headers["x-cache"], error_code(refused)) == ("HIT", "missing_field")
        for origin in ("https://evil.example", f"{ORIGIN}.evil", "null", ORIGIN.replace("https", "http")):
            answer = client.post("/v1/synthesize", json=ask, headers={"Origin": origin})
            assert "access-control-allow-origin" not in answer.headers
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/synthesize", headers=asked).status_code == 400

    def test_without_cors_origins_no_page_may_read(self, accepting: Served) -> None:
        answer = httpx.get(f"{accepting.url}/v1/health", headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]


class TestKeys:
    @pytest.mark.parametrize("body", [None, {}, {"label": "mine"}])
    def test_admin_creates_key(self, served: Served, body: dict[str, str] | None) -> None:
        with served.admin as admin:
            answer = admin.post("/v1/keys", json=body) if body is not None else admin.post("/v1/keys")
        made = answer.json()
        assert answer.status_code == 201
        assert made["api_key"].startswith("aw_")
        assert made["label"] == (body or {}).get("label")
        assert TIME.fullmatch(made["created_at"])

    def test_user_key_creates_no_key_without_scopes(self, served: Served, client: httpx.Client) -> None:
        answer = client.post("/v1/keys", json={})
        assert (answer.status_code, error_code(answer)) == (401, "admin_required")
        answer = client.get("/v1/accounts")
        assert (answer.status_code, error_code(answer)) == (401, "admin_required")
        with served.client("aw_" + "a" * 43) as unknown:
            assert (unknown.post("/v1/keys").status_code, unknown.get("/v1/accounts").status_code) == (401, 401)

    def test_full_key_creates_scoped_keys_of_its_account(self, served: Served, client: httpx.Client) -> None:
        voice_id = register(client)
        made = client.post("/v1/keys", json={"label": "app", "scopes": ["synthesize"], "character_limit": 50})
        assert made.status_code == 201
        with served.client(made.json()["api_key"]) as app:
            job_id = submit_text(app, voice_id, "Spoken by the app.")
            assert wait_for_job(client, job_id)["status"] == "ready"
            answers = [
                app.post("/v1/keys", json={"scopes": ["synthesize"]}),
                app.get("/v1/voices"),
                app.post("/v1/synthesize", json={"voice_id": voice_id, "text": "x" * 51}),
            ]
        codes = [(answer.status_code, error_code(answer)) for answer in answers]
        assert codes == [(403, "insufficient_scope"), (403, "insufficient_scope"), (429, "quota_exceeded")]
        with served.client(served.new_key(character_limit=5)) as limited:
            answer = limited.post("/v1/keys", json={"scopes": ["synthesize"]})
            assert (answer.status_code, error_code(answer)) == (403, "insufficient_scope")

    def test_only_admin_creates_keys_for_accounts(self, served: Served) -> None:
        client = served.client(served.new_key())
        [own] = client.get("/v1/keys").json()
        with served.client(served.new_key()) as other:
            [others] = other.get("/v1/keys").json()
        with served.admin as admin:
            for named in ({"account_id": own["account_id"]}, {"for_key": own["key_id"]}):
                key = admin.post("/v1/keys", json=named).json()
                assert key["account_id"] == own["account_id"]
            wrong = [
                {"account_id": UNKNOWN_ID},
                {"for_key": UNKNOWN_ID},
                {"for_key": own["key_id"], "account_id": UNKNOWN_ID},
            ]
            answers = [admin.post("/v1/keys", json=named) for named in wrong]
        narrow = {"scopes": ["synthesize"]}
        answers += [
            client.post("/v1/keys", json={**narrow, "account_id": others["account_id"]}),
            client.post("/v1/keys", json={**narrow, "for_key": others["key_id"]}),
        ]
        codes = [(answer.status_code, error_code(answer)) for answer in answers]
        unknown_account, unknown_key = (422, "invalid_field"), (404, "key_not_found")
        assert codes == [unknown_account, unknown_key, unknown_key, unknown_account, unknown_key]
        assert {key["account_id"] for key in client.get("/v1/keys").json()} == {own["account_id"]}
        client.close()

    def test_admin_lists_accounts_with_totals(self, served: Served) -> None:
        client = served.client(served.new_key())
        voice_id = register(client)
        wait_for_job(client, submit_text(client, voice_id, "Counted."))
        [key] = client.get("/v1/keys").json()
        with served.admin as admin:
            (account,) = [each for each in admin.get("/v1/accounts").json() if each["account_id"] == key["account_id"]]
        assert (account["keys"], account["voices"], account["characters"]) == (1, 1, len("Counted."))
        assert account["storage_bytes"] > len(RECORDING) / 4
        assert key["characters"] == len("Counted.")
        assert key["prefix"] == client.headers["Authorization"].removeprefix("Bearer ")[:8]
        client.close()

    def test_key_is_stored_as_sha256_only(self, served: Served) -> None:
        key = served.new_key()
        kept = b"".join(path.read_bytes() for path in (served.home / "server").glob("afterwords.db*"))
        assert key.encode() not in kept
        assert sha256(key.encode()).digest() in kept

    def test_users_list_their_keys_and_admin_all(self, served: Served) -> None:
        mine = served.new_key(label="mine")
        with served.client(mine) as user, served.admin as admin:
            seen = user.get("/v1/keys").json()
            all_of_them = admin.get("/v1/keys").json()
        assert [key["label"] for key in seen] == ["mine"]
        assert len(all_of_them) > 1

    def test_revoked_key_returns_401(self, served: Served) -> None:
        mine = served.new_key()
        with served.client(mine) as user:
            key_id = user.get("/v1/keys").json()[0]["key_id"]
            assert user.delete(f"/v1/keys/{key_id}").status_code == 204
            assert user.get("/v1/voices").status_code == 401

    def test_rotated_key_is_valid_during_overlap(self, served: Served) -> None:
        old = served.new_key()
        with served.client(old) as user:
            key_id = user.get("/v1/keys").json()[0]["key_id"]
            rotated = user.post(f"/v1/keys/{key_id}/rotate", json={"overlap_s": 60})
            assert rotated.status_code == 201
            assert user.get("/v1/voices").status_code == 200
        with served.client(rotated.json()["api_key"]) as user:
            assert user.get("/v1/voices").status_code == 200

    def test_key_rotated_without_overlap_returns_401(self, served: Served) -> None:
        old = served.new_key()
        with served.client(old) as user:
            key_id = user.get("/v1/keys").json()[0]["key_id"]
            assert user.post(f"/v1/keys/{key_id}/rotate").status_code == 201
            assert user.get("/v1/voices").status_code == 401

    def test_scoped_key_rotates_only_itself(self, served: Served) -> None:
        narrow = served.new_key(scopes=["synthesize"])
        with served.client(narrow) as user, served.admin as admin:
            own = user.get("/v1/keys").json()[0]["key_id"]
            other = next(key["key_id"] for key in admin.get("/v1/keys").json() if key["key_id"] != own)
            refused = user.delete(f"/v1/keys/{other}")
            assert user.post(f"/v1/keys/{own}/rotate").status_code == 201
        assert (refused.status_code, error_code(refused)) == (403, "insufficient_scope")

    def test_scopes_restrict_a_key(self, served: Served) -> None:
        with served.client(served.new_key(scopes=["voices:read"])) as user:
            assert user.get("/v1/voices").status_code == 200
            for route in ("synthesize", "estimate"):
                answer = user.post(f"/v1/{route}", json={"voice_id": UNKNOWN_ID, "text": "hi"})
                assert (answer.status_code, error_code(answer)) == (403, "insufficient_scope")


class TestVoices:
    def test_register_returns_the_contract_fields(self, client: httpx.Client) -> None:
        answer = client.post("/v1/voices", data={"name": "me"}, files={"ref_audio": ("x", RECORDING, "audio/wav")})
        made = answer.json()
        assert answer.status_code == 201
        assert set(made) == {"voice_id", "name", "backend", "created_at"}
        assert UUID.fullmatch(made["voice_id"])
        assert (made["name"], made["backend"]) == ("me", "tone")
        assert TIME.fullmatch(made["created_at"])

    def test_uploads_are_graded_and_any_grade_accepted(self, client: httpx.Client, tmp_path: Path) -> None:
        poor = clipped(tmp_path / "clipped.wav").read_bytes()
        grades = []
        for recording in (READER.read_bytes(), poor):
            made = client.post("/v1/voices", data={"name": "me"}, files={"ref_audio": ("x", recording, "audio/wav")})
            assert made.status_code == 201
            shown = client.get(f"/v1/voices/{made.json()['voice_id']}").json()
            grades.append((made.headers["x-reference-grade"], shown["ref_grade"]))
        assert grades == [("B", "B"), ("F", "F")]

    @pytest.mark.parametrize("missing", ["name", "ref_audio"])
    def test_missing_field_is_named(self, client: httpx.Client, missing: str) -> None:
        data = {} if missing == "name" else {"name": "me"}
        files: dict[str, Any] = {"ref_audio": ("x.wav", RECORDING, "audio/wav")}
        if missing == "ref_audio":
            files = {"other": ("x.wav", b"", "audio/wav")}
        answer = client.post("/v1/voices", data=data, files=files)
        assert (answer.status_code, error_code(answer)) == (400, "missing_field")
        assert answer.json()["error"]["param"] == missing

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"backend": "missing"}, "invalid_backend"),
            ({"lang": "xx"}, "unsupported_lang"),
            ({"name": "\u202e"}, "invalid_name"),
            ({"name": "n" * 201}, "invalid_name"),
            ({"consent": "perhaps"}, "invalid_field"),
        ],
    )
    def test_invalid_field_is_refused(self, client: httpx.Client, fields: dict[str, str], code: str) -> None:
        answer = client.post(
            "/v1/voices",
            data={"name": "me", **fields},
            files={"ref_audio": ("x.wav", RECORDING, "audio/wav")},
        )
        assert (answer.status_code, error_code(answer)) == (422, code)
        assert not any(value in answer.text for value in fields.values())

    def test_stored_reference_is_canonical_wav(self, served: Served, client: httpx.Client) -> None:
        canonical = canonical_wav(*read_wav(RECORDING))
        made = register(client, wav=canonical)
        kept = served.home / "server" / "blobs" / "voices" / made / "ref.wav"
        assert kept.read_bytes() == canonical

    def test_list_has_few_fields_and_own_voices_only(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            assert user.get("/v1/voices").json() == []
            made = register(user, name="only")
            listed = user.get("/v1/voices").json()
        assert [set(voice) for voice in listed] == [
            {"voice_id", "name", "backend", "lang", "family", "emotion", "status", "created_at"}
        ]
        assert listed[0]["voice_id"] == made

    def test_voice_list_is_paginated(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            made = [register(user, name=f"voice {n}") for n in range(3)]
            first = user.get("/v1/voices", params={"limit": 2})
            link = re.fullmatch(r"<https://voice\.example(/v1/voices\?[^>]+)>; rel=\"next\"", first.headers["link"])
            assert link is not None
            second = user.get(link[1])
        assert [voice["voice_id"] for voice in first.json() + second.json()] == made
        assert "link" not in second.headers

    def test_show_returns_every_column_but_the_owner(self, client: httpx.Client, voice_id: str) -> None:
        shown = client.get(f"/v1/voices/{voice_id}").json()
        assert set(shown) >= {
            "voice_id", "name", "backend", "ref_text", "lang", "family", "ref_audio_key", "created_at", "metadata",
        }  # fmt: skip
        assert shown["ref_audio_key"] == f"voices/{voice_id}/ref.wav"
        assert not any("account" in column or "owner" in column for column in shown)

    def test_consent_is_stored(self, client: httpx.Client) -> None:
        made = register(client, consent="self")
        assert client.get(f"/v1/voices/{made}").json()["consent"]["kind"] == "self"

    def test_delete_leaves_nothing(self, served: Served, client: httpx.Client) -> None:
        made = register(client)
        job_id = submit_text(client, made, "This will be deleted.")
        wait_for_job(client, job_id)
        assert client.delete(f"/v1/voices/{made}").status_code == 204
        blobs = served.home / "server" / "blobs"
        assert client.get(f"/v1/voices/{made}").status_code == 404
        assert client.get(f"/v1/jobs/{job_id}").status_code == 404
        assert not (blobs / "voices" / made).exists()
        assert not list(blobs.rglob(f"{job_id}*"))

    def test_missing_voice_returns_404_on_every_route(self, client: httpx.Client) -> None:
        answers = [
            client.get(f"/v1/voices/{UNKNOWN_ID}"),
            client.delete(f"/v1/voices/{UNKNOWN_ID}"),
            client.patch(f"/v1/voices/{UNKNOWN_ID}", json={"name": "you"}),
            client.get(f"/v1/voices/{UNKNOWN_ID}/export"),
            client.post("/v1/synthesize", json={"voice_id": UNKNOWN_ID, "text": "hi"}),
        ]
        assert {(answer.status_code, error_code(answer)) for answer in answers} == {(404, "voice_not_found")}

    def test_voice_is_found_by_exact_name(self, served: Served) -> None:
        name = "Jürgen (läuft), 東京"
        with served.client(served.new_key()) as user, served.client(served.new_key()) as other:
            made = register(user, name=name)
            shown = user.get(f"/v1/voices/{name}")
            assert shown.json()["voice_id"] == made
            spoken = wait_for_job(user, submit_text(user, name, "By name."))
            assert spoken["status"] == "ready"
            hit = user.post("/v1/synthesize", json={"voice_id": name, "text": "By name."})
            assert (hit.headers["x-cache"], hit.headers["x-voice-id"]) == ("HIT", made)
            assert f'"{made}.afterwords"' in user.get(f"/v1/voices/{name}/export").headers["content-disposition"]
            for wrong in (name.lower(), name[:-1], "*", "%"):
                assert error_code(user.get(f"/v1/voices/{wrong}")) == "voice_not_found"
            without_id = [
                answer.json()["error"] | {"request_id": ""}
                for answer in (other.get(f"/v1/voices/{name}"), other.get(f"/v1/voices/{UNKNOWN_ID}"))
            ]
            assert without_id[0] == without_id[1]
            assert user.patch(f"/v1/voices/{name}", json={"name": "you"}).json()["voice_id"] == made
            assert user.delete("/v1/voices/you").status_code == 204
            assert user.get("/v1/voices").json() == []

    def test_ambiguous_name_returns_409_and_changes_nothing(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            made = [register(user, name="me") for _ in range(2)]
            answers = [
                user.get("/v1/voices/me"),
                user.patch("/v1/voices/me", json={"name": "you"}),
                user.delete("/v1/voices/me"),
                user.post("/v1/synthesize", json={"voice_id": "me", "text": "hi"}),
            ]
            assert {(answer.status_code, error_code(answer)) for answer in answers} == {(409, "ambiguous_voice_name")}
            assert [voice["voice_id"] for voice in user.get("/v1/voices").json()] == made

    def test_id_wins_over_equal_name(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            first = register(user)
            second = register(user, name=first)
            assert user.get(f"/v1/voices/{first}").json()["voice_id"] == first
            assert user.delete(f"/v1/voices/{first}").status_code == 204
            assert user.get(f"/v1/voices/{first}").json()["voice_id"] == second

    def test_ids_are_case_insensitive(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            made = register(user)
            again = register(user)
            job_id = submit_text(user, made.upper(), "In capitals.")
            assert wait_for_job(user, job_id.upper())["job_id"] == job_id
            assert user.get(f"/v1/jobs/{job_id.upper()}/audio").status_code == 200
            assert user.get("/v1/jobs", params={"after": job_id.upper()}).json() == []
            after = user.get("/v1/voices", params={"after": made.upper()}).json()
            assert [voice["voice_id"] for voice in after] == [again]
            assert user.delete(f"/v1/voices/{made.upper()}").status_code == 204
            key_id = user.get("/v1/keys").json()[0]["key_id"]
            assert user.delete(f"/v1/keys/{key_id.upper()}").status_code == 204

    def test_update_keeps_other_fields_and_clears_the_cache(self, client: httpx.Client) -> None:
        made = register(client, ref_text="before", family="readers")
        wait_for_job(client, submit_text(client, made, "Cached once."))
        changed = client.patch(f"/v1/voices/{made}", json={"name": "you", "ref_text": "after", "metadata": {"a": 1}})
        assert changed.status_code == 200
        assert {key: changed.json()[key] for key in ("name", "ref_text", "family", "metadata")} == {
            "name": "you", "ref_text": "after", "family": "readers", "metadata": {"a": 1},
        }  # fmt: skip
        again = client.post("/v1/synthesize", json={"voice_id": made, "text": "Cached once."})
        assert again.headers["x-cache"] == "MISS"

    def test_export_and_import_round_trip(self, served: Served, client: httpx.Client) -> None:
        made = register(client, ref_text="What was read.", consent="granted", family="readers")
        bundle = client.get(f"/v1/voices/{made}/export")
        assert bundle.status_code == 200
        with served.client(served.new_key()) as other:
            brought = other.post("/v1/voices/import", content=bundle.content)
            assert brought.status_code == 201, brought.text
            there = other.get(f"/v1/voices/{brought.json()['voice_id']}").json()
        here = client.get(f"/v1/voices/{made}").json()
        for field in ("name", "ref_text", "family", "ref_sha256", "ref_grade", "consent", "lang"):
            assert there[field] == here[field]

    def test_altered_bundle_is_refused(self, client: httpx.Client, voice_id: str) -> None:
        bundle = bytearray(client.get(f"/v1/voices/{voice_id}/export").content)
        bundle[len(bundle) // 2] ^= 1
        answer = client.post("/v1/voices/import", content=bytes(bundle))
        assert (answer.status_code, error_code(answer)) == (422, "invalid_bundle")


class TestSynthesize:
    def test_miss_returns_job_and_hit_returns_audio(self, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": "A miss, and then a hit."}
        miss = client.post("/v1/synthesize", json=ask)
        assert (miss.status_code, set(miss.json()), miss.json()["status"]) == (202, {"job_id", "status"}, "pending")
        about = ("x-cache", "x-voice-id", "x-backend", "x-synthesis-time-ms")
        assert [miss.headers[name] for name in about] == ["MISS", voice_id, "tone", "-1"]
        assert wait_for_job(client, miss.json()["job_id"])["status"] == "ready"
        hit = client.post("/v1/synthesize", json=ask)
        assert (hit.status_code, hit.headers["content-type"], hit.headers["x-cache"]) == (200, "audio/wav", "HIT")
        assert int(hit.headers["x-synthesis-time-ms"]) >= 0
        assert read_wav(hit.content)[1] == 24_000

    @pytest.mark.parametrize("missing", ["voice_id", "text"])
    def test_missing_field_is_named(self, client: httpx.Client, voice_id: str, missing: str) -> None:
        ask = {"voice_id": voice_id, "text": "hi"}
        del ask[missing]
        answer = client.post("/v1/synthesize", json=ask)
        assert (answer.status_code, error_code(answer), answer.json()["error"]["param"]) == (
            400,
            "missing_field",
            missing,
        )

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"text": ""}, "empty_text"),
            ({"text": " \u200b\t"}, "empty_text"),
            ({"text": "fault-unspoken"}, "unspeakable_text"),
            ({"text": "a\u0000b"}, "control_character"),
            ({"text": "a\u001bb"}, "control_character"),
            ({"text": "e\u0301" * 5_000}, "text_too_long"),
            ({"backend": "missing"}, "invalid_backend"),
            ({"lang": "xx"}, "unsupported_lang"),
            ({"speed": 5}, "invalid_field"),
            ({"seed": -1}, "invalid_field"),
            ({"response_format": "aiff"}, "invalid_field"),
            ({"sample_rate": 11_000}, "invalid_field"),
            ({"sample_rate": 16_000, "response_format": "mulaw"}, "invalid_field"),
            ({"webhook_url": "http://example.com/"}, "invalid_webhook_url"),
            ({"webhook_url": "https://127.0.0.1/"}, "invalid_webhook_url"),
        ],
    )
    def test_invalid_field_is_refused(
        self, client: httpx.Client, voice_id: str, fields: dict[str, Any], code: str
    ) -> None:
        for route in ("synthesize", "estimate"):
            answer = client.post(f"/v1/{route}", json={"voice_id": voice_id, "text": "hi", **fields})
            assert (answer.status_code, error_code(answer)) == (422, code)

    def test_every_response_lists_skipped_words_and_tags(self, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": "One\ffault-unspoken-Иван\x0b[pause 1s] [pause]\x85\u2028three."}
        miss = client.post("/v1/synthesize", json=ask)
        wait_for_job(client, miss.json()["job_id"])
        hit = client.post("/v1/synthesize", json=ask)
        assert (miss.status_code, hit.status_code) == (202, 200)
        assert unquote(miss.headers["x-left-out"]) == unquote(hit.headers["x-left-out"]) == "fault-unspoken-Иван"
        assert "needs a duration" in miss.headers["x-notices"]
        assert miss.headers["x-notices"] == hit.headers["x-notices"]

    def test_sounds_that_the_backend_can_not_read_are_noted(self, client: httpx.Client) -> None:
        voice_id = register(client)
        entries = [{"word": "nginx", "ipa": "ˈɛndʒɪn"}, {"word": "W3C", "ipa": "x", "alias": "World Wide Web"}]
        client.patch(f"/v1/voices/{voice_id}", json={"metadata": {"lexicon": entries}}).raise_for_status()

        def notices(path: str, **fields: str) -> str:
            answer = client.post(path, json=fields)
            assert answer.is_success, answer.text
            return str(answer.headers.get("x-notices", ""))

        for text, is_noted in (
            ("Start nginx.", True),
            ('<speak><phoneme ph="həˈloʊ">Hello</phoneme>.</speak>', True),
            ("The W3C met.", False),
        ):
            found = {
                notices("/v1/synthesize", voice_id=voice_id, text=text),
                notices("/v1/audio/speech", voice=voice_id, input=text),
                notices(f"/elevenlabs/v1/text-to-speech/{voice_id}", text=text),
            }
            assert len(found) == 1
            assert ("does not read IPA" in found.pop()) == is_noted

    def test_words_are_spoken_by_the_lexicon_of_the_voice(self, client: httpx.Client) -> None:
        voice_id = register(client)
        said = []
        for lexicon in ([], [{"word": "W3C", "alias": "World Wide Web"}]):
            client.patch(f"/v1/voices/{voice_id}", json={"metadata": {"lexicon": lexicon}}).raise_for_status()
            job_id = submit_text(client, voice_id, "The W3C met.")  # a miss: the cache knows the lexicon
            assert wait_for_job(client, job_id)["status"] == "ready"
            said.append(len(client.get(f"/v1/jobs/{job_id}/audio").content))
        assert said[1] > said[0]

    def test_take_speaks_for_its_emotion(self, client: httpx.Client) -> None:
        me, happy = register(client), register(client)
        client.patch(f"/v1/voices/{me}", json={"family": "takes"}).raise_for_status()
        changes = {"family": "takes", "metadata": {"emotion": "happy"}}
        assert client.patch(f"/v1/voices/{happy}", json=changes).json()["emotion"] == "happy"

        def ask(text: str, **fields: str) -> httpx.Response:
            answer = client.post("/v1/synthesize", json={"voice_id": me, "text": text, **fields})
            if answer.status_code == 202:
                wait_for_job(client, answer.json()["job_id"])
            return answer

        for text, fields, voice_id, notice in (
            ("One.", {}, me, ""),
            ("One.", {"emotion": "happy"}, happy, "tone keeps the timbre of a take, but not its emotion."),
            ("[happy]One.", {}, happy, "tone keeps the timbre of a take, but not its emotion."),
            ("[neutral]One.", {}, me, ""),
            ("[happy]One. [neutral]Two.", {}, me, ONE_TAKE),
        ):
            first, second = ask(text, **fields), ask(text, **fields)
            assert (first.headers["x-voice-id"], second.headers["x-voice-id"]) == (voice_id, voice_id)
            assert second.headers["x-cache"] == "HIT"
            assert first.headers.get("x-notices", "") == notice
        assert len(ask("[happy]One.").content) == len(ask("One.", emotion="happy").content)
        estimates = [
            client.post("/v1/estimate", json={"voice_id": me, "text": text}).json()["duration_s"]
            for text in ("One.", "[happy]One.")
        ]
        assert estimates[0] == estimates[1]
        client.patch(f"/v1/voices/{happy}", json={"lang": "de"}).raise_for_status()
        for text in ("One.", "[happy]One."):  # in the language of the voice that was named
            spoken = client.post("/v1/estimate", json={"voice_id": me, "text": text, "emotion": "happy"}).json()
            assert spoken["lang"] == "en"
        refused = ask("One.", emotion="sad")
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "emotion")
        assert ask("One.", emotion="Happy!").status_code == 422
        odd = client.patch(f"/v1/voices/{happy}", json={"metadata": {"emotion": "Grüße] [x"}}).json()
        assert odd["emotion"] is None
        assert "no takes" in ask("One.", emotion="happy").json()["error"]["message"]
        client.delete(f"/v1/voices/{happy}").raise_for_status()
        assert ask("One.", emotion="happy").status_code == 404
        spoken = ask("[happy]One.")
        assert (spoken.status_code, spoken.headers["x-voice-id"]) == (202, me)
        assert "no take" in spoken.headers["x-notices"]

    def test_five_thousand_emoji_are_accepted(self, accepting: Served) -> None:
        with accepting.client() as client:
            submit_text(client, register(client), "\U0001f600" * 5_000)

    def test_language_tag_is_reduced_to_language(self, client: httpx.Client, voice_id: str) -> None:
        wait_for_job(client, submit_text(client, voice_id, "One language.", lang="en-US"))
        hit = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "One language.", "lang": "en"})
        assert hit.headers["x-cache"] == "HIT"

    def test_missing_reference_returns_reference_missing(self, served: Served, client: httpx.Client) -> None:
        made = register(client)
        (served.home / "server" / "blobs" / "voices" / made / "ref.wav").unlink()
        for route in ("synthesize", "estimate"):
            answer = client.post(f"/v1/{route}", json={"voice_id": made, "text": "hi"})
            assert (answer.status_code, error_code(answer)) == (500, "reference_missing")

    def test_cache_paths_equal_the_hosted_service(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, "Where does it lie?")
        wait_for_job(client, job_id)
        blobs = served.home / "server" / "blobs"
        key = sha256(b"Where does it lie?\0en\0tone").hexdigest()
        assert key == cache_key("Where does it lie?", lang="en", backend="tone")
        assert (blobs / "voices" / voice_id / "cache" / f"{key}.wav").is_file()
        assert (blobs / "jobs" / f"{job_id}.wav").is_file()

    def test_speed_and_seed_have_their_own_cache_entries(self, client: httpx.Client, voice_id: str) -> None:
        texts = {"text": "As fast as it goes.", "voice_id": voice_id}
        lengths = {}
        for speed in (1.0, 2.0):
            answer = client.post("/v1/synthesize", json={**texts, "speed": speed}, headers={"Prefer": "wait=30"})
            assert answer.headers["x-cache"] == "MISS"
            lengths[speed] = len(read_wav(answer.content)[0])
        assert lengths[2.0] == pytest.approx(lengths[1.0] / 2, rel=0.02)
        assert client.post("/v1/synthesize", json={**texts, "seed": 7}).headers["x-cache"] == "MISS"

    def test_prefer_wait_returns_the_audio(self, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": "I can wait for it."}
        answer = client.post("/v1/synthesize", json=ask, headers={"Prefer": "wait=30"})
        assert (answer.status_code, answer.headers["x-cache"]) == (200, "MISS")
        assert UUID.fullmatch(answer.headers["x-job-id"])
        assert len(read_wav(answer.content)[0]) > 0

    @pytest.mark.parametrize(
        ("name", "media_type", "magic"),
        [("mp3", "audio/mpeg", b""), ("opus", "audio/ogg", b"OggS"), ("flac", "audio/flac", b"fLaC"),
         ("pcm", "audio/pcm", b""), ("wav", "audio/wav", b"RIFF")],
    )  # fmt: skip
    def test_audio_has_the_requested_format(
        self, client: httpx.Client, voice_id: str, name: str, media_type: str, magic: bytes
    ) -> None:
        ask = {"voice_id": voice_id, "text": "In many formats.", "response_format": name}
        answer = client.post("/v1/synthesize", json=ask, headers={"Prefer": "wait=30"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        assert answer.content.startswith(magic)
        assert len(answer.content) > 1000

    def test_sample_rate_holds_for_stream_job_and_cache(self, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": "Sixteen thousand samples a second.", "sample_rate": 16_000}
        with client.stream("POST", "/v1/synthesize", json={**ask, "stream": True, "response_format": "pcm"}) as answer:
            streamed = b"".join(answer.iter_raw())
        wait_for_job(client, answer.headers["x-job-id"])
        assert client.get(f"/v1/jobs/{answer.headers['x-job-id']}/audio").content == streamed
        samples, rate = read_wav(client.post("/v1/synthesize", json=ask).content)
        assert (2 * len(samples), rate) == (len(streamed), 16_000)

    def test_stream_has_the_same_audio(self, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": "Streamed while it is spoken.", "response_format": "pcm"}
        with client.stream("POST", "/v1/synthesize", json={**ask, "stream": True}) as answer:
            streamed = b"".join(answer.iter_raw())
        assert answer.status_code == 200
        wait_for_job(client, answer.headers["x-job-id"])
        assert client.post("/v1/synthesize", json=ask).content == streamed

    def test_idempotency_key_repeats_job_or_conflicts(self, client: httpx.Client, voice_id: str) -> None:
        repeat = {"Idempotency-Key": "once-and-once-only"}
        ask = {"voice_id": voice_id, "text": "Once and once only."}
        first = client.post("/v1/synthesize", json=ask, headers=repeat)
        wait_for_job(client, first.json()["job_id"])
        second = client.post("/v1/synthesize", json=ask, headers=repeat)
        assert second.json()["job_id"] == first.json()["job_id"]
        other = client.post("/v1/synthesize", json={**ask, "text": "Twice."}, headers=repeat)
        assert (other.status_code, error_code(other)) == (409, "idempotency_conflict")

    def test_idempotency_key_registers_one_voice(self, served: Served) -> None:
        with served.client(served.new_key(), **{"Idempotency-Key": "one voice"}) as user:
            answer = user.get("/v1/voices")
            user.headers["Idempotency-Key"] = "one-voice"
            ids = {register(user) for _ in range(2)}
            assert len(ids) == 1
            conflict = user.post("/v1/voices", data={"name": "you"}, files={"ref_audio": ("x", RECORDING, "audio/wav")})
        assert answer.status_code == 200
        assert (conflict.status_code, error_code(conflict)) == (409, "idempotency_conflict")


class TestJobs:
    def test_ready_job_links_audio_with_public_url(self, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, "Where is my audio?")
        assert wait_for_job(client, job_id) == {
            "job_id": job_id,
            "status": "ready",
            "audio_url": f"https://voice.example/v1/jobs/{job_id}/audio",
            "error": None,
            "step": None,
            "progress": None,
        }

    def test_failed_job_has_error_code(self, client: httpx.Client, voice_id: str) -> None:
        job = wait_for_job(client, submit_text(client, voice_id, "fault-fail, on purpose"))
        assert (job["status"], job["error"], job["audio_url"]) == ("failed", "synthesis_failed", None)

    def test_audio_supports_ranges(self, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, "In parts, if you like.")
        wait_for_job(client, job_id)
        url = f"/v1/jobs/{job_id}/audio"
        whole = client.get(url)
        assert (whole.status_code, whole.headers["content-type"], whole.headers["x-job-id"]) == (
            200, "audio/wav", job_id,
        )  # fmt: skip
        part = client.get(url, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
        assert client.get(url, headers={"Range": "bytes=-5"}).content == whole.content[-5:]
        many = client.get(url, headers={"Range": "bytes=" + ",".join(["0-1"] * 200)})
        assert (many.status_code, error_code(many)) == (416, "range_not_satisfiable")

    def test_pending_job_has_no_audio(self, accepting: Served) -> None:
        with accepting.client() as client:
            job_id = submit_text(client, register(client), "No worker runs here.")
            answer = client.get(f"/v1/jobs/{job_id}/audio")
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "pending"
        assert (answer.status_code, error_code(answer)) == (404, "job_not_ready")

    def test_altered_audio_is_never_served(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, "A flipped byte.")
        wait_for_job(client, job_id)
        kept = served.home / "server" / "blobs" / "jobs" / f"{job_id}.wav"
        data = bytearray(kept.read_bytes())
        data[100] ^= 1
        kept.write_bytes(data)
        once = client.get(f"/v1/jobs/{job_id}/audio")
        assert (once.status_code, error_code(once)) == (500, "audio_lost")
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "failed"
        assert client.get(f"/v1/jobs/{job_id}/audio").status_code == 404

    def test_altered_cache_entry_is_regenerated(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        wait_for_job(client, submit_text(client, voice_id, "A flipped cache."))
        key = cache_key("A flipped cache.", lang="en", backend="tone")
        kept = served.home / "server" / "blobs" / "voices" / voice_id / "cache" / f"{key}.wav"
        kept.write_bytes(kept.read_bytes()[:-2])
        wait_for_job(client, submit_text(client, voice_id, "A flipped cache."))
        assert client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "A flipped cache."}).status_code == 200

    def test_unknown_job_returns_404(self, client: httpx.Client) -> None:
        answers = [
            client.get(f"/v1/jobs/{UNKNOWN_ID}"),
            client.get(f"/v1/jobs/{UNKNOWN_ID}/audio"),
            client.delete(f"/v1/jobs/{UNKNOWN_ID}"),
            client.get("/v1/jobs/nonsense"),
        ]
        assert {(answer.status_code, error_code(answer)) for answer in answers} == {(404, "job_not_found")}

    def test_job_list_is_filtered_and_paginated(self, accepting: Served) -> None:
        with accepting.client(accepting.new_key()) as user:
            voice = register(user)
            made = [submit_text(user, voice, f"Job {n}.") for n in range(3)]
            first = user.get("/v1/jobs", params={"status": "pending", "limit": 2})
            second = user.get(first.links["next"]["url"])
            none = user.get("/v1/jobs", params={"status": "ready"}).json()
        assert [job["job_id"] for job in first.json() + second.json()] == made[::-1]
        assert none == []

    def test_cancelled_job_is_refunded(self, accepting: Served) -> None:
        with accepting.client(accepting.new_key()) as user:
            job_id = submit_text(user, register(user), "Never mind.")
            assert user.get("/v1/usage").json()["characters"] == 11
            assert user.delete(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"
            assert user.get("/v1/usage").json()["characters"] == 0

    def test_final_job_cannot_be_cancelled(self, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, "Done already.")
        wait_for_job(client, job_id)
        answer = client.delete(f"/v1/jobs/{job_id}")
        assert (answer.status_code, error_code(answer)) == (409, "job_final")


class TestEstimate:
    ASK: ClassVar = {"text": "What will it cost?", "lang": "en-US", "speed": 2}

    def test_estimate_changes_nothing_and_follows_the_cache(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            ask = {"voice_id": "me", **self.ASK}
            register(user)
            before = user.post("/v1/estimate", json=ask)
            assert (user.get("/v1/jobs").json(), user.get("/v1/usage").json()["characters"]) == ([], 0)
            job_id = user.post("/v1/synthesize", json=ask).json()["job_id"]
            wait_for_job(user, job_id)
            hit = user.post("/v1/estimate", json=ask).json()
            miss = user.post("/v1/estimate", json={**ask, "seed": 7}).json()
        assert (before.status_code, before.headers["cache-control"]) == (200, "no-store")
        facts = before.json()
        assert (facts["characters"], facts["charged_characters"], facts["is_cached"]) == (18, 18, False)
        assert (facts["backend"], facts["lang"], facts["duration_s"]) == ("tone", "en", pytest.approx(0.61))
        assert (facts["remaining_characters"], facts["is_within_limit"]) == (None, True)
        assert (hit["charged_characters"], hit["is_cached"], hit["synthesis_s"]) == (0, True, 0)
        assert (miss["charged_characters"], miss["is_cached"], miss["synthesis_s"] >= 0) == (18, False, True)

    def test_exceeded_limit_is_reported_and_no_error(self, served: Served) -> None:
        with served.client(served.new_key(character_limit=20)) as user:
            ask = {"voice_id": register(user), "text": "Fifteen letters"}
            wait_for_job(user, submit_text(user, **ask))
            over = user.post("/v1/estimate", json={**ask, "text": "Six more"})
            cached = user.post("/v1/estimate", json=ask)
        verdicts = [
            (answer.status_code, answer.json()["remaining_characters"], answer.json()["is_within_limit"])
            for answer in (over, cached)
        ]
        assert verdicts == [(200, 5, False), (200, 5, True)]

    def test_lost_audio_still_counts_as_cached(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": "Lost, though not known."}
        wait_for_job(client, submit_text(client, **ask))
        key = cache_key(ask["text"], lang="en", backend="tone")
        (served.home / "server" / "blobs" / "voices" / voice_id / "cache" / f"{key}.wav").unlink()
        assert client.post("/v1/estimate", json=ask).json()["is_cached"]
        submit_text(client, **ask)  # a new job


class TestUsage:
    def test_usage_counts_characters_of_the_month(self, served: Served) -> None:
        with served.client(served.new_key()) as user:
            voice = register(user)
            wait_for_job(user, submit_text(user, voice, "Twelve chars"))
            user.post("/v1/synthesize", json={"voice_id": voice, "text": "Twelve chars"})
            wait_for_job(user, submit_text(user, voice, "fault-fail costs nothing"))
            usage = user.get("/v1/usage").json()
        assert (usage["characters"], usage["limit"]) == (12, None)
        assert usage["period_start"].endswith("-01T00:00:00.000Z")
        assert usage["period_end"].endswith("-01T00:00:00.000Z")

    def test_character_limit_is_enforced(self, served: Served) -> None:
        with served.client(served.new_key(character_limit=20)) as user:
            voice = register(user)
            wait_for_job(user, submit_text(user, voice, "Fifteen letters"))
            answer = user.post("/v1/synthesize", json={"voice_id": voice, "text": "Six more"})
            assert user.get("/v1/usage").json()["limit"] == 20
        assert (answer.status_code, error_code(answer)) == (429, "quota_exceeded")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["ratelimit-limit"] == "20"


class TestCompletion:
    """Results of remote workers, with the shared secret."""

    WAV = base64.b64encode(canonical_wav(read_wav(RECORDING)[0][:24_000], 24_000)).decode()

    @pytest.fixture
    def pending(self, accepting: Served) -> Iterator[tuple[httpx.Client, str]]:
        with accepting.client() as client:
            job_id = submit_text(client, register(client), "Spoken elsewhere.")
        with accepting.client(CALLBACK_SECRET) as worker:
            yield worker, job_id

    def test_first_result_completes_the_job(self, accepting: Served, pending: tuple[httpx.Client, str]) -> None:
        worker, job_id = pending
        body = {"job_id": job_id, "voice_id": "ignored", "cache_key": "../ignored", "wav_b64": self.WAV, "error": None}
        for _ in range(2):
            assert worker.post(f"/v1/jobs/{job_id}/complete", json=body).status_code == 200
        late = worker.post(f"/v1/jobs/{job_id}/complete", json={"job_id": job_id, "wav_b64": None, "error": "late"})
        assert late.status_code == 200
        with accepting.client() as client:
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "ready"
            assert len(read_wav(client.get(f"/v1/jobs/{job_id}/audio").content)[0]) == 24_000

    def test_error_result_fails_the_job(self, accepting: Served, pending: tuple[httpx.Client, str]) -> None:
        worker, job_id = pending
        body = {"job_id": job_id, "wav_b64": None, "error": "CUDA said no, and the text was: secret"}
        assert worker.post(f"/v1/jobs/{job_id}/complete", json=body).status_code == 200
        with accepting.client() as client:
            assert client.get(f"/v1/jobs/{job_id}").json()["error"] == "synthesis_failed"

    @pytest.mark.parametrize("secret", ["wrong", "aw_something", ADMIN_SECRET])
    def test_wrong_worker_secret_returns_401(
        self, accepting: Served, pending: tuple[httpx.Client, str], secret: str
    ) -> None:
        _, job_id = pending
        with accepting.client(secret) as wrong, accepting.client() as client:
            answer = wrong.post(f"/v1/jobs/{job_id}/complete", json={"job_id": job_id, "wav_b64": self.WAV})
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "pending"
        assert (answer.status_code, error_code(answer)) == (401, "unauthorized")

    def test_result_of_another_job_is_refused(self, pending: tuple[httpx.Client, str]) -> None:
        worker, job_id = pending
        answer = worker.post(f"/v1/jobs/{job_id}/complete", json={"job_id": UNKNOWN_ID, "wav_b64": self.WAV})
        assert (answer.status_code, error_code(answer)) == (422, "invalid_field")

    def test_result_of_deleted_voice_returns_410(self, accepting: Served) -> None:
        with accepting.client() as client, accepting.client(CALLBACK_SECRET) as worker:
            voice = register(client)
            job_id = submit_text(client, voice, "Deleted in the meantime.")
            client.delete(f"/v1/voices/{voice}")
            answer = worker.post(f"/v1/jobs/{job_id}/complete", json={"job_id": job_id, "wav_b64": self.WAV})
        assert (answer.status_code, error_code(answer)) == (410, "voice_deleted")

    @pytest.mark.parametrize(
        ("wav_b64", "code"),
        [("", "empty_data"), ("bm8gd2F2", "not_wav"), ("%%%", "invalid_field")],
    )
    def test_invalid_audio_returns_422_and_fails_the_job(
        self, accepting: Served, pending: tuple[httpx.Client, str], wav_b64: str, code: str
    ) -> None:
        worker, job_id = pending
        answer = worker.post(f"/v1/jobs/{job_id}/complete", json={"job_id": job_id, "wav_b64": wav_b64})
        assert (answer.status_code, error_code(answer)) == (422, code)
        with accepting.client() as client:
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "failed"

    def test_runaway_audio_fails_and_is_not_charged(self, accepting: Served) -> None:
        with accepting.client(accepting.new_key()) as user, accepting.client(CALLBACK_SECRET) as worker:
            job_id = submit_text(user, register(user), "Hi.")
            wav = canonical_wav(read_wav(RECORDING)[0][:24_000].repeat(40), 24_000)
            answer = worker.put(
                f"/v1/jobs/{job_id}/audio", content=wav, headers={"X-Content-SHA256": sha256(wav).hexdigest()}
            )
            assert user.get(f"/v1/jobs/{job_id}").json()["error"] == "runaway_audio"
            assert user.get("/v1/usage").json()["characters"] == 0
        assert (answer.status_code, error_code(answer)) == (422, "runaway_audio")

    def test_put_audio_requires_matching_sha256(self, accepting: Served, pending: tuple[httpx.Client, str]) -> None:
        worker, job_id = pending
        wav = base64.b64decode(self.WAV)
        url = f"/v1/jobs/{job_id}/audio"
        assert error_code(worker.put(url, content=wav)) == "missing_field"
        assert error_code(worker.put(url, content=wav, headers={"X-Content-SHA256": "0" * 64})) == "invalid_field"
        right = {"X-Content-SHA256": sha256(wav).hexdigest()}
        assert worker.put(f"/v1/jobs/{job_id.upper()}/audio", content=wav, headers=right).status_code == 200
        marked = b"\xef\xbb\xbf" + json.dumps({"job_id": job_id.upper(), "error": "late"}).encode()
        assert worker.post(f"/v1/jobs/{job_id.upper()}/complete", content=marked).status_code == 200
        with accepting.client() as client:
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "ready"


def test_unknown_path_returns_404_in_the_error_shape(served: Served) -> None:
    answer = httpx.get(f"{served.url}/v1/nothing")
    assert (answer.status_code, error_code(answer)) == (404, "not_found")


def test_wrong_method_returns_405_with_allow(client: httpx.Client) -> None:
    answer = client.put("/v1/synthesize")
    assert (answer.status_code, error_code(answer), answer.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_healthz_and_readyz_need_no_key(served: Served, tmp_path: Path) -> None:
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    ready = httpx.get(f"{served.url}/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
