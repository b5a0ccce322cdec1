"""Keys of the speech cache and paths of blobs, equal to those of the hosted service.

Server, workers and benchmarks must agree on them to the byte. IDs are UUIDs and keys are hex, so no path leaves its
root.
"""

from __future__ import annotations

from hashlib import sha256


def cache_key(text: str, *, lang: str, backend: str, speed: float = 1.0, seed: int | None = None) -> str:
    """Return the cache key of speech within its voice: 64 hex digits.

    Args:
        text: Validated text, without NUL, which separates the fields of the key.
        speed: Omitted from the key at 1, like on the hosted service.
        seed: Omitted from the key if None.
    """
    options = {"seed": None if seed is None else str(seed), "speed": None if speed == 1 else repr(float(speed))}
    further = [f"{name}={value}" for name, value in sorted(options.items()) if value is not None]
    return sha256("\0".join([text, lang, backend, *further]).encode()).hexdigest()


def voice_prefix(voice_id: str) -> str:
    """Return the path prefix of a voice's blobs."""
    return f"voices/{voice_id}/"


def reference_path(voice_id: str) -> str:
    """Return the path of the reference recording."""
    return f"{voice_prefix(voice_id)}ref.wav"


def cache_path(voice_id: str, key: str) -> str:
    """Return the path of cached speech."""
    return f"{voice_prefix(voice_id)}cache/{key}.wav"


def prompt_path(voice_id: str, digest: str) -> str:
    """Return the path of an engine's prompt; `digest` is hex and identifies backend and prompt version."""
    return f"{voice_prefix(voice_id)}prompts/{digest}.bin"


def job_path(job_id: str, attempt: int) -> str:
    """Return the path of a job's audio. Each attempt has its own, so a late attempt can't overwrite another."""
    return f"jobs/{job_id}.wav" if attempt <= 1 else f"jobs/{job_id}-{attempt}.wav"
