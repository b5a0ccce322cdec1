"""What engines made of the voices of a library: found, kept, and carried along when a voice travels.

`studio` makes prompts and speaks with them; `travel` and the command line carry them in bundles.
"""

from __future__ import annotations

from afterwords.backends import registry
from afterwords.backends.base import Engine
from afterwords.errors import VoiceNotFoundError
from afterwords.library.bundle import Bundle, BundledPrompt
from afterwords.library.library import Library
from afterwords.models import Voice


def prompt_key(backend: str, version: str, *, is_fast: bool) -> str:
    """Return the key of a prompt in the library."""
    return f"{backend}-{version}-{'fast' if is_fast else 'full'}"


def kept_prompt(shelf: Library, voice: Voice, engine: Engine, backend: str) -> bytes | None:
    """Return the prompt that is kept with a voice, the better one first; None if there is none that can be used."""
    kept = _kept(shelf, voice, engine, backend)
    return kept.data if kept else None


def known_prompt(shelf: Library, voice: Voice, key: str) -> bytes | None:
    """Return a prompt that was made of the very same reference for another voice, or for this one before."""
    for other in shelf.list():
        if other.ref_sha256 == voice.ref_sha256 and other.ref_text == voice.ref_text:
            try:
                return shelf.prompt(other, key)
            except VoiceNotFoundError:
                continue
    return None


def prompts_of(shelf: Library, voice: Voice) -> list[BundledPrompt]:
    """Return the prompts of a voice that an engine here would use, to be carried along."""
    engines = [(backend.engine, backend.name) for backend in registry.backends() if backend.engine is not None]
    found = (_kept(shelf, voice, engine, name) for engine, name in engines)
    return [prompt for prompt in found if prompt is not None]


def keep_prompts(shelf: Library, voice: Voice, bundle: Bundle) -> list[str]:
    """Keep the prompts of a bundle with its voice; returns a sentence for each that can't be used here."""
    notices = []
    engines = {backend.name: backend.engine for backend in registry.backends()}
    for prompt in bundle.prompts:
        engine = engines.get(prompt.backend)
        if engine is None:
            notices.append(f"What was prepared for {prompt.backend} was left out: no engine here offers it.")
        elif engine.prompt_version != prompt.version:
            notices.append(
                f"What was prepared for {prompt.backend} was left out: it is of another version of the engine."
            )
        elif not is_usable(engine, prompt.data):
            notices.append(f"What was prepared for {prompt.backend} was left out: the engine can't read it.")
        else:
            shelf.save_prompt(voice, prompt_key(prompt.backend, prompt.version, is_fast=prompt.is_fast), prompt.data)
    if bundle.n_foreign:
        notices.append("What was prepared was left out: it was made from another recording, language or transcript.")
    return notices


def is_usable(engine: Engine, prompt: bytes) -> bool:
    """Return whether an engine can read a prompt, which may come from anyone."""
    try:
        engine.describe(prompt)
    except Exception:  # noqa: BLE001 - a plug-in's reader at the edge: foreign bytes fail in many ways
        return False
    return True


def _kept(shelf: Library, voice: Voice, engine: Engine, backend: str) -> BundledPrompt | None:
    for is_fast in (False, True):
        data = shelf.prompt(voice, prompt_key(backend, engine.prompt_version, is_fast=is_fast))
        if data is not None and is_usable(engine, data):
            return BundledPrompt(backend, engine.prompt_version, is_fast, data)
    return None
