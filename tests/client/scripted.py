"""A session that gets scripted outcomes: no network, no time."""

from __future__ import annotations

from afterwords.client._sync.session import Session
from afterwords.client.profiles import Access
from afterwords.client.requests import Request, Response
from afterwords.errors import AfterwordsError


class ScriptedSession(Session):
    """Answers requests with these outcomes in order; the last one repeats."""

    def __init__(self, *outcomes: Response | AfterwordsError, is_afterwords_server: bool = True) -> None:
        super().__init__(Access("http://127.0.0.1:9"), timeout_s=1.0)
        self._outcomes = outcomes
        self._is_afterwords_server = is_afterwords_server
        self.sent: list[Request] = []
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def _send(self, request: Request) -> Response:
        outcome = self._outcomes[min(len(self.sent), len(self._outcomes) - 1)]
        self.sent.append(request)
        if isinstance(outcome, AfterwordsError):
            raise outcome
        return outcome
