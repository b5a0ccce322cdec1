"""Prepare voices for engines."""

from __future__ import annotations

from afterwords.audio.wav import read_wav
from afterwords.backends import registry
from afterwords.backends.base import Engine, Progress, Reference, ignore_progress
from afterwords.library.library import Library
from afterwords.library.prompts import find_equal_prompt, find_prompt, prompt_key
from afterwords.local.management import library
from afterwords.models import Voice


def has_prompt(voice: Voice, backend: str) -> bool:
    """Return whether a voice is prepared for a backend.

    Raises:
        InvalidInputError, BackendUnavailableError: The backend can't run on this machine.
    """
    engine = registry.engine_for(registry.choose(backend))
    return find_prompt(library(), voice, engine, backend) is not None


def make_prompt(voice: Voice, backend: str, *, progress: Progress = ignore_progress) -> None:
    """Prepare a voice for a backend, unless it is prepared.

    Raises:
        InvalidInputError, BackendUnavailableError: The backend can't run on this machine.
        RecordingError: The reference can't be used.
    """
    get_prompt(library(), voice, registry.engine_for(registry.choose(backend)), backend, progress)


def get_prompt(voices: Library, voice: Voice, engine: Engine, backend: str, progress: Progress) -> bytes:
    """Return the engine's prompt for a voice; make and store it if there is none."""
    if (stored := find_prompt(voices, voice, engine, backend)) is not None:
        return stored
    key = prompt_key(backend, engine.prompt_version, is_fast=False)
    prompt = find_equal_prompt(voices, voice, key)
    if prompt is None:
        prompt = engine.prepare(read_reference(voices, voice), progress)
    voices.save_prompt(voice, key, prompt)
    return prompt


def read_reference(voices: Library, voice: Voice) -> Reference:
    samples, sample_rate = read_wav(voices.reference(voice), source=f"the reference of {voice.name}")
    return Reference(samples, sample_rate, voice.ref_text, voice.lang)


def likeness(voice: Voice) -> dict[str, float | str]:
    """Return what a voice's engine reports about its prompt, for example the speaker similarity; {} if nothing."""
    for backend in registry.backends():
        if backend.name == voice.backend and backend.engine is not None:
            prompt = find_prompt(library(), voice, backend.engine, backend.name)
            return {} if prompt is None else backend.engine.describe(prompt)
    return {}
