"""How an endpoint's signature is read from a request, and how what is wrong is refused without being shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Body, Header, Query, Request
from hypothesis import given
from hypothesis import strategies as st

from afterwords.errors import (
    AfterwordsError,
    BadRequestError,
    InvalidFieldError,
    InvalidJsonError,
    InvalidUnicodeError,
    MissingFieldError,
)
from afterwords.models import JobStatus
from afterwords.server.params import Reader
from afterwords.server.routes.schemas import NewKeyBody, SynthesizeBody

JSON = {"content-type": "application/json"}
CANARY = "canary7f3a"


async def with_parts(
    request: Request,
    job_id: str,
    status: Annotated[JobStatus | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=10)] = 5,
    prefer: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=5)] = None,
) -> None: ...


async def with_body(body: Annotated[SynthesizeBody, Body()]) -> None: ...


async def with_optional_body(request: Request, body: Annotated[NewKeyBody | None, Body()] = None) -> None: ...


def read(
    endpoint: Callable[..., Any],
    *,
    path: dict[str, str] | None = None,
    query: bytes = b"",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> dict[str, Any]:
    """What an endpoint is given of a request."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "path_params": path or {},
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    given = asyncio.run(Reader(endpoint, {"job_id"})(Request(scope, receive)))
    given.pop("request", None)
    return given


def test_what_is_absent_has_its_default() -> None:
    assert read(with_parts, path={"job_id": "7"}) == {
        "job_id": "7", "status": None, "limit": 5, "prefer": None, "idempotency_key": None,
    }  # fmt: skip


def test_each_part_is_read_from_its_place_and_as_its_type() -> None:
    given = read(
        with_parts,
        path={"job_id": "7"},
        query=b"status=ready&limit=3&prefer=no",
        headers={"prefer": "wait=5", "Idempotency-Key": "abc", "limit": "9"},
    )
    assert given == {
        "job_id": "7", "status": JobStatus.READY, "limit": 3, "prefer": "wait=5", "idempotency_key": "abc",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        (f"status={CANARY}", {}, "status"),
        (f"limit={CANARY}", {}, "limit"),
        ("limit=11", {}, "limit"),
        ("limit=", {}, "limit"),
        ("limit=1e1", {}, "limit"),
        ("", {"Idempotency-Key": CANARY}, "Idempotency-Key"),
    ],
)
def test_a_part_that_can_not_be_used_is_named_and_not_shown(query: str, headers: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidFieldError, match=f"^The field {param} can't be used: ") as caught:
        read(with_parts, path={"job_id": "7"}, query=query.encode(), headers=headers)
    assert caught.value.param == param
    assert CANARY not in caught.value.message


def test_a_body_is_read_strictly() -> None:
    body = b'{"voice_id": "v", "text": "hi", "speed": 2, "response_format": "mp3", "of_tomorrow": [1]}'
    ask = read(with_body, headers=JSON, body=body)["body"]
    assert (ask.text, ask.speed, ask.response_format, ask.stream) == ("hi", 2.0, "mp3", False)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json"])
def test_any_content_type_of_json_is_taken(kind: str) -> None:
    assert read(with_body, headers={"content-type": kind}, body=b'{"voice_id": "v", "text": "hi"}')["body"].text == "hi"


def test_an_optional_body_may_be_absent_but_not_wrong() -> None:
    assert read(with_optional_body) == {"body": None}
    assert read(with_optional_body, headers=JSON, body=b"{}")["body"] == NewKeyBody()
    with pytest.raises(InvalidJsonError):
        read(with_optional_body, headers=JSON, body=b" ")
    with pytest.raises(InvalidJsonError, match="Content-Type"):
        read(with_optional_body, body=b"{}")


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b"", InvalidJsonError, None),
        (b"[]", InvalidJsonError, None),
        (b"null", InvalidJsonError, None),
        (b'{"text": "canary7f3a', InvalidJsonError, None),
        (b'{"text": "\xff"}', InvalidJsonError, None),
        (rb'{"text": "\u12"}', InvalidJsonError, None),
        (b"[" * 50_000, InvalidJsonError, None),
        (b'{"text": "canary7f3a"}', MissingFieldError, "voice_id"),
        (rb'{"voice_id": "v", "text": "canary7f3a\ud800"}', InvalidUnicodeError, None),
        (rb'{"voice_id": "v", "text": "canary7f3a\udc00 \ud800x"}', InvalidUnicodeError, None),
        (b'{"voice_id": "v", "text": ["canary7f3a"]}', InvalidFieldError, "text"),
        (b'{"voice_id": "v", "text": NaN}', InvalidFieldError, "text"),
        (b'{"voice_id": "v", "text": "a", "speed": 1e400}', InvalidFieldError, "speed"),
        (b'{"voice_id": "v", "text": "a", "speed": "canary7f3a"}', InvalidFieldError, "speed"),
        (b'{"voice_id": "v", "text": "a", "seed": true}', InvalidFieldError, "seed"),
        (b'{"voice_id": "v", "text": "a", "response_format": "canary7f3a"}', InvalidFieldError, "response_format"),
    ],
)
def test_a_wrong_body_is_refused_and_not_shown(body: bytes, kind: type[AfterwordsError], param: str | None) -> None:
    with pytest.raises(AfterwordsError) as caught:
        read(with_body, headers=JSON, body=body)
    assert type(caught.value) is kind
    assert getattr(caught.value, "param", None) == param
    assert CANARY not in f"{caught.value} {caught.value.hint}"


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_random_bytes_are_read_or_refused_on_purpose(body: bytes) -> None:
    with contextlib.suppress(BadRequestError, InvalidFieldError, InvalidUnicodeError):
        read(with_optional_body, headers=JSON, body=body)


def test_byte_order_mark_before_json_is_skipped() -> None:
    body = b'\xef\xbb\xbf{"voice_id": "v", "text": "hi"}'
    assert read(with_body, headers=JSON, body=body)["body"].text == "hi"
    assert read(with_optional_body, headers=JSON, body=b"\xef\xbb\xbf")["body"] is None
