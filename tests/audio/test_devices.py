"""Play and record with a sound card made of files; errors where there is no sound card.

PortAudio reads its devices once, when it is loaded; so each test runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from afterwords.audio.audio import Audio
from afterwords.audio.devices import play
from afterwords.audio.wav import Samples
from afterwords.errors import MissingExtraError, UnavailableError
from tests.error_codes import has_code

RATE = 24_000

# ALSA's file plug-in: playback goes to one file and recording comes from another, float32, without delay.
CARD = 'pcm.!default { type file slave.pcm { type null } file "played.raw" format raw infile "microphone.raw" }\n'
NO_CARD = "pcm.!default { type hw card 31 }\n"

Done = subprocess.CompletedProcess[str]

HEAD = """
import threading
import numpy as np
from afterwords.audio.audio import Audio, record
from afterwords.audio.devices import play
from afterwords.errors import AfterwordsError

def sine(duration_s, rate=24_000):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)
"""


def has_portaudio() -> bool:
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


needs_alsa = pytest.mark.skipif(
    sys.platform != "linux" or not has_portaudio(), reason="needs Linux with sounddevice and libportaudio2"
)


def run(program: str, tmp_path: Path, card: str = CARD, microphone: Samples | None = None) -> Done:
    """Run a program with `played.raw` as the loudspeaker and `microphone` as the input."""
    (tmp_path / "asoundrc").write_text(card)
    (tmp_path / "microphone.raw").write_bytes(b"" if microphone is None else microphone.tobytes())
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + program],
        env={**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )


def played(tmp_path: Path) -> Samples:
    return np.frombuffer((tmp_path / "played.raw").read_bytes(), np.float32)


def sine(duration_s: float) -> Samples:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * RATE)) / RATE)).astype(np.float32)


@needs_alsa
def test_all_samples_are_played_in_order(tmp_path: Path) -> None:
    done = run("play((sine(1)[i : i + 700] for i in range(0, 24_000, 700)), 24_000)", tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    output = np.trim_zeros(played(tmp_path))
    np.testing.assert_allclose(output, np.trim_zeros(sine(1)), atol=1e-6)


@needs_alsa
def test_audio_play_plays_the_samples(tmp_path: Path) -> None:
    done = run("Audio(sine(0.5), 24_000).play()", tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(np.trim_zeros(played(tmp_path))) == pytest.approx(12_000, abs=2)


@needs_alsa
def test_first_chunk_plays_before_the_second_arrives(tmp_path: Path) -> None:
    program = """
import time
from pathlib import Path
def chunks():
    yield sine(0.5)
    deadline = time.monotonic() + 60
    while not Path("played.raw").exists() or not Path("played.raw").stat().st_size:
        assert time.monotonic() < deadline, "nothing was played while the second chunk was made"
    print("played")
    yield sine(0.5)
play(chunks(), 24_000)
"""
    done = run(program, tmp_path)

    assert (done.stdout, done.stderr, done.returncode) == ("played\n", "", 0)


@needs_alsa
def test_no_chunks_play_nothing(tmp_path: Path) -> None:
    done = run("play([], 24_000); play([sine(0)], 24_000)", tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


@needs_alsa
@pytest.mark.parametrize("failure", ["KeyboardInterrupt", "ValueError"])
def test_interrupt_stops_playback_and_propagates(failure: str, tmp_path: Path) -> None:
    program = f"""
def chunks():
    yield sine(0.1)
    raise {failure}("while speaking")
try:
    play(chunks(), 24_000)
except {failure} as error:
    print(error, threading.active_count())
"""
    done = run(program, tmp_path)

    assert (done.stdout, done.stderr, done.returncode) == ("while speaking 1\n", "", 0)


@needs_alsa
def test_recording_stops_at_max_duration(tmp_path: Path) -> None:
    program = """
levels = []
audio = record(stop=threading.Event(), max_duration_s=1.23, on_level=lambda *level: levels.append(level))
print(audio, audio.samples.dtype, set(audio.samples.tolist()), len(levels), levels[-1])
"""
    done = run(program, tmp_path, microphone=np.full(200_000, 0.5, np.float32))

    assert done.stdout == "Audio(1.23 s, 48000 Hz) float32 {0.5} 25 (1.23, 0.5)\n"
    assert done.stderr == ""


@needs_alsa
def test_recording_stops_on_the_event(tmp_path: Path) -> None:
    program = """
stop = threading.Event()
on_level = lambda seconds, peak: seconds > 0.9 and stop.set()
print(record(stop=stop, max_duration_s=60, sample_rate=16_000, on_level=on_level))
"""
    done = run(program, tmp_path, microphone=np.full(200_000, 0.5, np.float32))

    assert (done.stdout, done.stderr) == ("Audio(0.95 s, 16000 Hz)\n", "")


@needs_alsa
def test_recording_stopped_at_once_raises_no_audio(tmp_path: Path) -> None:
    program = """
stop = threading.Event()
stop.set()
try:
    record(stop=stop)
except AfterwordsError as error:
    print(error.code)
"""
    assert run(program, tmp_path).stdout == "empty_data\n"


@needs_alsa
@pytest.mark.parametrize(
    ("program", "purpose"),
    [("play([sine(1)], 24_000)", "Playing"), ("record(stop=threading.Event())", "Recording")],
    ids=["play", "record"],
)
def test_missing_sound_device_raises_audio_device_error(program: str, purpose: str, tmp_path: Path) -> None:
    attempt = f"try:\n    {program}\nexcept AfterwordsError as error:\n    print(error.code, error)"

    done = run(attempt, tmp_path, NO_CARD)

    assert done.stdout.startswith(f"no_audio_device {purpose} needs an audio device: no device is set up")
    assert done.returncode == 0


def test_missing_extra_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # the package is installed here; None is how Python marks a module as absent
    monkeypatch.setitem(sys.modules, "sounddevice", None)

    with pytest.raises(MissingExtraError, match="Playing needs the extra 'play'"):
        Audio(sine(0.1), RATE).play()


def test_missing_portaudio_error_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as the real package reports it; the library is installed here
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")

    with pytest.raises(
        UnavailableError,
        match="PortAudio is missing; on Debian and Ubuntu: apt-get install",
        check=has_code("no_audio_device"),
    ):
        play([sine(0.1)], RATE)
