"""Generated requests: every response is documented, and the server never fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from afterwords.audio.wav import canonical_wav
from afterwords.models import BUNDLE_TYPE
from afterwords.server import create_app
from tests.audio.test_wav import RATE, tone
from tests.e2e.served import ADMIN_SECRET, Served, register, serving, submit_text, wait_for_job
from tests.e2e.wire import ask

CALLBACK_SECRET: Final = "a-callback-secret-that-workers-share"
WAV: Final = canonical_wav(tone(5), RATE)
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STABLE: Final = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

schema = schemathesis.openapi.from_dict(create_app().openapi())
schema.config.generation.update(with_security_parameters=False)
schemathesis.serializer.alias(["audio/wav", BUNDLE_TYPE], "application/octet-stream")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running_with = {"AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET, "AFTERWORDS_RATE_LIMIT": "0"}
    with serving(tmp_path_factory.mktemp("fuzz") / "home", running_with) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


class Rows:
    """Rows that exist; a row that a case deletes is created again for the next."""

    def __init__(self, served: Served, client: httpx.Client) -> None:
        self._served, self._client = served, client
        self._voice_id, self._job_id, self._consent_id = "", "", "none"

    @property
    def voice_id(self) -> str:
        if self._client.get(f"/v1/voices/{self._voice_id}").status_code != 200:
            self._voice_id = register(self._client, wav=WAV)
        return self._voice_id

    @property
    def job_id(self) -> str:
        voice_id = self.voice_id
        if self._client.get(f"/v1/jobs/{self._job_id}").status_code != 200:
            self._job_id = submit_text(self._client, voice_id, f"Spoken for {voice_id}.")
            wait_for_job(self._client, self._job_id)
        return self._job_id

    @property
    def consent_id(self) -> str:
        consents = "/v1/audio/voice_consents"
        if self._client.get(f"{consents}/{self._consent_id}").status_code != 200:
            form, files = {"name": "me", "language": "en-US"}, {"recording": ("me.wav", WAV, "audio/wav")}
            self._consent_id = self._client.post(consents, data=form, files=files).json()["id"]
        return self._consent_id

    @property
    def alias(self) -> str:
        assert self._client.put("/v1/aliases/alloy", json={"voice": self.voice_id}).is_success
        return "alloy"

    @property
    def model(self) -> str:
        return "tone"

    @property
    def key_id(self) -> str:
        with self._served.client(self._served.new_key()) as user:
            return str(user.get("/v1/keys").json()[0]["key_id"])


@pytest.fixture(scope="module")
def rows(served: Served, client: httpx.Client) -> Rows:
    return Rows(served, client)


def test_openapi_document_is_served(served: Served) -> None:
    document = httpx.get(f"{served.url}/openapi.json").json()
    assert document == json.loads(json.dumps(create_app().openapi()))
    assert set(document["components"]["securitySchemes"]) == {"key", "admin", "worker", "stripe", "xi_key"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert (operation["security"] == []) == path.startswith(("/v1/health", "/v1/signup", "/v1/checkout"))


@schema.given(is_real=st.booleans())
@schema.parametrize()
@STABLE
def test_every_response_is_documented(case: schemathesis.Case[Any], is_real: bool, served: Served, rows: Rows) -> None:
    if is_real:
        use_real_rows(case, rows)
    secrets = {"key": served.key, "admin": ADMIN_SECRET, "worker": CALLBACK_SECRET}
    schemes = [name for option in case.operation.definition.raw["security"] for name in option]
    headers = {"Authorization": f"Bearer {secrets[schemes[-1]]}"} if secrets.keys() & schemes else {}
    response = case.call(served.url, headers=headers, timeout=60)
    case.validate_response(response, checks=CHECKS)
    assert response.status_code != 401


def use_real_rows(case: schemathesis.Case[Any], rows: Rows) -> None:
    """Let a case reference existing rows and send a valid recording."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = getattr(rows, name)
    if case.method == "PUT" and case.path.startswith("/v1/jobs/"):
        case.body = WAV
        case.headers["X-Content-SHA256"] = sha256(WAV).hexdigest()
    body: Any = case.body
    if isinstance(body, dict):
        if case.path in ("/v1/synthesize", "/v1/estimate") and "voice_id" in body:
            body["voice_id"] = rows.voice_id
            for name in ("backend", "lang", "webhook_url"):
                body.pop(name, None)
        if case.path in ("/v1/audio/speech", "/v1/aliases/{alias}") and "voice" in body:
            body["voice"] = rows.voice_id
            for name in ("model", "language", "ref_audio", "ref_text", "references", "speaker_embedding"):
                body.pop(name, None)
        if case.path == "/v1/audio/voices" and "audio_sample" in body:
            body["audio_sample"] = WAV
        if case.path == "/v1/voices" and "ref_audio" in body:
            body["ref_audio"] = WAV
            for name in ("backend", "lang"):
                body.pop(name, None)


def escape_json(text: str) -> bytes:
    """Return a JSON string with every character escaped, so that lone surrogates can be sent."""
    units = text.encode("utf-16-be", "surrogatepass")
    return b"".join(b"\\u%04x" % int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))


ANY_TEXT: Final = st.text(st.characters(), max_size=60) | st.text(
    st.sampled_from("\ud800\udfff\0\x1b\r\n\t\ufeff\u200b\u202e\ufffe\U0010ffff\U0001f600e\u0301<>&{}%.!a1"),
    max_size=60,
)


@given(text=ANY_TEXT, fields=st.fixed_dictionaries({}, optional={"speed": st.floats(), "seed": st.integers()}))
@settings(STABLE, max_examples=150)
def test_any_text_is_accepted_or_refused(
    served: Served, client: httpx.Client, rows: Rows, text: str, fields: dict[str, Any]
) -> None:
    asked = json.dumps({"voice_id": rows.voice_id, **fields}).encode()
    body = asked[:-1] + b', "text": "' + escape_json(text) + b'"}'
    answer = client.post("/v1/synthesize", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 202, 422, 429), answer.text
    if answer.status_code == 202:
        assert wait_for_job(client, answer.json()["job_id"])["error"] in (None, "runaway_audio")


@given(
    prefix=st.sampled_from(["/v1/", "/v1/voices/", "/v1/jobs/", "/v1/jobs?status=", "/v1/voices?after="]),
    rest=st.binary(max_size=60),
    header=st.binary(max_size=60).map(lambda value: value.translate(None, b"\r\n\0")),
)
@settings(STABLE, max_examples=200)
def test_any_path_and_header_is_answered(served: Served, prefix: str, rest: bytes, header: bytes) -> None:
    target = prefix + "".join(f"%{byte:02x}" for byte in rest)
    names = ("Range", "Prefer", "Idempotency-Key", "Accept", "Content-Type", "X-Request-Id", "Cookie")
    key = ("Authorization", f"Bearer {served.key}")
    answer = ask(served, "GET", target, [key, *((name, header) for name in names)])
    assert answer.status in (200, 400, 404, 405, 422)
    assert answer.status == 200 or answer.code
