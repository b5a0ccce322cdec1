"""Chunks and tags of WAV files, read without their samples."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import pytest

from afterwords.audio.wav import check_reference_wav, wav_header
from afterwords.audio.wav_chunks import CHUNKS_MAX, chunks, read_info
from afterwords.errors import TooManyChunksError
from tests.audio.test_wav import DATA, GOOD, PCM, RATE, SIX_SECONDS, chunk, fmt, riff


def test_tags_come_back_from_a_list_chunk() -> None:
    tags = {"title": "Überlänge", "artist": "Ada", "comment": "spoken by a machine", "software": "x", "date": "2026"}

    header = wav_header(RATE, n_frames=len(SIX_SECONDS), tags=tags)

    assert read_info(BytesIO(header + PCM)) == tags
    assert check_reference_wav(header + PCM)[1] == RATE


def test_list_of_something_else_is_passed_over() -> None:
    cues, tags = chunk(b"LIST", b"adtl" + chunk(b"INAM", b"cue")), chunk(b"LIST", b"INFO" + chunk(b"INAM", b"me"))
    assert read_info(BytesIO(riff(fmt(), cues, DATA))) == {}
    assert read_info(BytesIO(riff(fmt(), cues, tags, DATA))) == {"title": "me"}


def test_chunk_tells_what_it_declares_and_what_is_there() -> None:
    found = list(chunks(BytesIO(riff(fmt(), chunk(b"data", bytes(2), size=100))), "me.wav"))
    assert [(one.id, one.start, one.size_bytes, one.present_bytes) for one in found] == [
        (b"fmt ", 20, 16, 16),
        (b"data", 44, 100, 2),
    ]


def test_chunks_without_end_are_given_up() -> None:
    with pytest.raises(TooManyChunksError):
        list(chunks(BytesIO(riff(chunk(b"JUNK", b"") * (CHUNKS_MAX + 1))), "me.wav"))


def test_what_a_command_does_not_decode_loads_no_numpy() -> None:
    program = (
        "import sys; from afterwords.cli.save_audio import wav_header; "
        "print(wav_header(sys.stdin.buffer.read()), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=GOOD, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "WavHeader(duration_s=6.0, is_marked=False) False"
