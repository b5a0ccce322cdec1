"""Where audio lies and under which key: the same on every server, and equal to the hosted service's.

Apart because server, workers and benchmarks must agree to the byte. Pure functions; ids are UUIDs and keys are hex,
so no path can leave its root.
"""

from __future__ import annotations

from hashlib import sha256


def cache_key(text: str, *, lang: str, backend: str, speed: float = 1.0, seed: int | None = None) -> str:
    """The key of a piece of speech within its voice: 64 hex digits.

    Args:
        text: already checked: a NUL in it would let two requests share a key.
        lang: two letters.
        backend: that speaks.
        speed: at 1 it is left out, so that the key equals the hosted service's.
        seed: likewise where there is none.
    """
    options = {"seed": None if seed is None else str(seed), "speed": None if speed == 1 else repr(float(speed))}
    further = [f"{name}={value}" for name, value in sorted(options.items()) if value is not None]
    return sha256("\0".join([text, lang, backend, *further]).encode()).hexdigest()


def voice_prefix(voice_id: str) -> str:
    """The folder of all that is kept of a voice."""
    return f"voices/{voice_id}/"


def reference_path(voice_id: str) -> str:
    """Where the reference recording lies."""
    return f"{voice_prefix(voice_id)}ref.wav"


def cache_path(voice_id: str, key: str) -> str:
    """Where a piece of speech is kept to be given again."""
    return f"{voice_prefix(voice_id)}cache/{key}.wav"


def prompt_path(voice_id: str, digest: str) -> str:
    """Where an engine's prompt lies; `digest` is hex and names backend and prompt version."""
    return f"{voice_prefix(voice_id)}prompts/{digest}.bin"


def job_path(job_id: str, attempt: int) -> str:
    """Where the audio of a job lies. Each attempt writes its own, so that a late one can't touch another's."""
    return f"jobs/{job_id}.wav" if attempt <= 1 else f"jobs/{job_id}-{attempt}.wav"
