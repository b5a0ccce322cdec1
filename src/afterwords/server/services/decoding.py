"""Check, decode and grade uploaded recordings in separate processes. `VoiceService` calls it, for every format.

Decoders are large C libraries and uploads are untrusted: what crashes, hangs or fills the memory does so in a process
with little to lose. It has no secret in its environment, writes no file, and is limited in time and memory. NumPy's
buffers stay out of the server's memory, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

from afterwords.errors import RecordingError, ServiceUnavailableError, error_from_code
from afterwords.models import ReferenceInfo

log = logging.getLogger("afterwords.server")

COMMAND: Final = (sys.executable, "-P", "-m", "afterwords.server.services.decoding")
PROCESSES_MAX: Final = 2
IDLE_S: Final = 60.0
"""Seconds after which an unused process ends."""
FILES_MAX: Final = 100
"""Files after which a process is replaced, so that what a decoder leaks stays bounded."""
CPU_MAX_S: Final = 30  # for one file; 60 s of speech take less than one
WAIT_MAX_S: Final = 120.0  # for one file, on a busy machine
MEMORY_MAX_BYTES: Final = 768 << 20  # of address space: 200 MiB of libraries, and 60 s at 192 kHz
RATE_MAX: Final = 48_000  # Hz; nothing a voice needs lies above
HEADER_MAX_BYTES: Final = 1 << 16
WAV_MAX_BYTES: Final = 1 << 23  # 60 s at 48 kHz have 5.8 MB
WAV_MAGICS: Final = (b"RIFF", b"RIFX", b"RF64", b"riff")
SOURCE: Final = "the recording"
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH",
                       "PYTHONHOME", "VIRTUAL_ENV", "SYSTEMROOT", "TMPDIR", "TEMP")  # fmt: skip


class DecodingPool:
    """Up to `PROCESSES_MAX` decoding processes, started when needed and kept for the next file."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._slots = asyncio.Semaphore(PROCESSES_MAX)
        self._idle: dict[DecodingProcess, asyncio.TimerHandle] = {}  # with the timer that ends it

    async def prepare(self, data: bytes) -> tuple[bytes, ReferenceInfo]:
        """Decode a recording of any format into a canonical WAV file, and grade it.

        Returns:
            The WAV (mono, 16 bits, at most 48 kHz) and its digest, duration, sample rate and grade.

        Raises:
            RecordingError: No decoder reads it, or it can't be a reference; decoding stops at the longest duration.
            ServiceUnavailableError: Decoding took more than 120 s.
        """
        facts, wav = await self._run("prepare", data)
        return wav, ReferenceInfo.model_validate({**facts, "sha256": sha256(wav).hexdigest()})

    async def grade(self, wav: bytes) -> str:
        """Return how good a canonical WAV is for cloning, A to F.

        Raises:
            RecordingError: It can't be graded.
            ServiceUnavailableError: Grading took more than 120 s.
        """
        facts, _ = await self._run("grade", wav)
        return str(facts["grade"])

    def close(self) -> None:
        """End the processes that wait for work."""
        while self._idle:
            self._take().stop()

    def _take(self) -> DecodingProcess:
        if not self._idle:
            return DecodingProcess()
        process, expiry = self._idle.popitem()
        expiry.cancel()  # here, since timers belong to the thread of the event loop
        return process

    async def _run(self, task: str, data: bytes) -> tuple[dict[str, Any], bytes]:
        async with self._slots:
            try:
                facts, body = await self._run_in(self._take(), task, data)
            except DecoderDiedError as died:
                if not died.is_reused:
                    raise RecordingError.unsupported(SOURCE) from died
                try:  # an earlier file may have done the damage
                    facts, body = await self._run_in(DecodingProcess(), task, data)
                except DecoderDiedError as again:
                    raise RecordingError.unsupported(SOURCE) from again
        if "code" in facts:
            raise error_from_code(facts["code"], facts["message"], hint=facts["hint"])
        return facts, body

    async def _run_in(self, process: DecodingProcess, task: str, data: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            answer = await asyncio.to_thread(process.run, task, data)
        except BaseException:  # cancellation, too: the answer would be taken for that of the next file
            process.stop()
            raise
        if process.n_files >= FILES_MAX:
            process.stop()
            return answer

        def expire() -> None:
            del self._idle[process]
            process.stop()

        self._idle[process] = asyncio.get_running_loop().call_later(self._idle_s, expire)
        return answer


class DecoderDiedError(Exception):
    """A decoding process died.

    Attributes:
        is_reused: It had decoded other files before.
    """

    def __init__(self, *, is_reused: bool) -> None:
        super().__init__()
        self.is_reused = is_reused


class DecodingProcess:
    """One decoding process. `run` blocks, and serves one caller at a time."""

    def __init__(self) -> None:
        self.n_files = 0
        env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            COMMAND,
            env={**env, "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def run(self, task: str, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one file; return the facts of the answer and its bytes.

        Raises:
            ServiceUnavailableError: The process took too long and was killed.
            DecoderDiedError: The process died.
        """
        self.n_files += 1
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        is_late = threading.Event()

        def kill_late() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(WAIT_MAX_S, kill_late)
        timer.daemon = True
        timer.start()
        try:
            stdin.write(json.dumps({"task": task, "n_bytes": len(data)}).encode() + b"\n")
            stdin.write(data)
            stdin.flush()
            facts = json.loads(stdout.readline(HEADER_MAX_BYTES))
            n_bytes = facts.pop("n_bytes")
            body = stdout.read(max(0, min(n_bytes, WAV_MAX_BYTES)))
            if len(body) == n_bytes:
                return facts, body
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            pass  # a broken pipe, or a malformed answer: below
        finally:
            timer.cancel()
        self.stop()
        if is_late.is_set():
            raise ServiceUnavailableError("The recording could not be decoded in time; nothing was changed.")
        log.warning("a decoding process ended with status %d", self._process.returncode)
        raise DecoderDiedError(is_reused=self.n_files > 1)

    def stop(self) -> None:
        """Kill the process and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a file that was not read to its end
                pipe.close()  # type: ignore[union-attr]


# -- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Process files from standard input until it ends; each is a line of JSON and the bytes, as is each answer."""
    from afterwords.server.pipes import take_pipes

    source, sink = take_pipes()
    import av  # before the limits, under which nothing is loaded
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    from afterwords.audio import effects  # noqa: F401
    from afterwords.reference import examine  # noqa: F401

    av.logging.set_level(None)
    limit_process()
    while line := source.readline():
        order = json.loads(line)
        limit_cpu()
        try:
            facts, body = (_prepare if order["task"] == "prepare" else _grade)(source.read(order["n_bytes"]))
        except RecordingError as error:
            facts, body = {"code": error.code, "message": error.message, "hint": error.hint}, b""
        sink.write(json.dumps({**facts, "n_bytes": len(body)}).encode() + b"\n")
        sink.write(body)
        sink.flush()


def _prepare(data: bytes) -> tuple[dict[str, Any], bytes]:
    from afterwords.audio.audio import Audio
    from afterwords.audio.decoding import read_sound
    from afterwords.audio.effects import resample
    from afterwords.audio.wav import REFERENCE_MAX_S, canonical_wav, check_reference_wav
    from afterwords.reference import examine

    start = 10 if data[:3] == b"ID3" else 0
    is_wav = len(data) < 12 or data[start : start + 4] in WAV_MAGICS  # of any kind, or nothing at all
    if not is_wav:
        sound = read_sound(data, name=SOURCE, max_duration_s=REFERENCE_MAX_S)
        data = canonical_wav(sound.samples, sound.sample_rate)
    samples, sample_rate = check_reference_wav(data)
    if sample_rate > RATE_MAX:
        samples, sample_rate = resample(samples, sample_rate, RATE_MAX), RATE_MAX
    facts = {
        "duration_s": len(samples) / sample_rate,
        "sample_rate": sample_rate,
        "grade": examine(Audio(samples, sample_rate)).grade,
    }
    return facts, canonical_wav(samples, sample_rate)


def _grade(wav: bytes) -> tuple[dict[str, Any], bytes]:
    from afterwords.audio.audio import Audio
    from afterwords.audio.wav import read_wav
    from afterwords.reference import examine

    return {"grade": examine(Audio(*read_wav(wav))).grade}, b""


def limit_process() -> None:
    """Give up what decoding does not need. Windows has no such limits, and macOS enforces not all of them."""
    if sys.platform == "win32":
        return
    import resource

    for which, limit in (
        (resource.RLIMIT_AS, MEMORY_MAX_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(which, (allowed, allowed))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise


def limit_cpu() -> None:
    """Let the kernel kill this process (SIGXCPU) once the next file has taken `CPU_MAX_S` of processor time."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(time.process_time()) + CPU_MAX_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
