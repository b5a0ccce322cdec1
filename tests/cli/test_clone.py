"""Test `afterwords clone`: what it accepts, what it refuses, and that a refusal leaves no files."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import afterwords as aw
from afterwords.audio.audio import decode
from afterwords.models import Voice
from tests.cli.program import list_files, run
from tests.conftest import READER, clipped

pytestmark = pytest.mark.usefixtures("tone")

RATE = 16_000
SELF = ("--name", "me", "--consent", "self")


def wav(data: bytes, *, format: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, size: int = -1) -> bytes:
    """Return a WAV file with the given header fields, valid or not."""
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", format, channels, rate, rate * align % 2**32, align, bits)
    size = len(data) if size < 0 else size
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) % 2**32) + body


def speech(duration_s: float) -> bytes:
    """Return the beginning of the bundled recording as 16-bit samples."""
    return (decode(READER).samples[: round(duration_s * RATE)] * 32767).astype("<i2").tobytes()


def constant(value: float, duration_s: float = 6.0) -> bytes:
    return np.full(round(duration_s * RATE), value, "<f4").tobytes()


def sine(duration_s: float) -> bytes:
    wave = np.sin(2 * np.pi * 5_000 * np.arange(round(duration_s * RATE)) / RATE)
    return (0.3 * wave * 32767).astype("<i2").tobytes()


BAD: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty": (lambda: b"", "empty_data", "contains no audio"),
    "text": (lambda: b"not a recording, but a letter\n" * 99, "unsupported_audio", "not audio"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(999), "unsupported_audio", "not audio"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(999), "unsupported_audio", "not audio"),
    "riff-only": (lambda: b"RIFF", "unsupported_audio", "not audio"),
    "cut-in-fmt": (lambda: wav(speech(6))[:20], "damaged_audio", "is damaged or incomplete"),
    "no-channels": (lambda: wav(speech(6), channels=0), "damaged_audio", "is damaged or incomplete"),
    "cut-at-data": (lambda: wav(speech(6))[:44], "empty_data", "contains no audio"),
    "cut-at-half": (lambda: wav(speech(6))[: 44 + 6 * RATE], "too_short", "3.00 s"),
    "three-seconds": (lambda: wav(speech(3)), "too_short", "must last at least 5 s"),
    "just-too-short": (lambda: wav(speech(4.99)), "too_short", "4.99 s"),
    "too-long": (lambda: wav(bytes(1801 * 8_000), rate=8_000, bits=8), "too_long", "1801.00 s, but"),
    "zeros": (lambda: wav(bytes(12 * RATE)), "silent_audio", "-120 dBFS"),
    "full-scale": (lambda: wav(constant(1), format=3, bits=32), "silent_audio", "is silent"),
    "nan": (lambda: wav(constant(np.nan), format=3, bits=32), "non_finite_audio", "NaN"),
    "infinity": (lambda: wav(constant(np.inf), format=3, bits=32), "non_finite_audio", "infinity"),
    "no-voice": (lambda: wav(sine(6)), "no_voice", "s of voiced speech, but 2 s are needed"),
    "slow-rate": (lambda: wav(speech(6), rate=7_999), "bad_sample_rate", "7,999 Hz"),
    "fast-rate": (lambda: wav(speech(6), rate=768_000), "bad_sample_rate", "768,000 Hz"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_unusable_recording_is_refused_and_leaves_no_files(kind: str, home: Path, tmp_path: Path) -> None:
    make, error, message = BAD[kind]
    (tmp_path / "bad.wav").write_bytes(make())

    done = run("clone", "bad.wav", *SELF, cwd=tmp_path)

    assert message in done.expect_error(5, error)
    assert "bad.wav" in done.err
    assert list_files(home) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFO")
def test_fifo_is_refused_without_blocking(home: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")

    done = run("clone", tmp_path / "pipe.wav", *SELF)

    assert "pipe.wav can't be read: it is a pipe" in done.expect_error(5, "unreadable_file")
    assert list_files(home) == []


@pytest.mark.parametrize(
    ("place", "why"),
    [(".", "it is a folder"), ("missing.wav", "there is no such file"), ("file.wav/x.wav", "there is no such file")],
)
def test_missing_file_is_refused(place: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file.wav").write_bytes(b"")

    assert why in run("clone", tmp_path / place, *SELF).expect_error(5, "unreadable_file")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root can't read: Linux's")
def test_unreadable_file_is_refused(home: Path) -> None:
    assert "can't be read" in run("clone", "/proc/self/mem", *SELF).expect_error(5, "unreadable_file")
    assert list_files(home) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions don't bind root")
def test_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "me.wav").write_bytes(wav(speech(6)))
    (tmp_path / "me.wav").chmod(0)

    assert "not allowed to read" in run("clone", tmp_path / "me.wav", *SELF).expect_error(5, "unreadable_file")


def test_escape_sequence_in_file_name_is_escaped(tmp_path: Path) -> None:
    done = run("clone", "\x1b]0;owned\x07[bold]\u202e.wav", *SELF, cwd=tmp_path)

    assert r"\x1b]0;owned\x07[bold]\u202e.wav" in done.expect_error(5, "unreadable_file")


def test_clone_prints_name_and_next_command() -> None:
    done = run("clone", READER, "--name", "my voice", "--consent", "self")

    assert (done.code, done.out) == (0, "my voice\n")
    assert "✓ my voice: grade B, 10.2 to 24.5 s of the recording, backend tone" in done.err
    assert done.err.endswith("""Next: afterwords say "Hello, this is my voice." --voice 'my voice'\n""")
    assert "%" not in done.err  # stderr is not a terminal
    (voice,) = aw.voices()
    assert voice.consent is not None
    assert (voice.name, voice.consent.kind) == ("my voice", "self")


def test_grade_f_needs_anyway(tmp_path: Path) -> None:
    clipped(tmp_path / "clipped.wav")

    refused = run("clone", "clipped.wav", *SELF, cwd=tmp_path)
    done = run("clone", "clipped.wav", *SELF, "--anyway", cwd=tmp_path)

    assert "--anyway" in refused.expect_error(5, "poor_recording")
    assert (done.code, done.out) == (0, "me\n")
    assert done.err.startswith("The recording is graded F")


def test_json_prints_only_the_voice() -> None:
    done = run("clone", READER, "--name", "Zoë", "--consent", "public-domain", "--json")

    facts = json.loads(done.out)
    assert done.out.isascii()
    (voice,) = aw.voices()
    assert (facts["name"], facts["voice_id"]) == ("Zoë", voice.voice_id)
    assert facts["consent"]["kind"] == "public-domain"


@pytest.mark.parametrize("ending", ["cut", "streamed"])
def test_piped_recording_lasts_as_its_data(ending: str) -> None:
    recording = wav(speech(14), size=2**32 - 1) if ending == "streamed" else wav(speech(14))[: 44 + 20 * RATE]

    done = run("clone", "-", *SELF, stdin=recording)

    assert (done.code, done.out) == (0, "me\n")
    reference = aw.voices()[0].reference
    assert reference
    assert reference.duration_s > 5


def test_consent_is_required_without_a_terminal(home: Path) -> None:
    done = run("clone", READER, "--name", "me")

    assert "--consent self" in done.expect_error(5, "consent_required")
    assert list_files(home) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--consent", "maybe"), "invalid_option", "self, granted, public-domain, synthetic"),
        (("--consent", "self", "--lang", "tlh"), "unsupported_lang", "'tlh'"),
        (("--consent", "self", "--backend", "nope"), "invalid_backend", "available: tone"),
        (("--consent", "self", "--name", "a\x1b[2Jb"), "invalid_name", "U+001B"),
        (("--consent", "self", "--text", ""), "empty_text", "nothing that can be spoken"),
        (("--consent", "self", "--text-file", "missing.txt"), "unreadable_file", "missing.txt"),
    ],
)
def test_invalid_option_is_refused(options: tuple[str, ...], error: str, message: str, home: Path) -> None:
    assert message in run("clone", READER, "--name", "me", *options).expect_error(5, error)
    assert list_files(home) == []


@pytest.mark.parametrize(
    "args",
    [
        ("--name", "me"),
        (READER, "--record", "--name", "me"),
        (READER,),
        (READER, "--name", "me", "--text", "a", "--text-file", "b"),
        ("--record", "--name", "me"),
        (READER, READER, "--name", "me"),
    ],
    ids=["nothing", "both", "nameless", "two-texts", "record-without-a-terminal", "two-recordings"],
)
def test_invalid_arguments_are_a_usage_error(args: tuple[str, ...]) -> None:
    run("clone", *args).expect_error(2, "usage")


def test_error_does_not_repeat_transcript(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("the canary sings\x07")

    for given in (("--text", "the canary sings\x07"), ("--text-file", "words.txt")):
        done = run("clone", READER, *SELF, *given, cwd=tmp_path)
        assert "canary" not in done.expect_error(5, "control_character")


def test_name_in_use_needs_replace(me: Voice) -> None:
    run("clone", READER, *SELF).expect_error(5, "voice_exists")
    assert [voice.voice_id for voice in aw.voices()] == [me.voice_id]

    done = run("clone", READER, *SELF, "--replace")

    assert (done.code, done.out) == (0, "me\n")
    (voice,) = aw.voices()
    assert voice.voice_id != me.voice_id


def test_transcript_that_cannot_be_cut_is_dropped(tmp_path: Path) -> None:
    text = (READER.parent / "reader.txt").read_text("utf-8")
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())

    done = run("clone", READER, *SELF, "--text-file", tmp_path / "words.txt")

    assert done.code == 0
    assert "it was left out" in done.err
    assert text.split()[0] not in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_full_disk_leaves_no_partial_voice(home: Path) -> None:
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    program = f"{limited}; runpy.run_module('afterwords', run_name='__main__')"

    done = run("clone", READER, *SELF, python=program)

    assert (done.code, done.out) == (1, "")
    assert "\nError (storage_full): " in done.err
    assert aw.voices() == []
    assert list_files(home) == ["library.json"]
