"""The chunks of a WAV file and its tags: what is known of it without a look at its samples.

Apart from `riff`, which needs numpy for the samples: a client and a command that only pass audio on shall not load it.

Source: Microsoft, "Multiple channel audio data and WAVE files"; EBU Tech 3285 for the chunk layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from afterwords.errors import MalformedWavError, NotWavError, TooManyChunksError

CHUNKS_MAX = 64  # recorders write fewer than ten
UNKNOWN_SIZE = 0xFFFFFFFF  # what a program writes that streams and can't go back

INFO_IDS = {"title": b"INAM", "artist": b"IART", "comment": b"ICMT", "software": b"ISFT", "date": b"ICRD"}
"""The tags that a written file can carry, and where a WAV keeps them."""

_INFO_MAX_BYTES = 64 * 1024
RIFF_HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8


class Readable(Protocol):
    """What is asked of an open binary file."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as it is: what it declares (`size_bytes`) and what is there (`present_bytes`)."""

    id: bytes
    start: int
    size_bytes: int
    present_bytes: int


def check_magic(head: bytes, source: str) -> None:
    """See that a file begins as a WAV file does.

    Raises:
        NotWavError, MalformedWavError: it does not.
    """
    if head[:4] != b"RIFF":
        found = ascii(head[:4].decode("latin-1")) if head else "an empty file"
        raise NotWavError(source, found=found)
    if len(head) < RIFF_HEADER_BYTES:
        raise MalformedWavError(source, "it ends inside its header")
    if head[8:12] != b"WAVE":
        raise NotWavError(source, found=f"RIFF/{ascii(head[8:12].decode('latin-1'))[1:-1]}")


def chunks(file: Readable, source: str) -> Iterator[Chunk]:
    """The chunks in their order, as far as there are any; bytes that can't be a chunk's name end them.

    Raises:
        TooManyChunksError: there is no end of them.
    """
    length = file.seek(0, 2)
    offset = RIFF_HEADER_BYTES
    for _ in range(CHUNKS_MAX):
        file.seek(offset)
        head = file.read(CHUNK_HEADER_BYTES)
        if len(head) < CHUNK_HEADER_BYTES or not all(0x20 <= byte < 0x7F for byte in head[:4]):
            return
        start = offset + CHUNK_HEADER_BYTES
        size_bytes = int.from_bytes(head[4:], "little")
        yield Chunk(head[:4], start, size_bytes, min(size_bytes, length - start))
        offset = start + size_bytes + size_bytes % 2
    if offset < length:
        raise TooManyChunksError(source, maximum=CHUNKS_MAX)


def sound_start(file: Readable, *, source: str = "the file") -> tuple[int, int]:
    """Find the sound of a WAV file that we wrote, of which the begin is enough.

    Returns:
        The sample rate in Hz, and where the samples begin.

    Raises:
        NotWavError, MalformedWavError, TooManyChunksError: it is no such file.
    """
    file.seek(0)
    check_magic(file.read(RIFF_HEADER_BYTES), source)
    sample_rate = None
    for chunk in chunks(file, source):
        if chunk.id == b"fmt ":
            file.seek(chunk.start + 4)
            sample_rate = int.from_bytes(file.read(4), "little")
        elif chunk.id == b"data" and sample_rate is not None:
            return sample_rate, chunk.start
    raise MalformedWavError(source, "it has no sound")


def read_info(file: Readable, *, source: str = "the file") -> dict[str, str]:
    """Read the LIST/INFO tags of a WAV file under their plain names (`title`, `artist`, …).

    Raises:
        NotWavError, MalformedWavError, TooManyChunksError: it has no chunks to look through.
    """
    file.seek(0)
    check_magic(file.read(RIFF_HEADER_BYTES), source)
    for chunk in chunks(file, source):
        if chunk.id == b"LIST":
            file.seek(chunk.start)
            body = file.read(min(chunk.present_bytes, _INFO_MAX_BYTES))
            if (tags := tags_in(body)) is not None:
                return tags
    return {}


def tags_in(body: bytes) -> dict[str, str] | None:
    """The tags in the body of a LIST chunk; None where it is a list of something else."""
    if body[:4] != b"INFO":
        return None
    names = {chunk_id: name for name, chunk_id in INFO_IDS.items()}
    tags: dict[str, str] = {}
    offset = 4
    while offset + CHUNK_HEADER_BYTES <= len(body):
        chunk_id, size_bytes = struct.unpack_from("<4sI", body, offset)
        start = offset + CHUNK_HEADER_BYTES
        text = body[start : start + size_bytes].split(b"\0", 1)[0]
        if chunk_id in names and text:
            tags[names[chunk_id]] = text.decode("utf-8", "replace")
        offset = start + size_bytes + size_bytes % 2
    return tags
