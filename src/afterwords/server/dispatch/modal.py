"""The dispatcher `modal`: our own app on Modal, called with Modal's client, or any app, called by its trigger URL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from afterwords.errors import MissingExtraError
from afterwords.server.concurrency import in_thread
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.calls import (
    CALL_TIMEOUT_S,
    CallDispatcher,
    CallFailedError,
    CallState,
    NotCalledError,
    Service,
    UnknownOutcomeError,
    check_service,
    check_url,
    hand,
)
from afterwords.server.dispatch.trigger import Trigger
from afterwords.server.ports import AttemptQueue
from afterwords.server.records import Claim
from afterwords.server.settings import Settings

T = TypeVar("T")

API_URL: Final = "https://api.modal.com"
_OPTION: Final = "AFTERWORDS_MODAL_TRIGGER_URL"


class ModalDispatcher(CallDispatcher):
    """Run jobs on Modal."""

    def __init__(self, settings: Settings, queue: AttemptQueue, streams: AudioStreams) -> None:  # noqa: ARG002 - others stream
        service: Service = App(settings, queue)
        if settings.modal_trigger_url is not None:
            service = Trigger(settings, queue, check_url(settings.modal_trigger_url, _OPTION))
        super().__init__(settings, queue, service)

    @staticmethod
    def check(settings: Settings) -> None:
        """Refuse settings with which no job could run.

        Raises:
            InvalidOptionError, ServerSetupError, MissingExtraError: They are incomplete.
        """
        if settings.modal_trigger_url is not None:
            check_service(settings, check_url(settings.modal_trigger_url, _OPTION), name="Modal")
            return
        check_service(settings, os.environ.get("MODAL_SERVER_URL", API_URL), name="Modal")
        if find_spec("modal") is None:
            error = MissingExtraError.for_extra("modal", purpose="The dispatcher modal without a trigger URL")
            error.hint = f"{error.hint}; or set {_OPTION}"
            raise error


class App:
    """The apps that `afterwords deploy modal` deploys, one for each backend; implements `Service`."""

    name = "modal"
    sends_words = True

    def __init__(self, settings: Settings, queue: AttemptQueue) -> None:
        self._settings = settings
        self._queue = queue
        self._methods: dict[str, Any] = {}  # by backend

    async def call(self, claim: Claim) -> str:
        backend = claim.job.backend
        if backend not in self._methods:
            self._methods[backend] = await self._ask(lambda: self._find(backend), is_sent=False)
        job = hand(self._settings, self._queue, claim)
        return str((await self._ask(lambda: self._methods[backend].spawn.aio(job), is_sent=True)).object_id)

    async def state(self, call_id: str) -> CallState:
        from modal import FunctionCall
        from modal import exception as reasons

        of_the_api = (
            *(reasons.AuthError, reasons.PermissionDeniedError, reasons.ResourceExhaustedError),
            *(reasons.ServiceError, reasons.InternalError, reasons.ConnectionError, reasons.ClientClosed),
        )
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await FunctionCall.from_id(call_id).get.aio(timeout=0)
        except (TimeoutError, OSError, *of_the_api):  # not done, or not known
            return CallState.RUNNING
        except Exception:  # noqa: BLE001 - the error of the call, whatever it is
            return CallState.OVER
        return CallState.OVER

    async def cancel(self, call_id: str) -> None:
        from modal import FunctionCall

        await self._ask(FunctionCall.from_id(call_id).cancel.aio, is_sent=True)

    async def close(self) -> None:
        pass

    async def _find(self, backend: str) -> Any:
        modal = await in_thread(__import__, "modal")  # takes two seconds
        method = modal.Cls.from_name(app_name(backend), "Speaker")().run
        await method.hydrate.aio()
        return method

    async def _ask(self, call: Callable[[], Awaitable[T]], *, is_sent: bool) -> T:
        """Call Modal.

        Args:
            is_sent: Whether a call that fails may have started a job.

        Raises:
            CallError: The call did not succeed.
        """
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await call()
        except (TimeoutError, OSError) as error:
            problem = "can't be reached: check the network"
            raise (UnknownOutcomeError if is_sent else NotCalledError)(problem) from error
        except Exception as error:
            from modal import exception as reasons

            if isinstance(error, reasons.AuthError | reasons.PermissionDeniedError):
                problem = "refuses this server: set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or run: modal setup"
                raise NotCalledError(problem) from error
            if isinstance(error, reasons.NotFoundError):
                self._methods.clear()
                raise NotCalledError("has no such app: run: afterwords deploy modal") from error
            problem = f"is busy or away ({type(error).__name__})"
            if isinstance(error, reasons.ResourceExhaustedError):
                raise NotCalledError(problem) from error
            if isinstance(error, reasons.ServiceError | reasons.InternalError | reasons.ConnectionError):
                raise (UnknownOutcomeError if is_sent else NotCalledError)(problem) from error
            raise CallFailedError(f"failed ({type(error).__name__}): its log says why") from error


def app_name(backend: str) -> str:
    """Return the name of the app for a backend."""
    return f"afterwords-{backend}"
