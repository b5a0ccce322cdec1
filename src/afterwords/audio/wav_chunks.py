"""The chunks and tags of a WAV file, without its samples.

Apart from `wav`, which needs numpy: the client and commands that only pass bytes on don't load it.

Source: Microsoft, "Multiple channel audio data and WAVE files"; EBU Tech 3285 for the chunk layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from afterwords.errors import MalformedWavError

CHUNKS_MAX = 64  # recorders write fewer than ten
UNKNOWN_SIZE = 0xFFFFFFFF  # written by programs that stream and can't seek back

INFO_IDS = {"title": b"INAM", "artist": b"IART", "comment": b"ICMT", "software": b"ISFT", "date": b"ICRD"}
"""Names of the tags that a file can carry, and their chunk IDs in a WAV file."""

_INFO_MAX_BYTES = 64 * 1024
RIFF_HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8


class Readable(Protocol):
    """An open, seekable binary file."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


@dataclass(frozen=True, slots=True)
class WavChunk:
    """A chunk: the size that it declares (`size_bytes`) and the bytes that are there (`present_bytes`)."""

    id: bytes
    start: int
    size_bytes: int
    present_bytes: int


class Fmt(NamedTuple):
    """The fields of a fmt chunk, as declared."""

    encoding: int
    channels: int
    sample_rate: int
    byte_rate: int
    block_align: int
    bits: int


def parse_fmt(body: bytes) -> Fmt:
    """Parse the first 16 bytes of a fmt chunk; raise struct.error if there are fewer."""
    return Fmt(*struct.unpack_from("<HHIIHH", body))


def check_magic(head: bytes, source: str) -> None:
    """Raise unless a file begins with the header of a WAV file.

    Raises:
        MalformedWavError: The header is another.
    """
    if head[:4] != b"RIFF":
        found = ascii(head[:4].decode("latin-1")) if head else "an empty file"
        raise MalformedWavError.for_source(source, f"it starts with {found} instead of RIFF/WAVE", code="not_wav")
    if len(head) < RIFF_HEADER_BYTES:
        raise MalformedWavError.for_source(source, "it ends inside its header")
    if head[8:12] != b"WAVE":
        raise MalformedWavError.for_source(
            source,
            f"it starts with RIFF/{ascii(head[8:12].decode('latin-1'))[1:-1]} instead of RIFF/WAVE",
            code="not_wav",
        )


def chunks(file: Readable, source: str) -> Iterator[WavChunk]:
    """Yield the chunks in order, up to the first bytes that can't be the ID of a chunk.

    Raises:
        MalformedWavError: More than `CHUNKS_MAX`.
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
        yield WavChunk(head[:4], start, size_bytes, min(size_bytes, length - start))
        offset = start + size_bytes + size_bytes % 2
    if offset < length:
        raise MalformedWavError.for_source(source, f"it has more than {CHUNKS_MAX} chunks", code="too_many_chunks")


def sound_start(file: Readable, *, source: str = "the file") -> tuple[int, int]:
    """Find the samples of a WAV file that afterwords wrote. The head of the file is enough.

    Returns:
        The sample rate in Hz and the offset of the first sample in bytes.

    Raises:
        MalformedWavError: The file has another structure.
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
    raise MalformedWavError.for_source(source, "it has no data chunk")


def read_info(file: Readable, *, source: str = "the file") -> dict[str, str]:
    """Return the LIST/INFO tags of a WAV file by name (`title`, `artist`, …).

    Raises:
        MalformedWavError: The chunks can't be read.
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
    """Return the tags in the body of a LIST chunk, or None if the list holds something else."""
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
