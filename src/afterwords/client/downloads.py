"""How a long body is fetched to its last byte: on from where the connection broke off, anew where it was altered."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from afterwords.client.requests import (
    RETRIES,
    Answer,
    Ask,
    Known,
    Operation,
    Pause,
    cut,
    is_damaged,
    pause_s,
    sent,
    strange,
)
from afterwords.errors import AfterwordsError, RemoteError

_PART: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


def fetched(ask: Ask, known: Known) -> Operation[Answer]:
    """Fetch a body to its last byte: go on where the connection breaks off, begin again where it came altered.

    Raises:
        StrangeAnswerError: it comes altered every time.
        ConnectionLostError: it kept breaking off.
    """
    have = _NOTHING
    for attempt in range(RETRIES + 1):
        try:
            have = _joined(have, (yield from sent(_resumed(ask, have), known)))
        except AfterwordsError as refused:
            if refused.http_status != 416 or not have.body:
                raise
            have = _NOTHING  # all of it was there but the sign that it had ended
        error: RemoteError = cut()
        if have.is_whole:
            if not is_damaged(have):
                return have
            error = strange(have, "its bytes are not those that it states; something on the way alters or cuts it")
            have = _NOTHING
        if attempt == RETRIES:
            raise error
        yield Pause(pause_s(attempt, error))
    raise AssertionError("the last attempt returns or raises")


_NOTHING: Final = Answer(0, {}, b"", is_whole=False)


def _resumed(ask: Ask, have: Answer) -> Ask:
    """The request for what is missing still."""
    if not have.body:
        return ask
    headers = {"Range": f"bytes={len(have.body)}-"}
    if etag := have.headers.get("etag"):
        headers["If-Range"] = etag
    return replace(ask, headers={**ask.headers, **headers})


def _joined(have: Answer, got: Answer) -> Answer:
    """What there is, with what came; another body than before begins anew."""
    if got.status != 206:
        can_resume = got.is_whole or got.headers.get("accept-ranges") != "none"
        return got if can_resume else _NOTHING
    part = _PART.fullmatch(got.headers.get("content-range", ""))
    if part is None or int(part[1]) != len(have.body):
        return _NOTHING
    body = have.body + got.body
    return Answer(200, have.headers, body, is_whole=got.is_whole and len(body) == int(part[2]))
