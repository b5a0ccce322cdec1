"""Sound for the hosted service's twin: the tone that it speaks, and the judgement of recordings; both by `wave`."""

from __future__ import annotations

import struct
import wave
from io import BytesIO
from math import pi, sin

from tests.hosted.wire import RefusedError

REFERENCE_MAX_BYTES = 20 * 1024 * 1024
SAMPLE_RATE = 24_000


def sine_wav(duration_s: float, *, sample_rate: int = SAMPLE_RATE, hz: int = 240) -> bytes:
    """A steady tone: mono, 16-bit PCM WAV, cut to whole periods."""
    n_samples = sample_rate // hz
    period = struct.pack(f"<{n_samples}h", *(round(9_000 * sin(2 * pi * n / n_samples)) for n in range(n_samples)))
    data = BytesIO()
    with wave.open(data, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(sample_rate)
        wav.writeframes(period * round(duration_s * sample_rate / n_samples))
    return data.getvalue()


def check_reference(wav: bytes) -> None:
    """Judge a recording as the hosted table has it: a WAV file of 5 to 60 s and at most 20 MiB.

    Raises:
        RefusedError: it is not.
    """
    if len(wav) > REFERENCE_MAX_BYTES:
        raise RefusedError(422, "file_too_large", "The file has more than 20 MiB.", "ref_audio")
    try:
        with wave.open(BytesIO(wav)) as reader:
            frame_bytes = reader.getnchannels() * reader.getsampwidth()
            n_frames = len(reader.readframes(reader.getnframes())) // frame_bytes  # those truly present
            duration_s = n_frames / reader.getframerate()
    except (wave.Error, EOFError, ZeroDivisionError):
        raise RefusedError(422, "not_wav", "The file is not a WAV file.", "ref_audio") from None
    if not 5 <= duration_s <= 60:
        code = "too_short" if duration_s < 5 else "too_long"
        raise RefusedError(422, code, f"The recording lasts {duration_s:.3f} s, not 5 to 60 s.", "ref_audio")
