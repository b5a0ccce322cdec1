"""The hosted dispatch form: POST a job with its recording to a URL, whose app calls back with the audio."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import httpx

from afterwords.client.profiles import Access
from afterwords.client.transport import client_settings
from afterwords.network import explain_network_errors, root_cause
from afterwords.server.concurrency import in_thread
from afterwords.server.dispatch.calls import (
    CALL_TIMEOUT_S,
    CallFailedError,
    CallState,
    NotCalledError,
    UnknownOutcomeError,
)
from afterwords.server.dispatch.claiming import OUTAGE, retry_during_outage
from afterwords.server.ports import AttemptQueue
from afterwords.server.records import Claim
from afterwords.server.settings import Settings

CONNECT_TIMEOUT_S: Final = 2.0


class HttpCaller:
    """Calls a service over HTTP.

    Args:
        address: Name of the setting with its address, for messages.
        secret: Name of the setting with its secret.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str], address: str, secret: str) -> None:
        self._url = url
        self._address = address
        self._secret = secret
        settings = client_settings(Access(url))
        # A kept connection that the service closes just now would leave it unknown whether it got the job.
        settings |= {"headers": dict(headers), "limits": httpx.Limits(max_connections=64, max_keepalive_connections=0)}
        with explain_network_errors():
            self._http = httpx.AsyncClient(**settings, timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S))

    async def send(self, method: str, path: str = "", *, body: bytes | None = None) -> bytes:
        """Send a request, and return the body of a successful response.

        Raises:
            NotCalledError: The service can't be reached, refuses this server, or is busy.
            UnknownOutcomeError: It did not answer.
            CallFailedError: It failed.
        """
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                response = await self._http.request(method, self._url + path, content=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            why = getattr(root_cause(error), "strerror", None) or type(error).__name__
            raise NotCalledError(f"can't be reached ({str(why).lower()}): check {self._address}") from error
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
            raise NotCalledError(
                f"can't be called: check {self._secret} for line breaks, and {self._address}"
            ) from error
        except httpx.DecodingError as error:
            raise UnknownOutcomeError(f"answered what can't be decoded: check {self._address}") from error
        except (httpx.RequestError, TimeoutError) as error:
            raise UnknownOutcomeError(
                f"did not answer within {CALL_TIMEOUT_S:g} s: check that the app at {self._address} starts jobs in the "
                "background"
            ) from error
        status = response.status_code
        if response.is_success:
            return response.content
        if status in (429, 503):
            after = response.headers.get("Retry-After", "")
            retry_after_s = float(after) if after.isascii() and after.isdigit() else None
            raise NotCalledError(f"is busy (status {status})", retry_after_s=retry_after_s)
        if status in (401, 403):
            raise NotCalledError(f"refuses this server (status {status}): check {self._secret}")
        if response.is_redirect or status in (404, 405):
            raise NotCalledError(
                f"has no app there (status {status}): deploy it, and check {self._address}", status=status
            )
        raise CallFailedError(f"failed (status {status}): its log says why")

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


class Trigger:
    """An app with the hosted dispatch form; implements `Service`."""

    name = "modal"
    sends_words = False  # the form has audio only

    def __init__(self, settings: Settings, queue: AttemptQueue, url: str) -> None:
        headers = {}
        if settings.modal_proxy_token:
            headers["Modal-Key"], _, headers["Modal-Secret"] = settings.modal_proxy_token.get_secret_value().partition(
                ":"
            )
        self._settings = settings
        self._queue = queue
        self._http = HttpCaller(
            url, headers=headers, address="AFTERWORDS_MODAL_TRIGGER_URL", secret="AFTERWORDS_MODAL_PROXY_TOKEN"
        )

    async def call(self, claim: Claim) -> None:
        try:
            reference = await retry_during_outage(
                lambda: self._queue.reference(claim), timeout_s=self._settings.lease_s
            )
        except OUTAGE as error:
            raise NotCalledError(f"gets no jobs while the recordings can't be read ({error.code})") from error
        job, secret = claim.job, self._settings.callback_secret
        token = secret.get_secret_value() if secret else self._queue.attempt_token(job.job_id, job.attempt)
        form: dict[str, Any] = {
            "job_id": job.job_id,
            "voice_id": job.voice_id,
            "ref_text": claim.voice.ref_text,
            "text": job.text,
            "lang": job.lang,
            "backend_name": job.backend,
            "cache_key": job.cache_key,
            "callback_url": f"{self._settings.base_url}/v1/jobs/{job.job_id}/complete",
            "callback_secret": token,
        }
        if job.speed != 1:  # what the hosted service has no field for is only sent where it matters
            form["speed"] = job.speed
        if job.seed is not None:
            form["seed"] = job.seed

        def encode() -> bytes:
            return json.dumps({**form, "ref_audio_b64": base64.b64encode(reference).decode()}).encode()

        await self._http.send("POST", body=await in_thread(encode))

    async def state(self, call_id: str) -> CallState:  # noqa: ARG002 - there are no IDs
        return CallState.RUNNING

    async def cancel(self, call_id: str) -> None:
        pass

    async def close(self) -> None:
        await self._http.close()
