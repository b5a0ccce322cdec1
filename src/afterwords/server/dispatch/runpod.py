"""The dispatcher `runpod`: a serverless endpoint of RunPod, whose handler `afterwords deploy runpod` writes."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import quote

from afterwords.errors import ServerSetupError
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.calls import (
    CallDispatcher,
    CallState,
    NotCalledError,
    UnknownOutcomeError,
    check_service,
    check_url,
    hand,
)
from afterwords.server.dispatch.trigger import HttpCaller
from afterwords.server.ports import AttemptQueue
from afterwords.server.records import Claim
from afterwords.server.settings import Settings
from afterwords.text import max_speech_s

_STATES: Final = {"IN_QUEUE": CallState.WAITING, "IN_PROGRESS": CallState.RUNNING, "RUNNING": CallState.RUNNING}
_OPTION: Final = "AFTERWORDS_RUNPOD_URL"


class RunPodDispatcher(CallDispatcher):
    """Run jobs on RunPod."""

    def __init__(self, settings: Settings, queue: AttemptQueue, streams: AudioStreams) -> None:  # noqa: ARG002 - others stream
        super().__init__(settings, queue, _Endpoint(settings, queue))

    @staticmethod
    def check(settings: Settings) -> None:
        """Refuse settings with which no job could run.

        Raises:
            InvalidOptionError, ServerSetupError: They are incomplete.
        """
        check_service(settings, check_url(settings.runpod_url, _OPTION), name="RunPod")
        if len(settings.backends or ()) > 1:
            raise ServerSetupError(
                f"An endpoint of RunPod runs one backend, and {len(settings.backends or ())} are to be offered.",
                hint="name one in AFTERWORDS_BACKENDS, or give the others another dispatcher in "
                "AFTERWORDS_DISPATCHERS.",
            )
        if settings.runpod_api_key is None:
            raise ServerSetupError(
                "The dispatcher runpod needs a key of RunPod.",
                hint="create one in RunPod's console, and set AFTERWORDS_RUNPOD_API_KEY.",
            )
        if not settings.runpod_api_key.get_secret_value().isascii():
            raise ServerSetupError(
                "AFTERWORDS_RUNPOD_API_KEY is not a key of RunPod: it has characters outside ASCII.",
                hint="copy the key from RunPod's console again.",
            )


class _Endpoint:
    """The API of a serverless endpoint; implements `Service`."""

    name = "runpod"
    sends_words = True

    def __init__(self, settings: Settings, queue: AttemptQueue) -> None:
        key = settings.runpod_api_key.get_secret_value() if settings.runpod_api_key else ""
        self._settings = settings
        self._queue = queue
        self._http = HttpCaller(
            check_url(settings.runpod_url, _OPTION).rstrip("/"),
            headers={"Authorization": f"Bearer {key}"},
            address=_OPTION,
            secret="AFTERWORDS_RUNPOD_API_KEY",
        )

    async def call(self, claim: Claim) -> str:
        job = claim.job
        longest_ms = 1000 * round(self._settings.start_allowance_s + 2 * max_speech_s(job.text or "", speed=job.speed))
        body = {
            "input": hand(self._settings, self._queue, claim),
            "policy": {"executionTimeout": longest_ms},
        }
        answer = _parse(await self._http.send("POST", "/run", body=json.dumps(body).encode()))
        if not isinstance(answer.get("id"), str):
            raise UnknownOutcomeError(f"answered without the ID of a job: check {_OPTION}")
        return str(answer["id"])

    async def state(self, call_id: str) -> CallState:
        try:
            answer = _parse(await self._http.send("GET", f"/status/{quote(call_id, safe='')}"))
        except NotCalledError as error:
            if error.status == 404:
                return CallState.OVER
            raise
        return _STATES.get(str(answer.get("status")), CallState.OVER)

    async def cancel(self, call_id: str) -> None:
        await self._http.send("POST", f"/cancel/{quote(call_id, safe='')}")

    async def close(self) -> None:
        await self._http.close()


def _parse(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UnknownOutcomeError(f"did not answer with JSON: check {_OPTION}")
    return answer
