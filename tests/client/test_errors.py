"""Error responses become typed errors; invalid responses are refused."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from afterwords import Client, Voice
from afterwords.client.parsing import parse_error
from afterwords.client.requests import Request, Response
from afterwords.errors import (
    AfterwordsError,
    ConflictError,
    InvalidRequestError,
    InvalidResponseError,
    LimitError,
    NotFoundError,
    ServiceError,
    StorageFullError,
    UnauthorizedError,
    VoiceNotFoundError,
)
from afterwords.testing import Fault
from tests.client.both_clients import ClientFactory, n_busy
from tests.client.canned import JSON, canned_responses, json_response
from tests.client.faulty_proxy import FaultyServer
from tests.hosted.client import UNKNOWN_ID
from tests.hosted.http_server import HttpResponse
from tests.hosted.service import HostedService

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\d{3})[^|]*\| (`.*) \|$", DOCS.partition("## Errors")[2], re.M)
CODES = [(int(status), code) for status, codes in ROWS for code in re.findall(r"`([a-z_]+)`", codes)]
EXIT_CODES = {401: 3, 403: 3, 404: 4, 410: 4, 429: 6}


def error_of(status: int, body: bytes, content_type: str = JSON, **headers: str) -> AfterwordsError:
    names = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return parse_error(Response(status, names, body), Request("GET", "/v1/voices/x", missing_code="voice_not_found"))


class TestCodes:
    def test_docs_list_the_codes(self) -> None:
        assert len(CODES) > 50
        assert {"bad_request", "storage_full", "quota_exceeded", "not_wav"} <= {code for _, code in CODES}

    def test_every_code_has_a_class(self) -> None:
        wrong = []
        for status, code in CODES:
            fields = {"code": code, "message": "It failed.", "type": "x", "param": "text", "request_id": "req-1"}
            error = error_of(status, json.dumps({"error": fields}).encode())
            exit_code = 7 if code in ("runaway_audio", "synthesis_failed") else EXIT_CODES.get(status, error.exit_code)
            is_right = (
                code in (type(error).code, *type(error).codes)
                and (error.code, error.http_status, error.exit_code) == (code, status, exit_code)
                and (error.message, error.request_id, bool(error.hint)) == ("It failed.", "req-1", True)
                and (not isinstance(error, ServiceError) or (error.param, error.retry_after_s) == ("text", None))
            )
            wrong += [] if is_right else [(status, code, error)]
        assert wrong == []

    @pytest.mark.parametrize(
        ("status", "kind", "code"),
        [
            (400, InvalidRequestError, "bad_request"),
            (401, UnauthorizedError, "unauthorized"),
            (404, VoiceNotFoundError, "voice_not_found"),
            (409, ConflictError, "conflict"),
            (418, InvalidRequestError, "bad_request"),
            (429, LimitError, "limit_reached"),
            (500, ServiceError, "internal_error"),
            (599, ServiceError, "internal_error"),
        ],
    )
    def test_error_without_a_code_gets_that_of_its_status(
        self, status: int, kind: type[AfterwordsError], code: str
    ) -> None:
        for body in (b"{}", b'{"error": null}', b'{"error": "No."}', b'{"detail": []}', b"[1]", b"{"):
            error = error_of(status, body, x_request_id="req-2")
            assert (type(error), error.code, error.http_status, error.request_id) == (kind, code, status, "req-2")
            assert error.message in ("No.", f"The server responded with status {status}.")

    @pytest.mark.parametrize(("status", "kind"), [(422, InvalidRequestError), (500, ServiceError)])
    def test_unknown_code_is_kept(self, status: int, kind: type[AfterwordsError]) -> None:
        error = error_of(status, b'{"error": {"code": "from_the_future", "message": "New."}}')
        assert (type(error), error.code, error.message) == (kind, "from_the_future", "New.")

    @pytest.mark.parametrize("code", ["connection_lost", "job_failed", "server_setup", "error"])
    def test_code_of_a_local_error_is_not_accepted(self, code: str) -> None:
        assert type(error_of(400, json.dumps({"error": {"code": code}}).encode())) is InvalidRequestError

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_html_error_of_a_proxy_is_a_service_error(self, status: int) -> None:
        error = error_of(status, b"<h1>Bad gateway</h1>", "text/html")
        assert isinstance(error, ServiceError)
        assert (error.http_status, "Bad gateway" in str(error)) == (status, False)

    def test_limit_error_has_wait_and_limit(self) -> None:
        error = error_of(429, b'{"error": {"code": "rate_limited"}}', retry_after="7", ratelimit_limit="60")
        assert isinstance(error, LimitError)
        assert (error.retry_after_s, error.limit, "7 s" in error.hint) == (7, 60, True)


class TestHostile:
    @pytest.mark.parametrize(
        "text",
        ["\x1b[2J\x1b]0;owned\x07", "safe\u202egnp.exe", "a\r\nb\0", "\u2066\u200b", "x" * 10_000, "\x9b" * 10_000],
    )
    def test_error_text_is_safe_to_print(self, text: str) -> None:
        fields = dict.fromkeys(("code", "message", "type", "param", "request_id"), text)
        error = error_of(400, json.dumps({"error": fields}).encode(), x_request_id=text)
        assert isinstance(error, ServiceError)
        for shown in (str(error), error.hint, error.code, error.param or "", error.request_id or ""):
            assert shown.isprintable()
            assert len(shown) <= 2_500

    @pytest.mark.parametrize("value", [7, ["a"], {"b": 1}, True, None])
    def test_fields_of_a_wrong_type_are_ignored(self, value: object) -> None:
        body = dict.fromkeys(("code", "message", "type", "param", "request_id"), value)
        error = error_of(400, json.dumps({"error": body}).encode())
        assert (type(error), error.request_id) == (InvalidRequestError, None)

    @pytest.mark.parametrize("body", [b"[" * 100_000, b'{"error":' * 50_000, b"\xff\xfe", b"9" * 10_000])
    def test_hostile_json_is_refused(self, make_client: ClientFactory, body: bytes) -> None:
        assert error_of(422, body).http_status == 422
        with canned_responses(HttpResponse(200, body, JSON)) as (url, _), pytest.raises(InvalidResponseError):
            make_client(url, "aw_x").usage()


class TestInvalidResponses:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_redirect_is_not_followed(
        self, faulty: Client, faults: FaultyServer, voice: Voice, status: int, method: str
    ) -> None:
        with canned_responses(json_response({})) as (elsewhere, requests):
            faults.inject(Fault.REDIRECT, location=f"{elsewhere}/v1/voices", status=status)
            with pytest.raises(InvalidResponseError, match="another address"):
                list(faulty.voices.list()) if method == "GET" else faulty.say("Hello.", voice=voice)
        assert requests == []
        assert len(faults.seen) == 1

    @pytest.mark.parametrize(
        "call",
        [
            lambda client: client.health(),
            lambda client: list(client.voices.list()),
            lambda client: client.say("Hello.", voice=UNKNOWN_ID),
            lambda client: client.stream("Hello.", voice=UNKNOWN_ID),
            lambda client: client.jobs.audio(UNKNOWN_ID),
            lambda client: client.keys.create(),
        ],
    )
    def test_a_page_where_an_answer_belongs_is_error_of(
        self, faulty: Client, faults: FaultyServer, call: Callable[[Client], object]
    ) -> None:
        faults.inject(Fault.HTML, times=99)
        with pytest.raises(InvalidResponseError) as caught:
            call(faulty)
        assert "text/html" in caught.value.message
        assert (len(faults.seen), n_busy(faulty)) == (1, 0)

    @pytest.mark.parametrize("status", [400, 403, 404, 418])
    def test_html_error_is_not_an_api_error(self, make_client: ClientFactory, status: int) -> None:
        page = HttpResponse(status, b"<h1>No</h1>", "text/html", {"X-Request-Id": "r-1"})
        with (
            canned_responses(page) as (url, _),
            pytest.raises(InvalidResponseError, match=f"status {status}") as caught,
        ):
            make_client(url, "aw_x").usage()
        assert caught.value.request_id == "r-1"

    @pytest.mark.parametrize(
        ("body", "call"),
        [
            ([], lambda client: client.health()),
            ({"status": "ok"}, lambda client: client.health()),
            ({"characters": -1}, lambda client: client.usage()),
            ({}, lambda client: list(client.voices.list())),
            ([1], lambda client: list(client.voices.list())),
            ([{"voice_id": 7}], lambda client: list(client.voices.list())),
            ({"status": "ready"}, lambda client: client.jobs.get(UNKNOWN_ID)),
            ({"job_id": "a", "status": "resting"}, lambda client: client.jobs.get(UNKNOWN_ID)),
            ({"job_id": "a", "status": "pending", "audio_url": "x"}, lambda client: client.jobs.get(UNKNOWN_ID)),
            ({"error": "it is not"}, lambda client: client.keys.create()),
        ],
    )
    def test_json_of_another_shape_is_error_of(
        self, make_client: ClientFactory, body: object, call: Callable[[Client], object]
    ) -> None:
        with canned_responses(json_response(body)) as (url, _), pytest.raises(InvalidResponseError):
            call(make_client(url, "aw_x"))

    def test_unknown_fields_are_ignored(self, make_client: ClientFactory) -> None:
        health = {"status": "ok", "backends": ["tone"], "version": "9.9", "new_field": {"a": 1}}
        with canned_responses(json_response(health)) as (url, _):
            assert make_client(url).health().version == "9.9"

    @pytest.mark.parametrize("body", [gzip.compress(b"{}"), b"no gzip"], ids=["good", "damaged"])
    def test_compressed_response_is_refused(self, make_client: ClientFactory, body: bytes) -> None:
        with canned_responses(HttpResponse(200, body, JSON, {"Content-Encoding": "gzip"})) as (url, requests):
            client = make_client(url, "aw_x")
            with pytest.raises(InvalidResponseError, match="compressed"):
                client.usage()
            assert n_busy(client) == 0
        assert [request.headers["accept-encoding"] for request in requests] == ["identity"]

    def test_endless_pages_end(self, make_client: ClientFactory) -> None:
        voice = {"voice_id": UNKNOWN_ID, "name": "me", "backend": "tone", "created_at": "2026-01-01T00:00:00Z"}
        with canned_responses(json_response([voice], Link='</v1/voices?after=x>; rel="next"')) as (url, requests):
            assert len(list(make_client(url, "aw_x").voices.list())) == 2
        assert len(requests) == 2


class TestEndToEnd:
    def test_error_has_code_statuses_and_request_id(self, client: Client, voice: Voice) -> None:
        with pytest.raises(AfterwordsError) as caught:
            client.say("", voice=voice)
        assert (caught.value.code, caught.value.http_status, caught.value.exit_code) == ("empty_text", 422, 5)
        assert re.fullmatch(r"[0-9a-f-]{36}", str(caught.value.request_id))

    @pytest.mark.parametrize(("error_style", "request_id"), [("object", True), ("string", False)])
    def test_both_error_styles_of_the_hosted_service(
        self, make_client: ClientFactory, error_style: str, request_id: bool
    ) -> None:
        with HostedService(error_style=error_style) as hosted:  # type: ignore[arg-type]
            client = make_client(hosted.url, hosted.api_key)
            with pytest.raises(VoiceNotFoundError) as caught:
                client.say("Hello.", voice=UNKNOWN_ID)
            assert (caught.value.message, bool(caught.value.request_id)) == ("There is no such voice.", request_id)
            with pytest.raises(UnauthorizedError):
                make_client(hosted.url, "aw_wrong").usage()

    def test_full_disk_and_missing_route_have_own_classes(self, faulty: Client, faults: FaultyServer) -> None:
        faults.inject(Fault.ANSWER, status=507, code="storage_full")
        with pytest.raises(StorageFullError):
            faulty.usage()
        faults.inject(Fault.ANSWER, status=404)
        with pytest.raises(NotFoundError):
            faulty.usage()
