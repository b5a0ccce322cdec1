"""The webhook endpoint of an account: signs events, sends them, and repeats those that fail."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from hashlib import sha256
from threading import Condition, Thread
from typing import Final, NamedTuple

import httpx

from tests.stripe_api.account import Object

SECRET: Final = "whsec_an-endpoint-of-the-tests"
FIRST_GAP_S: Final = 0.05
LONGEST_GAP_S: Final = 1.0
"""Stripe's gaps grow to hours; these fit a test."""


class Attempt(NamedTuple):
    """An event that was sent: the status of the answer, or 0."""

    event: Object
    status: int


class Webhooks:
    """The endpoint at `url`, whose secret may be in change: then it has several.

    Attributes:
        api_version: Of what is sent; "2024-06-20" or older has periods on the subscription.
        attempts: What was sent, oldest first.
    """

    def __init__(self, api_version: str) -> None:
        self._url: str | None = None
        self.secrets = [SECRET]
        self.api_version = api_version
        self.attempts: list[Attempt] = []
        self._due: list[tuple[float, int, Object]] = []
        self._is_held = self._is_closed = self._is_sending = False
        self._changed = Condition()
        self._http = httpx.Client(trust_env=False, verify=False, timeout=30, headers={"User-Agent": "Stripe/1.0"})
        self._thread = Thread(target=self._send_due, name="stripe-webhooks")
        self._thread.start()

    @property
    def url(self) -> str | None:
        """The URL; until it is set, events are kept."""
        return self._url

    @url.setter
    def url(self, url: str | None) -> None:
        with self._changed:
            self._url = url
            self._changed.notify_all()

    def request(self, event: Object, *, at: float | None = None) -> tuple[bytes, dict[str, str]]:
        """Return the body and headers with which an event is sent, signed now or at a time."""
        body = json.dumps(rendered(event, self.api_version), indent=2).encode()
        stamp = int(time.time() if at is None else at)
        signed = b"%d." % stamp + body
        marks = [f"v1={hmac.new(secret.encode(), signed, sha256).hexdigest()}" for secret in self.secrets]
        return body, {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": ",".join([f"t={stamp}", *marks]),
        }

    def add(self, event: Object) -> None:
        """Send an event soon."""
        with self._changed:
            self._due.append((0, 0, event))
            self._changed.notify_all()

    def hold(self) -> None:
        """Keep events from now on, until they are delivered or released."""
        with self._changed:
            self._is_held = True
            self._changed.wait_for(lambda: not self._is_sending)

    def release(self) -> None:
        """Send what is kept, and what follows."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    @property
    def pending(self) -> list[Object]:
        """The events that no endpoint has taken, oldest first."""
        with self._changed:
            return [event for _, _, event in self._due]

    def take(self) -> list[Object]:
        """Return the events that no endpoint has taken, oldest first; they are not sent any more."""
        with self._changed:
            taken, self._due = [event for _, _, event in self._due], []
        return taken

    def deliver(self, order: Callable[[list[Object]], Iterable[Object]] | None = None, *, times: int = 1) -> list[int]:
        """Send the events that are kept, and return the statuses; those that fail every time stay.

        Args:
            order: From the pending events, oldest first, to those to send: `reversed`, or one that leaves some out,
                which are lost.
            times: How often the whole sequence is sent.
        """
        kept = self.take()
        chosen = list(order(kept) if order else kept)
        statuses = [self.send(event) for event in chosen * times]
        taken = [event["id"] for event, status in zip(chosen * times, statuses, strict=True) if status // 100 == 2]
        with self._changed:
            self._due[:0] = [(0, 0, event) for event in chosen if event["id"] not in taken]
        return statuses

    def send(self, event: Object) -> int:
        """Send an event now, and return the status of the answer, or 0."""
        assert self.url is not None
        body, headers = self.request(event)
        try:
            status = self._http.post(self.url, content=body, headers=headers).status_code
        except httpx.TransportError:
            status = 0
        self.attempts.append(Attempt(event, status))
        return status

    def wait(self, timeout_s: float = 60) -> None:
        """Wait until the endpoint has answered every event with 2xx."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._due and not self._is_sending, timeout_s), self.attempts[-5:]

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._http.close()

    def _send_due(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and (self._is_held or self.url is None or not self._due):
                    self._changed.wait()
                if self._is_closed:
                    return
                self._due.sort(key=lambda due: due[0])  # stable: in order, but for those that failed
                at, failures, event = self._due[0]
                if (gap := at - time.monotonic()) > 0:
                    self._changed.wait(gap)
                    continue
                del self._due[0]
                self._is_sending = True
            status = self.send(event)
            with self._changed:
                self._is_sending = False
                if status // 100 != 2:
                    gap = min(FIRST_GAP_S * 2**failures, LONGEST_GAP_S)
                    self._due.append((time.monotonic() + gap, failures + 1, event))
                self._changed.notify_all()


def rendered(event: Object, api_version: str) -> Object:
    """Return an event as an endpoint of an API version receives it."""
    event = {**deepcopy(event), "api_version": api_version}
    if api_version >= "2025-03-31":
        return event
    found = event["data"]["object"]
    if found["object"] == "subscription":
        for item in found["items"]["data"]:
            period = {name: item.pop(name) for name in ("current_period_start", "current_period_end")}
            found.update(period)
    if found["object"] == "invoice":
        details = found.pop("parent")["subscription_details"]
        found.update(subscription=details["subscription"], paid=found["status"] == "paid", charge=None)
    return event
