"""Audio of the fake hosted service: the tone that it speaks, and the check of recordings. Uses `wave`."""

from __future__ import annotations

import struct
import wave
from io import BytesIO
from math import pi, sin

from tests.hosted.http_server import HttpError

REFERENCE_MAX_BYTES = 20 * 1024 * 1024
SAMPLE_RATE = 24_000


def sine_wav(duration_s: float, *, sample_rate: int = SAMPLE_RATE, hz: int = 240) -> bytes:
    """Return a tone as a mono 16-bit WAV file, rounded to whole periods."""
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
    """Raise HttpError unless a recording is a WAV file of 5 to 60 s and at most 20 MiB."""
    if len(wav) > REFERENCE_MAX_BYTES:
        raise HttpError(422, "file_too_large", "The file has more than 20 MiB.", "ref_audio")
    try:
        with wave.open(BytesIO(wav)) as reader:
            frame_bytes = reader.getnchannels() * reader.getsampwidth()
            n_frames = len(reader.readframes(reader.getnframes())) // frame_bytes  # the frames that are present
            duration_s = n_frames / reader.getframerate()
    except (wave.Error, EOFError, ZeroDivisionError):
        raise HttpError(422, "not_wav", "The file is not a WAV file.", "ref_audio") from None
    if not 5 <= duration_s <= 60:
        code = "too_short" if duration_s < 5 else "too_long"
        raise HttpError(422, code, f"The recording lasts {duration_s:.3f} s, not 5 to 60 s.", "ref_audio")
