"""A server that gives the answers it is told to: such as no real one gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.hosted.wire import Answer as Page
from tests.hosted.wire import Asked, Doorway

JSON = "application/json"


@contextmanager
def answering(*pages: Page) -> Iterator[tuple[str, list[Asked]]]:
    """Give these answers, the last for ever; what comes is the address, and what was asked there."""
    left, seen = list(pages), []

    def answer(asked: Asked) -> Page:
        seen.append(asked)
        return left.pop(0) if len(left) > 1 else left[0]

    door = Doorway(answer)
    try:
        yield door.url, seen
    finally:
        door.close()


def page(told: object, status: int = 200, **headers: str) -> Page:
    return Page(status, json.dumps(told).encode(), JSON, headers)
