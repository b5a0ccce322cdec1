"""Uploads in other formats than WAV are decoded apart from the server, within limits."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import soundfile

from afterwords.audio.wav import read_wav
from afterwords.errors import ReferenceTooLongError, UnsupportedAudioError
from afterwords.server.services import decoding
from tests.audio.test_wav import GOOD, tone


def by_libav(container: str, codec: str, *, rate: int = 48_000, duration_s: float = 6) -> bytes:
    """A mono recording, as a phone or a browser makes it."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = cast("av.AudioStream", output.add_stream(codec, rate=rate, layout="mono"))
        frame = av.AudioFrame.from_ndarray(tone(duration_s, rate)[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def hour_of_flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 16_000, np.int16), 16_000, format="FLAC")
    return file.getvalue()


def with_command(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put other code in place of the decoder: real files that crash one are fixed in the next release of libav."""
    monkeypatch.setattr(decoding, "COMMAND", (sys.executable, "-c", code))


def test_decoded_recording_is_a_wav_of_the_same_sound_at_its_own_rate() -> None:
    samples, rate = read_wav(decoding.as_wav(by_libav("ipod", "aac", rate=44_100), source="it"))
    assert rate == 44_100
    assert len(samples) / rate == pytest.approx(6, abs=0.06)
    assert np.abs(samples[4800:-4800]).max() == pytest.approx(0.5, abs=0.05)


def test_longer_recording_is_refused_where_the_limit_is_reached() -> None:
    with pytest.raises(ReferenceTooLongError, match="it lasts 3600"):
        decoding.as_wav(hour_of_flac(), source="it")


def test_what_no_decoder_knows_is_refused() -> None:
    with pytest.raises(UnsupportedAudioError, match="it is not audio"):
        decoding.as_wav(b"It was a bright cold day in April.", source="it")


@pytest.mark.parametrize("code", ["import os; os.abort()", "raise MemoryError"])
def test_decoder_that_dies_refuses_the_file(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    with_command(monkeypatch, code)
    with pytest.raises(UnsupportedAudioError):
        decoding.as_wav(GOOD, source="it")


def test_decoder_gets_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AFTERWORDS_ADMIN_SECRET", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-secret")
    with_command(monkeypatch, "import os; print('{}'); print(dict(os.environ))")
    assert b"PATH" in (seen := decoding.as_wav(GOOD, source="it"))
    assert b"canary" not in seen


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps every limit")
@pytest.mark.parametrize("attack", ["bytearray(1 << 30)", "__import__('pathlib').Path('big').write_bytes(b'x')"])
def test_decoder_can_neither_fill_the_memory_nor_write_files(tmp_path: Path, attack: str) -> None:
    code = f"from afterwords.server.services.decoding import _limit; _limit(); {attack}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert b"MemoryError" in done.stderr or done.returncode < 0 or b"File too large" in done.stderr
