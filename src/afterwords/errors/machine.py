"""What this machine lacks, what an engine could not do, and the voices on its disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afterwords.errors.root import AfterwordsError, quoted
from afterwords.install import pip_install


class VoiceNotFoundError(AfterwordsError):
    code = "voice_not_found"
    http_status = 404
    exit_code = 4

    def __init__(
        self, name: str | None = None, *, nearest: Sequence[str] = (), where: str = "`afterwords voices list`"
    ) -> None:
        near = " or ".join(quoted(n) for n in nearest)
        super().__init__(
            "There is no such voice." if name is None else f"There is no voice {quoted(name)}.",
            hint=f"did you mean {near}?" if near else f"{where} shows what there is.",
        )


class UnavailableError(AfterwordsError):
    """This machine lacks something that the work needs."""

    code = "unavailable"
    http_status = 503


class MissingExtraError(UnavailableError):
    code = "missing_extra"

    def __init__(self, extra: str, *, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the extra {quoted(extra)}, which is not installed.",
            hint=pip_install(extra),
        )


class BackendUnavailableError(UnavailableError):
    code = "backend_unavailable"

    def __init__(self, backend: str, *, reason: str, fix: str) -> None:
        super().__init__(f"The backend {backend} can't run here: {reason}.", hint=fix)


class AudioDeviceError(UnavailableError):
    code = "no_audio_device"

    def __init__(self, purpose: str, *, why: str) -> None:
        super().__init__(
            f"{purpose} needs a sound device, and none answers ({why}).",
            hint="write to a file instead: -o hello.wav."
            if purpose == "Playing"
            else "give a recorded file instead of --record.",
        )


class TranscriberError(UnavailableError):
    code = "transcriber_unavailable"

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The recording could not be transcribed: {why}.",
            hint="type the transcript with --text, or point AFTERWORDS_WHISPER at a faster-whisper model folder.",
        )


class ModelNotHereError(UnavailableError):
    """Its weights were not pulled, or not to the end."""

    code = "model_not_here"

    def __init__(self, name: str, *, why: str = "is not on this machine") -> None:
        super().__init__(f"The model {name} {why}.", hint=f"afterwords models pull {name}")


class TooLittleMemoryError(UnavailableError):
    """Weights that this machine has no room for."""

    code = "too_little_memory"

    def __init__(self, name: str, *, needed_bytes: int, room_bytes: int, fitting: Sequence[str]) -> None:
        other = f"use {' or '.join(fitting)}" if fitting else "use the backend lite, which needs 1 GB"
        super().__init__(
            f"The model {name} needs {needed_bytes / 1e9:.1f} GB of memory; this machine can give it "
            f"{room_bytes / 1e9:.1f} GB.",
            hint=f"{other}.",
        )


class OfflineError(UnavailableError):
    code = "offline"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model {name} is not pulled: AFTERWORDS_OFFLINE or HF_HUB_OFFLINE forbids it.",
            hint=f"unset it, or put the files into the folder {name} below AFTERWORDS_MODELS.",
        )


class ModelBusyError(UnavailableError):
    code = "model_busy"

    def __init__(self, name: str) -> None:
        super().__init__(f"Another process is pulling the model {name}.", hint="wait for it to end, or end it.")


class PrecisionError(UnavailableError):
    """Rounded to fewer bits, a model says too much else."""

    code = "precision"

    def __init__(self, name: str, *, precision: str, why: str) -> None:
        super().__init__(
            f"The model {name} says too much else in {precision}: {why}.", hint="unset AFTERWORDS_PRECISION."
        )


class UnknownModelError(AfterwordsError):
    code = "unknown_model"
    http_status = 404
    exit_code = 4

    def __init__(self, name: str, *, known: Sequence[str]) -> None:
        super().__init__(f"There is no model {quoted(name)} to pull.", hint=f"choose one of: {', '.join(known)}.")


class ForeignModelError(AfterwordsError):
    """Only what was pulled is changed or removed."""

    code = "foreign_model"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The model in {path} was not pulled by afterwords, and is left alone.",
            hint="change or remove that folder yourself.",
        )


class SynthesisError(AfterwordsError):
    code = "synthesis_failed"
    exit_code = 7

    def __init__(self, backend: str, *, why: str) -> None:
        super().__init__(
            f"The backend {backend} could not speak: {why}.",
            hint="try a shorter text or another --seed; --debug shows where it failed.",
        )


class MeasurementTimeoutError(AfterwordsError):
    """`afterwords bench` gave up on a backend, or on a server."""

    code = "measurement_timeout"
    http_status = 504
    exit_code = 9

    def __init__(self, name: str, *, waited_s: float) -> None:
        super().__init__(
            f"Measuring {name} took longer than {waited_s:g} s.", hint="give it longer: --timeout SECONDS."
        )


class SpeechReadError(AfterwordsError):
    """A Speech was read a second time."""

    code = "speech_read"

    def __init__(self) -> None:
        super().__init__(
            "This speech was read before, and what was read is not kept.",
            hint="call stream again, or keep say's Audio.",
        )


class ModelFileError(AfterwordsError):
    code = "model_file"

    def __init__(self, name: str, *, why: str, hint: str) -> None:
        super().__init__(f"The model file {name} {why}.", hint=hint)


# -- the voices on this disk ---------------------------------------------------------------------------------


class LibraryError(AfterwordsError):
    """The voices on this disk can't be used as they are."""

    code = "library"


class CorruptVoiceError(LibraryError):
    code = "corrupt_voice"

    def __init__(self, entry: Path, *, why: str) -> None:
        super().__init__(
            f"The voice in {entry} is damaged: {why}.",
            hint="restore that folder from a backup, or move it away; the other voices are not affected.",
        )


class NewerLibraryError(LibraryError):
    code = "newer_library"

    def __init__(self, home: Path, *, found: int, known: int) -> None:
        super().__init__(
            f"The library in {home} has schema {found}, and this version knows up to {known}.",
            hint=f"install a newer afterwords: {pip_install(options='--upgrade')}",
        )


class LibraryBusyError(LibraryError):
    code = "library_busy"
    http_status = 503

    def __init__(self, home: Path, *, waited_s: float) -> None:
        super().__init__(
            f"Another process has held the library in {home} for {waited_s:g} s.",
            hint="wait for it to end, then try again.",
        )


class StorageFullError(LibraryError):
    code = "storage_full"
    http_status = 507

    def __init__(self, path: Path | str, *, needed_bytes: int | None = None, free_bytes: int = 0) -> None:
        lacks = (
            "is full"
            if needed_bytes is None
            else f"has {free_bytes / 1e9:.1f} GB free, and {needed_bytes / 1e9:.1f} GB are needed"
        )
        super().__init__(f"The disk that holds {path} {lacks}.", hint="free some space; nothing was changed or lost.")
