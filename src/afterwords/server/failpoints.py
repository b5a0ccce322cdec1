"""Failpoints: named places where tests can kill the server.

They work only with `AFTERWORDS_TESTING=1`. `AFTERWORDS_FAILPOINT=voice-committed` kills the process at the first
reach of that place, `voice-committed:3` at the third.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final

PLACES: Final = (
    "reference-stored",  # an upload's blob is written, its row is not
    "voice-committed",  # the row is written, the response is not sent
    "job-committed",  # a job is accepted, but neither answered nor dispatched
    "job-claimed",  # an attempt is open, nothing is synthesized
    "preparation-claimed",  # the same, of a preparation
    "audio-stored",  # a result's blob is written, its row is not
    "job-finished",  # the row is final, no event is published
    "voice-tombstoned",  # a voice is deleted, its blobs are not
)
IN_BILLING: Final = (
    "customer-created",  # at Stripe, but not stored
    "customer-stored",  # a checkout has a customer, and no session
    "session-created",  # at Stripe, but not stored
    "session-stored",  # the browser has no URL and no cookie
    "customer-read",  # what Stripe says is not stored
    "customer-synced",  # it is stored, and Stripe's event is not answered
    "checkout-key-drawn",  # a page has found the payment, and its key is not stored
    "checkout-key-stored",  # a key exists that no page has shown
)

_reached: Counter[str] = Counter()


def reach(place: str) -> None:
    """Kill the process if the environment names this place."""
    if os.environ.get("AFTERWORDS_TESTING") != "1":
        return
    name, _, count = os.environ.get("AFTERWORDS_FAILPOINT", "").partition(":")
    if name != place:
        return
    _reached[place] += 1
    if _reached[place] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
