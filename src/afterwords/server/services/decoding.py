"""Recordings in any format that `clone` takes, decoded in a process of their own.

Decoders are large C libraries, and an upload comes from a stranger: what crashes, hangs or fills the memory here does
so in a process with little to lose. It has no secret in its environment, writes no file, and is limited in time and
memory. `Voices.register` calls `as_wav`; a WAV never comes here, since `riff` judges it without a decoder.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Final

from afterwords.audio.wav import REFERENCE_MAX_S
from afterwords.errors import AfterwordsError, RecordingError, ServiceUnavailableError, UnsupportedAudioError

log = logging.getLogger("afterwords.server")

COMMAND: Final = (sys.executable, "-P", "-m", "afterwords.server.services.decoding")
CPU_MAX_S: Final = 30  # 60 s of speech take less than one
WAIT_MAX_S: Final = 120.0  # on a machine that is busy with other things
MEMORY_MAX_BYTES: Final = 768 << 20  # of address space: 200 MiB of libraries, and 60 s at 192 kHz
WAV_MAGICS: Final = (b"RIFF", b"RIFX", b"RF64", b"riff")
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME",
                "VIRTUAL_ENV", "SYSTEMROOT", "TMPDIR", "TEMP")  # fmt: skip


def is_wav(data: bytes) -> bool:
    """Whether a file is a WAV file, or a kind of it that is refused as such; an empty one is, too."""
    start = 10 if data[:3] == b"ID3" else 0
    return len(data) < 12 or data[start : start + 4] in WAV_MAGICS


def as_wav(data: bytes, *, source: str) -> bytes:
    """Decode a recording of any format into a mono WAV file of 16 bits at its own rate.

    Args:
        source: what messages call it.

    Raises:
        RecordingError: no decoder knows it, or it is longer than a reference may be; decoding stops there.
        ServiceUnavailableError: the machine is too busy.
    """
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        done = subprocess.run(
            [*COMMAND, source],
            input=data,
            env={**env, "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_MAX_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServiceUnavailableError("The recording could not be decoded in time") from None
    head, _, wav = done.stdout.partition(b"\n")
    if done.returncode != 0:
        log.warning("decoding an upload ended with status %d", done.returncode)
        raise UnsupportedAudioError(source)
    if wav:
        return wav
    raise _refusal(json.loads(head))


def _refusal(facts: dict[str, str]) -> RecordingError:
    """The error that the process met, as one of the same class."""
    kinds = {facts["kind"]: RecordingError}
    waiting: list[type[RecordingError]] = [RecordingError]
    while waiting:
        kind = waiting.pop()
        kinds[kind.__name__] = kind
        waiting += kind.__subclasses__()
    error = kinds[facts["kind"]].__new__(kinds[facts["kind"]])
    AfterwordsError.__init__(error, facts["message"], hint=facts["hint"])
    return error


# -- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Decode standard input: one line of JSON on standard output, and the WAV file if it could be read."""
    from afterwords.pipes import take_pipes

    source, sink = take_pipes()
    data = source.read()
    import av  # before the limits, under which nothing is loaded
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    from afterwords.audio.decoding import read_sound
    from afterwords.audio.wav import canonical_wav

    av.logging.set_level(None)
    _limit()
    try:
        sound = read_sound(data, name=sys.argv[1], max_duration_s=REFERENCE_MAX_S)
    except RecordingError as error:
        facts = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        sink.write(json.dumps(facts).encode() + b"\n")
    else:
        sink.write(b"{}\n" + canonical_wav(sound.samples, sound.sample_rate))
    sink.flush()


def _limit() -> None:
    """Give up what decoding does not need; Windows has no such limits, and macOS keeps not all of them."""
    if sys.platform == "win32":
        return
    import resource

    limits = [
        (resource.RLIMIT_CPU, CPU_MAX_S),
        (resource.RLIMIT_AS, MEMORY_MAX_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ]
    for which, most in limits:
        _, hard = resource.getrlimit(which)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(which, (allowed, allowed))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise


if __name__ == "__main__":
    main()
