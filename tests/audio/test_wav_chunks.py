"""Chunks and tags of WAV files, read without their samples."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import pytest

from afterwords.audio.wav import check_reference_wav, wav_header
from afterwords.audio.wav_chunks import CHUNKS_MAX, chunks, read_info
from afterwords.errors import MalformedWavError
from tests.audio.test_wav import DATA, GOOD, PCM, RATE, SIX_SECONDS, chunk, fmt, riff
from tests.error_codes import has_code


def test_tags_are_read_from_a_list_chunk() -> None:
    tags = {"title": "Überlänge", "artist": "Ada", "comment": "spoken by a machine", "software": "x", "date": "2026"}

    header = wav_header(RATE, n_frames=len(SIX_SECONDS), tags=tags)

    assert read_info(BytesIO(header + PCM)) == tags
    assert check_reference_wav(header + PCM)[1] == RATE


def test_list_chunk_of_another_type_is_skipped() -> None:
    cues, tags = chunk(b"LIST", b"adtl" + chunk(b"INAM", b"cue")), chunk(b"LIST", b"INFO" + chunk(b"INAM", b"me"))
    assert read_info(BytesIO(riff(fmt(), cues, DATA))) == {}
    assert read_info(BytesIO(riff(fmt(), cues, tags, DATA))) == {"title": "me"}


def test_chunk_has_declared_and_present_sizes() -> None:
    found = list(chunks(BytesIO(riff(fmt(), chunk(b"data", bytes(2), size=100))), "me.wav"))
    assert [(one.id, one.start, one.size_bytes, one.present_bytes) for one in found] == [
        (b"fmt ", 20, 16, 16),
        (b"data", 44, 100, 2),
    ]


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(MalformedWavError, check=has_code("too_many_chunks")):
        list(chunks(BytesIO(riff(chunk(b"JUNK", b"") * (CHUNKS_MAX + 1))), "me.wav"))


def test_byte_only_modules_load_no_numpy() -> None:
    program = (
        "import sys; from afterwords.cli.save_audio import read_wav_header; "
        "print(read_wav_header(sys.stdin.buffer.read()), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=GOOD, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "WavHeader(duration_s=6.0, is_marked=False) False"
