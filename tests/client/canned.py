"""A server with canned responses, for those that no real server gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.hosted.http_server import HttpRequest, HttpResponse, HttpServer

JSON = "application/json"


@contextmanager
def canned_responses(*responses: HttpResponse) -> Iterator[tuple[str, list[HttpRequest]]]:
    """Serve these responses in order, the last one repeatedly; yield the address and the list of requests."""
    left, requests = list(responses), []

    def respond(request: HttpRequest) -> HttpResponse:
        requests.append(request)
        return left.pop(0) if len(left) > 1 else left[0]

    server = HttpServer(respond)
    try:
        yield server.url, requests
    finally:
        server.close()


def json_response(body: object, status: int = 200, **headers: str) -> HttpResponse:
    return HttpResponse(status, json.dumps(body).encode(), JSON, headers)
