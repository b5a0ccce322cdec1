"""The admission policy of the schedulers: which waiting request may join the batch next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from afterwords.backends.qwen3.request import DecodeRequest, FinishReason

RequestT = TypeVar("RequestT", bound=DecodeRequest[Any, Any])


class AdmissionQueue(Generic[RequestT]):
    """Requests that wait for a row; the scheduler holds its lock for every call.

    Requests that a client is streaming are admitted first. Requests that are decoded ahead of their time leave a
    quarter of the rows free, so that a long text does not delay other clients.
    """

    def __init__(self, n_rows: int) -> None:
        self.n_reserved = n_rows // 4
        self._waiting: deque[RequestT] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: RequestT) -> None:
        """Append a request; one that may have no frame ends at once."""
        if request.max_frames < 1:
            request.finish(FinishReason.LENGTH)
        else:
            self._waiting.append(request)

    def peek(self, *, may_look_ahead: bool) -> RequestT | None:
        """Return the request to admit next, or None; `may_look_ahead` allows one that no client is streaming."""
        for request in self._waiting:
            if request.is_streaming:
                return request
        return self._waiting[0] if self._waiting and may_look_ahead else None

    def remove(self, requests: list[RequestT]) -> None:
        """Remove requests that are admitted."""
        self._waiting = deque(request for request in self._waiting if request not in requests)

    def pop_batch(
        self, n_free: int, *, may_look_ahead: bool, fits: Callable[[RequestT, RequestT], bool]
    ) -> list[RequestT]:
        """Remove and return the requests to decode as one batch: the next one, and those that fit it.

        Args:
            n_free: Number of free rows.
            may_look_ahead: As for `peek`.
            fits: Whether a request can be decoded in one batch with the first.
        """
        first = self.peek(may_look_ahead=may_look_ahead) if n_free > 0 else None
        if first is None:
            return []
        others = [request for request in self._waiting if request is not first]
        fitting = [request for request in others if fits(request, first)]
        streaming = [request for request in fitting if request.is_streaming][: n_free - 1]
        n_elsewhere = sum(request.is_streaming for request in others if request not in fitting)
        n_ahead = n_free - 1 - len(streaming) - max(n_elsewhere, self.n_reserved)
        ahead = [request for request in fitting if not request.is_streaming][: max(0, n_ahead)]
        batch = [first, *streaming, *ahead]
        self.remove(batch)
        return batch

    def evict(self, *, everything: bool = False, error: Exception | None = None) -> None:
        """Remove the cancelled requests, or all of them, and end them."""
        evicted = [request for request in self._waiting if everything or request.is_cancelled]
        self.remove(evicted)
        for request in evicted:
            request.finish(FinishReason.CANCELLED, error)
