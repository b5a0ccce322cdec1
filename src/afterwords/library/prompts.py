"""Prompts of the voices in a library: find, store and bundle them. `local` and `transfer` call it."""

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


def find_prompt(library: Library, voice: Voice, engine: Engine, backend: str) -> bytes | None:
    """Return the usable prompt of a voice, a full one before a fast one; None without any."""
    prompt = _usable(library, voice, engine, backend)
    return prompt.data if prompt else None


def find_equal_prompt(library: Library, voice: Voice, key: str) -> bytes | None:
    """Return a prompt that any voice with the same reference and transcript has under this key."""
    for other in library.list():
        if other.ref_sha256 == voice.ref_sha256 and other.ref_text == voice.ref_text:
            try:
                return library.prompt(other, key)
            except VoiceNotFoundError:
                continue
    return None


def usable_prompts(library: Library, voice: Voice) -> list[BundledPrompt]:
    """Return the prompts of a voice that the installed engines can use, for a bundle."""
    engines = [(backend.engine, backend.name) for backend in registry.backends() if backend.engine is not None]
    found = (_usable(library, voice, engine, name) for engine, name in engines)
    return [prompt for prompt in found if prompt is not None]


def save_bundled_prompts(library: Library, voice: Voice, bundle: Bundle) -> list[str]:
    """Save the usable prompts of a bundle with its voice; return a notice for each of the others."""
    notices = []
    engines = {backend.name: backend.engine for backend in registry.backends()}
    for prompt in bundle.prompts:
        engine = engines.get(prompt.backend)
        if engine is None:
            notices.append(f"The prompt for {prompt.backend} was dropped: no installed engine has this backend.")
        elif engine.prompt_version != prompt.version:
            notices.append(f"The prompt for {prompt.backend} was dropped: it is from another version of the engine.")
        elif not is_usable(engine, prompt.data):
            notices.append(f"The prompt for {prompt.backend} was dropped: the engine can't read it.")
        else:
            library.save_prompt(voice, prompt_key(prompt.backend, prompt.version, is_fast=prompt.is_fast), prompt.data)
    if bundle.n_mismatched:
        notices.append("A prompt was dropped: it was made from another recording, language or transcript.")
    return notices


def is_usable(engine: Engine, prompt: bytes) -> bool:
    """Return whether an engine can read an untrusted prompt."""
    try:
        engine.describe(prompt)
    except Exception:  # noqa: BLE001 - a plug-in may raise anything on untrusted bytes
        return False
    return True


def _usable(library: Library, voice: Voice, engine: Engine, backend: str) -> BundledPrompt | None:
    for is_fast in (False, True):
        data = library.prompt(voice, prompt_key(backend, engine.prompt_version, is_fast=is_fast))
        if data is not None and is_usable(engine, data):
            return BundledPrompt(backend, engine.prompt_version, is_fast, data)
    return None
