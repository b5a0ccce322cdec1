"""The base class of the Qwen3-TTS engines, for torch and MLX.

Listing engines imports this module, so that tensor libraries are imported in functions only.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from afterwords.backends.base import (
    Available,
    Chunk,
    InvalidPromptError,
    Progress,
    Reference,
    Unavailable,
    ignore_progress,
)
from afterwords.backends.qwen3.config import LANGUAGE_NAMES
from afterwords.errors import ModelError, SynthesisError, UnsupportedLangError

if TYPE_CHECKING:
    from afterwords.backends.qwen3.long_text import Scheduler
    from afterwords.backends.qwen3.request import DecodeRequest
    from afterwords.models import SpeechTask

LoadedParts = tuple[Any, Any]
"""A model and its scheduler, in torch or MLX."""


class Qwen3Engine(ABC):
    """An engine with one checkpoint, which is loaded when it is first needed."""

    name: str
    backends: tuple[str, ...]
    sample_rate = 24_000
    max_concurrent: int
    prompt_version: str
    continues_recording = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: LoadedParts | None = None
        self._is_warm = False

    @abstractmethod
    def availability(self) -> Available | Unavailable:
        """See `Engine.availability`."""

    @abstractmethod
    def _load(self, progress: Progress) -> LoadedParts:
        """Load the checkpoint, or raise the error that names what is missing."""

    @abstractmethod
    def _warm_up(self, parts: LoadedParts) -> None:
        """Run once what the first request would wait for otherwise."""

    @abstractmethod
    def _release(self) -> None:
        """Free the memory that the device keeps for a closed model."""

    def languages(self, backend: str) -> frozenset[str]:  # noqa: ARG002 - all sizes speak the same
        return frozenset(LANGUAGE_NAMES)

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:
        progress(0.0, "loading the model")
        parts = self._ensure_loaded(lambda done, step: progress(0.8 * done, step))
        if not self._is_warm:
            progress(0.8, "warming up")
            from afterwords.backends.qwen3.request import SchedulerClosedError

            try:
                self._warm_up(parts)
            except SchedulerClosedError as error:
                raise SynthesisError.for_backend(backend, why="the engine was closed") from error
            self._is_warm = True
        progress(1.0, "done")

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:  # noqa: ARG002 - it takes a second
        progress(0.0, "loading the model")
        model, _ = self._ensure_loaded(lambda done, step: progress(0.8 * done, step))
        progress(0.8, "measuring the voice")
        prompt: bytes = model.encode_reference(reference).to_bytes(model.format)
        progress(1.0, "done")
        return prompt

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        try:  # the header of safetensors: JSON after its length in 8 bytes
            is_in_context = "codes" in json.loads(prompt[8 : 8 + int.from_bytes(prompt[:8], "little")])
        except (ValueError, TypeError, RecursionError):
            raise InvalidPromptError("not a prompt for this model: it can't be read") from None
        if is_in_context:
            return {"speaks": "as a continuation of the recording"}
        return {
            "speaks": "by its speaker embedding alone",
            "notice": "What is said in the recording is not known, so the voice speaks by its speaker embedding alone, "
            "which is less alike: state the words, or install the extra transcribe, and clone it again.",
        }

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        model, scheduler = self._ensure_loaded()
        from afterwords.backends.qwen3.long_text import LongTextStream
        from afterwords.backends.qwen3.reference_prompt import StalePromptError

        known = model.config.talker.languages
        if LANGUAGE_NAMES.get(task.lang) not in known:  # the model would guess
            supported = [lang for lang, name in LANGUAGE_NAMES.items() if name in known]
            raise UnsupportedLangError.for_lang(task.lang, supported=supported, backend=task.backend)
        try:
            voice = model.load_voice(task.prompt)
        except StalePromptError as error:
            raise SynthesisError.for_backend(task.backend, why=str(error)) from error
        yield from LongTextStream(model, scheduler, voice, task).chunks()

    def forget_voices(self) -> None:
        """See `CachingEngine.forget_voices`."""
        with self._lock:
            if self._loaded:
                self._loaded[0].forget_voices()

    def close(self) -> None:
        with self._lock:
            parts, self._loaded, self._is_warm = self._loaded, None, False
        if parts is None:
            return
        parts[1].close()
        del parts
        self._release()

    def _ensure_loaded(self, progress: Progress = ignore_progress) -> LoadedParts:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load(progress)
            return self._loaded


def run_to_end(scheduler: Scheduler, request: DecodeRequest[Any, Any]) -> None:
    """Decode a request and discard its audio.

    Raises:
        Exception: The error that ended the request, for example that memory ran out.
    """
    scheduler.submit(request)
    for _ in request.stream():
        pass
    if request.error is not None:
        raise request.error


def check_memory(name: str, *, needed_bytes: int, room_bytes: float, sizes: Mapping[str, int]) -> None:
    """Refuse a model that needs more memory than it may use; `sizes` is the memory that each model needs.

    Raises:
        ModelError: The model does not fit; the message states the needed memory, and the hint what would fit.
    """
    if needed_bytes > room_bytes:
        fitting = [other for other, size in sizes.items() if size <= room_bytes and other != name]
        raise ModelError(
            f"The model {name} needs {needed_bytes / 1e9:.1f} GB of memory; {room_bytes / 1e9:.1f} GB are available.",
            code="too_little_memory",
            hint=f"use {' or '.join(fitting) or 'the backend lite, which needs 1 GB'}.",
        )
