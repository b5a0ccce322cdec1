"""What a server may answer: typed errors, one a code; and what is no answer of the API at all."""

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
from afterwords.testing import Fault, FaultyServer
from tests.client.answering import JSON, answering, page
from tests.client.front import Either, n_busy
from tests.hosted.client import NOBODY
from tests.hosted.service import HostedService
from tests.hosted.wire import Answer as Page

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\d{3})[^|]*\| (`.*) \|$", DOCS.partition("## Errors")[2], re.M)
CODES = [(int(status), code) for status, codes in ROWS for code in re.findall(r"`([a-z_]+)`", codes)]
EXITS = {401: 3, 403: 3, 404: 4, 410: 4, 429: 6}


def refused(status: int, body: bytes, content_type: str = JSON, **headers: str) -> AfterwordsError:
    names = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return parse_error(Response(status, names, body), Request("GET", "/v1/voices/x", missing_code="voice_not_found"))


class TestCodes:
    def test_the_documentation_names_them_all(self) -> None:
        assert len(CODES) > 50
        assert {"bad_request", "storage_full", "quota_exceeded", "not_wav"} <= {code for _, code in CODES}

    @pytest.mark.parametrize(("status", "code"), CODES)
    def test_each_code_has_a_class(self, status: int, code: str) -> None:
        told = {"code": code, "message": "So it is.", "type": "x", "param": "text", "request_id": "req-1"}
        error = refused(status, json.dumps({"error": told}).encode())
        assert (error.code, error.message, error.request_id, error.http_status) == (code, "So it is.", "req-1", status)
        assert code in (type(error).code, *type(error).codes)
        assert error.hint
        assert error.exit_code == (7 if code in ("runaway_audio", "synthesis_failed") else error.exit_code)
        assert error.exit_code == EXITS.get(status, error.exit_code)
        if isinstance(error, ServiceError):
            assert (error.param, error.retry_after_s) == ("text", None)

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
    @pytest.mark.parametrize("body", [b"{}", b'{"error": null}', b'{"error": "No."}', b'{"detail": []}', b"[1]", b"{"])
    def test_a_refusal_without_a_code_is_named_by_its_status(
        self, status: int, kind: type[AfterwordsError], code: str, body: bytes
    ) -> None:
        error = refused(status, body, x_request_id="req-2")
        assert (type(error), error.code, error.http_status, error.request_id) == (kind, code, status, "req-2")
        assert error.message in ("No.", f"The server answered with status {status}.")

    @pytest.mark.parametrize(("status", "kind"), [(422, InvalidRequestError), (500, ServiceError)])
    def test_a_code_that_is_not_known_is_kept(self, status: int, kind: type[AfterwordsError]) -> None:
        error = refused(status, b'{"error": {"code": "from_the_future", "message": "New."}}')
        assert (type(error), error.code, error.message) == (kind, "from_the_future", "New.")

    @pytest.mark.parametrize("code", ["connection_lost", "job_failed", "server_setup", "error"])
    def test_a_server_can_not_say_what_is_found_out_here(self, code: str) -> None:
        assert type(refused(400, json.dumps({"error": {"code": code}}).encode())) is InvalidRequestError

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_proxy_may_speak_for_a_server_that_is_away(self, status: int) -> None:
        error = refused(status, b"<h1>Bad gateway</h1>", "text/html")
        assert isinstance(error, ServiceError)
        assert (error.http_status, "Bad gateway" in str(error)) == (status, False)

    def test_limits_say_how_long_and_how_much(self) -> None:
        error = refused(429, b'{"error": {"code": "rate_limited"}}', retry_after="7", ratelimit_limit="60")
        assert isinstance(error, LimitError)
        assert (error.retry_after_s, error.limit, "7 s" in error.hint) == (7, 60, True)


class TestHostile:
    @pytest.mark.parametrize(
        "text",
        ["\x1b[2J\x1b]0;owned\x07", "safe\u202egnp.exe", "a\r\nb\0", "\u2066\u200b", "x" * 10_000, "\x9b" * 10_000],
    )
    def test_what_it_says_is_made_safe_to_print(self, text: str) -> None:
        told = dict.fromkeys(("code", "message", "type", "param", "request_id"), text)
        error = refused(400, json.dumps({"error": told}).encode(), x_request_id=text)
        assert isinstance(error, ServiceError)
        for said in (str(error), error.hint, error.code, error.param or "", error.request_id or ""):
            assert said.isprintable()
            assert len(said) <= 2_500

    @pytest.mark.parametrize("told", [7, ["a"], {"b": 1}, True, None])
    def test_a_wrong_type_is_as_good_as_nothing(self, told: object) -> None:
        body = dict.fromkeys(("code", "message", "type", "param", "request_id"), told)
        error = refused(400, json.dumps({"error": body}).encode())
        assert (type(error), error.request_id) == (InvalidRequestError, None)

    @pytest.mark.parametrize("body", [b"[" * 100_000, b'{"error":' * 50_000, b"\xff\xfe", b"9" * 10_000])
    def test_json_that_breaks_parsers_breaks_nothing(self, either: Either, body: bytes) -> None:
        assert refused(422, body).http_status == 422
        with answering(Page(200, body, JSON)) as (url, _), pytest.raises(InvalidResponseError):
            either(url, "aw_x").usage()


class TestStrange:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_no_redirect_is_followed(
        self, faulty: Client, faults: FaultyServer, voice: Voice, status: int, method: str
    ) -> None:
        with answering(page({})) as (elsewhere, asked):
            faults.inject(Fault.REDIRECT, location=f"{elsewhere}/v1/voices", status=status)
            with pytest.raises(InvalidResponseError, match="another address"):
                list(faulty.voices.list()) if method == "GET" else faulty.say("Hello.", voice=voice)
        assert asked == []
        assert len(faults.seen) == 1

    @pytest.mark.parametrize(
        "call",
        [
            lambda client: client.health(),
            lambda client: list(client.voices.list()),
            lambda client: client.say("Hello.", voice=NOBODY),
            lambda client: client.stream("Hello.", voice=NOBODY),
            lambda client: client.jobs.audio(NOBODY),
            lambda client: client.keys.create(),
        ],
    )
    def test_a_page_where_an_answer_belongs_is_refused(
        self, faulty: Client, faults: FaultyServer, call: Callable[[Client], object]
    ) -> None:
        faults.inject(Fault.HTML, times=99)
        with pytest.raises(InvalidResponseError) as caught:
            call(faulty)
        assert "text/html" in caught.value.message
        assert (len(faults.seen), n_busy(faulty)) == (1, 0)

    @pytest.mark.parametrize("status", [400, 403, 404, 418])
    def test_a_page_that_refuses_is_no_refusal_of_the_api(self, either: Either, status: int) -> None:
        no = Page(status, b"<h1>No</h1>", "text/html", {"X-Request-Id": "r-1"})
        with answering(no) as (url, _), pytest.raises(InvalidResponseError, match=f"status {status}") as caught:
            either(url, "aw_x").usage()
        assert caught.value.request_id == "r-1"

    @pytest.mark.parametrize(
        ("told", "call"),
        [
            ([], lambda client: client.health()),
            ({"status": "ok"}, lambda client: client.health()),
            ({"characters": -1}, lambda client: client.usage()),
            ({}, lambda client: list(client.voices.list())),
            ([1], lambda client: list(client.voices.list())),
            ([{"voice_id": 7}], lambda client: list(client.voices.list())),
            ({"status": "ready"}, lambda client: client.jobs.get(NOBODY)),
            ({"job_id": "a", "status": "resting"}, lambda client: client.jobs.get(NOBODY)),
            ({"job_id": "a", "status": "pending", "audio_url": "x"}, lambda client: client.jobs.get(NOBODY)),
            ({"error": "it is not"}, lambda client: client.keys.create()),
        ],
    )
    def test_json_of_another_shape_is_refused(
        self, either: Either, told: object, call: Callable[[Client], object]
    ) -> None:
        with answering(page(told)) as (url, _), pytest.raises(InvalidResponseError):
            call(either(url, "aw_x"))

    def test_json_that_says_more_than_is_known_is_taken(self, either: Either) -> None:
        health = {"status": "ok", "backends": ["tone"], "version": "9.9", "moon": {"phase": "full"}}
        with answering(page(health)) as (url, _):
            assert either(url).health().version == "9.9"

    @pytest.mark.parametrize("body", [gzip.compress(b"{}"), b"no gzip"], ids=["good", "damaged"])
    def test_a_compressed_answer_was_not_asked_for(self, either: Either, body: bytes) -> None:
        with answering(Page(200, body, JSON, {"Content-Encoding": "gzip"})) as (url, asked):
            client = either(url, "aw_x")
            with pytest.raises(InvalidResponseError, match="compressed"):
                client.usage()
            assert n_busy(client) == 0
        assert [request.headers["accept-encoding"] for request in asked] == ["identity"]

    def test_pages_that_never_end_do(self, either: Either) -> None:
        voice = {"voice_id": NOBODY, "name": "me", "backend": "tone", "created_at": "2026-01-01T00:00:00Z"}
        with answering(page([voice], Link='</v1/voices?after=x>; rel="next"')) as (url, asked):
            assert len(list(either(url, "aw_x").voices.list())) == 2
        assert len(asked) == 2


class TestEndToEnd:
    def test_a_refusal_has_all_that_the_server_said(self, client: Client, voice: Voice) -> None:
        with pytest.raises(AfterwordsError) as caught:
            client.say("", voice=voice)
        assert (caught.value.code, caught.value.http_status, caught.value.exit_code) == ("empty_text", 422, 5)
        assert re.fullmatch(r"[0-9a-f-]{36}", str(caught.value.request_id))

    @pytest.mark.parametrize(("error_style", "request_id"), [("object", True), ("string", False)])
    def test_the_hosted_service_refuses_in_either_style(
        self, either: Either, error_style: str, request_id: bool
    ) -> None:
        with HostedService(error_style=error_style) as hosted:  # type: ignore[arg-type]
            client = either(hosted.url, hosted.api_key)
            with pytest.raises(VoiceNotFoundError) as caught:
                client.say("Hello.", voice=NOBODY)
            assert (caught.value.message, bool(caught.value.request_id)) == ("There is no such voice.", request_id)
            with pytest.raises(UnauthorizedError):
                either(hosted.url, "aw_wrong").usage()

    def test_a_full_disk_is_told_apart(self, faulty: Client, faults: FaultyServer) -> None:
        faults.inject(Fault.ANSWER, status=507, code="storage_full")
        with pytest.raises(StorageFullError):
            faulty.usage()
        faults.inject(Fault.ANSWER, status=404)
        with pytest.raises(NotFoundError):
            faulty.usage()
