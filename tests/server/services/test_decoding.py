"""Uploads are checked, decoded and graded apart from the server, within limits."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import soundfile

from afterwords.audio.wav import canonical_wav, read_wav
from afterwords.errors import RecordingError, ServiceUnavailableError
from afterwords.server.services import decoding
from afterwords.server.services.decoding import DecodingPool
from tests.audio.test_wav import GOOD, tone
from tests.error_codes import has_code
from tests.server.dispatch.running import children, eventually, ignore_other_children

pytestmark = pytest.mark.anyio

HANGS = "import time; time.sleep(1000)"
ANSWERS_ONCE = """
import sys
sys.stdin.buffer.readline()
print('{"grade": "A", "n_bytes": 0}', flush=True)
"""


def by_libav(container: str, codec: str, *, rate: int = 48_000, duration_s: float = 6) -> bytes:
    """Return a mono recording, as a phone or a browser makes it."""
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


def set_decoder(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run other code as the decoder: real files that crash one are fixed in the next release of libav."""
    monkeypatch.setattr(decoding, "COMMAND", (sys.executable, "-c", code))


def pids() -> list[int]:
    return [child.pid for child in children()]


@pytest.fixture(autouse=True)
def own_children() -> None:
    ignore_other_children()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def pool() -> AsyncIterator[DecodingPool]:
    pool = DecodingPool()
    yield pool
    pool.close()
    assert not pids()


async def test_prepare_keeps_sound_and_sample_rate(pool: DecodingPool) -> None:
    wav, reference = await pool.prepare(by_libav("ipod", "aac", rate=44_100))
    samples, rate = read_wav(wav)
    assert rate == reference.sample_rate == 44_100
    assert len(samples) / rate == reference.duration_s == pytest.approx(6, abs=0.06)
    assert np.abs(samples[4800:-4800]).max() == pytest.approx(0.5, abs=0.05)
    assert reference.grade == await pool.grade(wav)


async def test_prepare_lowers_rates_above_48_khz(pool: DecodingPool) -> None:
    wav, reference = await pool.prepare(canonical_wav(tone(6, 96_000), 96_000))
    assert read_wav(wav)[1] == reference.sample_rate == 48_000
    assert reference.duration_s == pytest.approx(6)


async def test_refused_files_share_one_process(pool: DecodingPool) -> None:
    with pytest.raises(RecordingError, match="recording lasts 3600", check=has_code("too_long")):
        await pool.prepare(hour_of_flac())
    first = pids()
    with pytest.raises(RecordingError, match="the recording is not audio", check=has_code("unsupported_audio")):
        await pool.prepare(b"It was a bright cold day in April.")
    assert await pool.grade(GOOD)
    assert len(first) == 1
    assert pids() == first


async def test_files_at_once_share_two_processes(pool: DecodingPool) -> None:
    await asyncio.gather(*(pool.grade(GOOD) for _ in range(6)))
    assert len(pids()) == decoding.PROCESSES_MAX


async def test_process_is_replaced_after_its_last_file(pool: DecodingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FILES_MAX", 2)
    await pool.grade(GOOD)
    first = pids()
    await pool.grade(GOOD)
    assert not pids()
    await pool.grade(GOOD)
    assert pids() != first


async def test_unused_process_ends() -> None:
    pool = DecodingPool(idle_s=0.05)
    await pool.grade(GOOD)
    await eventually(lambda: not pids())
    assert await pool.grade(GOOD)
    pool.close()


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.abort()",
        "raise MemoryError",
        "print('no JSON')",
        "print('[]')",
        """print('{"n_bytes": 1000000000000}')""",
    ],
)
async def test_file_that_kills_its_process_is_refused(
    pool: DecodingPool, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    with monkeypatch.context() as patch:
        set_decoder(patch, code)
        with pytest.raises(RecordingError, check=has_code("unsupported_audio")):
            await pool.prepare(GOOD)
    assert not pids()
    assert await pool.grade(GOOD)


async def test_file_is_tried_again_if_an_earlier_one_did_harm(
    pool: DecodingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_decoder(monkeypatch, ANSWERS_ONCE)
    assert await pool.grade(b"") == "A"
    assert await pool.grade(b"") == "A"


async def test_file_that_takes_too_long_is_refused(pool: DecodingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_decoder(monkeypatch, HANGS)
    monkeypatch.setattr(decoding, "WAIT_MAX_S", 0.1)
    with pytest.raises(ServiceUnavailableError, match="in time"):
        await pool.prepare(GOOD)
    assert not pids()


async def test_cancellation_kills_the_process(pool: DecodingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_decoder(monkeypatch, HANGS)
    preparing = asyncio.create_task(pool.prepare(GOOD))
    await eventually(lambda: bool(pids()))
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert not pids()


async def test_decoder_gets_no_secret_of_the_server(pool: DecodingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AFTERWORDS_ADMIN_SECRET", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-secret")
    set_decoder(
        monkeypatch, "import json, os; print(json.dumps({'grade': str(dict(os.environ)), 'n_bytes': 0}), flush=True)"
    )
    assert "PATH" in (seen := await pool.grade(b""))
    assert "canary" not in seen


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces every limit")
@pytest.mark.parametrize("attack", ["bytearray(1 << 30)", "__import__('pathlib').Path('big').write_bytes(b'x')"])
def test_decoder_can_neither_fill_memory_nor_write_files(tmp_path: Path, attack: str) -> None:
    code = f"from afterwords.server.services.decoding import limit_process; limit_process(); {attack}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert b"MemoryError" in done.stderr or done.returncode < 0 or b"File too large" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces every limit")
def test_cpu_limit_starts_again_with_each_file() -> None:
    code = (
        "from afterwords.server.services import decoding; import time; decoding.CPU_MAX_S = 1\n"
        "for _ in range(5):\n"
        "    decoding.limit_cpu(); start = time.process_time()\n"
        "    while time.process_time() < start + 0.3: pass\n"
        "print('alive', flush=True)\n"
        "while True: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.stdout == b"alive\n"
    assert done.returncode < 0
