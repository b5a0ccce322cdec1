"""The dispatcher `modal`: an app on Modal, called by its trigger URL."""

from __future__ import annotations

from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.calls import CallDispatcher, check_service, check_url
from afterwords.server.dispatch.trigger import Trigger
from afterwords.server.ports import AttemptQueue
from afterwords.server.settings import Settings

_OPTION = "AFTERWORDS_MODAL_TRIGGER_URL"


class ModalDispatcher(CallDispatcher):
    """Run jobs on Modal."""

    def __init__(self, settings: Settings, queue: AttemptQueue, streams: AudioStreams) -> None:  # noqa: ARG002 - others stream
        super().__init__(settings, queue, Trigger(settings, queue, check_url(settings.modal_trigger_url, _OPTION)))

    @staticmethod
    def check(settings: Settings) -> None:
        """Refuse settings with which no job could run.

        Raises:
            InvalidOptionError, ServerSetupError: They are incomplete.
        """
        check_service(settings, check_url(settings.modal_trigger_url, _OPTION), name="Modal")
