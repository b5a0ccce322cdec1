"""Frames between the server and a speaking process: what is sent arrives, and what is no frame is told from it."""

from __future__ import annotations

import asyncio
import struct
from io import BytesIO

import pytest

from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import BrokenFrameError, Frame

pytestmark = pytest.mark.anyio

SENT = messages.pack("speak", b"\0body\xff", text="zwölf \ud83d 你好\n", number=7)


async def received(data: bytes) -> list[Frame]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return [frame async for frame in _each(reader)]


async def _each(reader: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    while (frame := await messages.receive(reader)) is not None:
        yield frame


async def test_what_is_sent_arrives_on_either_side() -> None:
    expected = Frame("speak", {"text": "zwölf \ud83d 你好\n", "number": 7}, b"\0body\xff")
    assert await received(2 * SENT) == [expected, expected]
    file = BytesIO(2 * SENT)
    assert [messages.read(file), messages.read(file), messages.read(file)] == [expected, expected, None]


@pytest.mark.parametrize("n_bytes", range(len(SENT)))
async def test_a_frame_that_is_cut_is_the_end(n_bytes: int) -> None:
    assert await received(SENT[:n_bytes]) == []
    assert messages.read(BytesIO(SENT[:n_bytes])) is None


@pytest.mark.parametrize(
    "data",
    [
        b"Loading weights: 100%|####|",
        struct.pack("!II", 2**31, 0),
        struct.pack("!II", 2, 2**31),
        struct.pack("!II", 2, 0) + b"{}",
        struct.pack("!II", 2, 0) + b"[]",
        struct.pack("!II", 2, 0) + b"\xff\xff",
    ],
)
async def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenFrameError):
        await received(data)
    with pytest.raises(BrokenFrameError):
        messages.read(BytesIO(data))


def test_what_a_frame_holds_stays_out_of_its_repr() -> None:
    assert "secret" not in repr(Frame("speak", {"text": "secret"}, b"secret"))
