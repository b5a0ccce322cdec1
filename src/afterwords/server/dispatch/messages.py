"""What the server and a speaking process send each other over a pipe: a kind, a few facts, and bytes.

On the wire a frame is two lengths (big-endian, 32 bits), a JSON object and a body.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    import asyncio

INVALID_PROMPT: Final = "invalid_prompt"
"""The error of an utterance whose prompt the engine could not read."""
_LENGTHS: Final = struct.Struct("!II")
_HEADER_MAX_BYTES: Final = 1 << 20  # texts end at 5,000 characters
_BODY_MAX_BYTES: Final = 1 << 28  # a second of sound is 48 kB; prompts are smaller than their recordings


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. Facts and body may hold text and voices, so no repr shows them."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


class BrokenFrameError(Exception):
    """What came is no frame: whoever sends it has lost its way."""


def pack(kind: str, body: bytes = b"", **facts: Any) -> bytes:
    """Make a frame as it goes over the wire."""
    header = json.dumps({"kind": kind, **facts}, separators=(",", ":")).encode()
    return _LENGTHS.pack(len(header), len(body)) + header + body


async def receive(reader: asyncio.StreamReader) -> Frame | None:
    """Read the next frame; None where the other side is gone, even within a frame.

    Raises:
        BrokenFrameError: what came is no frame.
    """
    try:
        n_header, n_body = _lengths(await reader.readexactly(_LENGTHS.size))
        return _frame(await reader.readexactly(n_header), await reader.readexactly(n_body))
    except (EOFError, OSError):
        return None


def read(file: BinaryIO) -> Frame | None:
    """As `receive`, from an open file, waiting for it."""
    head = file.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    n_header, n_body = _lengths(head)
    header, body = file.read(n_header), file.read(n_body)
    return _frame(header, body) if len(body) == n_body else None


def _lengths(head: bytes) -> tuple[int, int]:
    n_header, n_body = _LENGTHS.unpack(head)
    if n_header > _HEADER_MAX_BYTES or n_body > _BODY_MAX_BYTES:
        raise BrokenFrameError
    return n_header, n_body


def _frame(header: bytes, body: bytes) -> Frame:
    try:
        facts = json.loads(header)
        return Frame(facts.pop("kind"), facts, body)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BrokenFrameError from None
