"""How alike speech is to the recording that its voice was made from, and what a process took to make it.

The judge is the speaker encoder that ships with the engine `lite`: numpy alone, the same for every backend.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from afterwords.audio.wav import Samples, read_wav
from afterwords.backends.memory import peak_bytes
from afterwords.errors import AfterwordsError

ENCODER: Final = "GE2E"
MIB: Final = 2**20
_TUNED_BY_IT: Final = frozenset({"lite"})
"""Backends that choose how to speak by this very encoder; source: backends/lite/enrol.py."""


class Likeness(NamedTuple):
    """A median cosine and who judged; or why nobody could."""

    similarity: float | None = None
    similarity_by: str | None = None
    similarity_note: str | None = None


def likeness(spoken: Sequence[Samples], sample_rate: int, reference: bytes, *, backend: str | None) -> Likeness:
    """Judge utterances, each of shape (n_samples,), by the recording, a WAV."""
    from afterwords.backends.lite.speaker import embed

    try:
        recording, rate = read_wav(reference, source="the reference")
        speaker = embed(recording, rate)
        found = statistics.median(float(embed(samples, sample_rate) @ speaker) for samples in spoken)
    except AfterwordsError as error:
        return Likeness(similarity_note=error.message)
    note = (
        "its engine chooses how to speak by this very encoder, which flatters it" if backend in _TUNED_BY_IT else None
    )
    return Likeness(round(found, 3), ENCODER, note)


def peak_mib() -> float | None:
    """The most memory that this process had resident; None where the system does not tell."""
    peak = peak_bytes()
    return None if peak is None else round(peak / MIB, 1)


def device_peak_mib() -> float | None:
    """The most memory that torch or MLX held on a GPU for the engine; None where no engine uses them and a GPU.

    They are asked only where an engine has loaded them: never loaded for this. A Mac's GPU has no memory of its own,
    so there part of it may be in the resident memory, too.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return round(float(torch.cuda.max_memory_reserved()) / MIB, 1)
    mlx: Any = sys.modules.get("mlx.core")
    if mlx is not None and mlx.default_device().type == mlx.gpu:
        return round(float(mlx.get_peak_memory()) / MIB, 1)
    return None
