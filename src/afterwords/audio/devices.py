"""The loudspeaker and the microphone of this machine.

Apart from `audio`, because only the extra `play` brings the library, and because devices block and fail in ways of
their own. Callers find `play` and `record` in `audio`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np

from afterwords.audio.wav import Samples
from afterwords.errors import AudioDeviceError, MissingExtraError

_BLOCK_S = 0.05  # between two looks at whether to stop
_WAIT_S = 0.1  # a wait without an end can't be interrupted on Windows


def play(chunks: Iterable[Samples], sample_rate: int) -> None:
    """Play chunks as they come, and return when the last was heard.

    The first sounds at once, while later ones are still being made; making them never waits for the listener.
    Ctrl-C, or an error in making them, stops the sound at once.

    Args:
        chunks: samples of shape (n_samples,), float32 in [-1, 1].
        sample_rate: in Hz; a device that can't play it gets its own rate.

    Raises:
        MissingExtraError: the extra `play` is not installed.
        AudioDeviceError: no device plays, or the system library for it is missing.
    """
    with _device("Playing") as sounddevice:
        rate = _device_rate(sounddevice, "output", sample_rate)
        stream = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32", latency="high")
        waiting: SimpleQueue[Samples | None] = SimpleQueue()
        is_stopped = Event()
        with closing(stream), ThreadPoolExecutor(1, thread_name_prefix="afterwords-play") as pool:
            playing = pool.submit(_play_waiting, stream, waiting, is_stopped, block=round(rate * _BLOCK_S))
            try:
                for chunk in _at_rate(chunks, sample_rate, rate):
                    waiting.put(chunk)
                    if playing.done():  # the device has gone
                        break
                waiting.put(None)
                while not playing.done():
                    wait([playing], timeout=_WAIT_S)
            except BaseException:
                is_stopped.set()
                waiting.put(None)
                raise
            playing.result()


def capture(
    *,
    sample_rate: int,
    stop: Event,
    max_duration_s: float,
    on_level: Callable[[float, float], None] | None = None,
) -> tuple[Samples, int]:
    """Record from the default microphone until `stop` is set or the time is over.

    Args:
        sample_rate: the rate to ask for, in Hz; a device that can't record it gives its own.
        stop: looked at twenty times a second.
        max_duration_s: the longest that is recorded.
        on_level: told the seconds recorded and the peak of the last block, in [0, 1].

    Returns:
        Samples of shape (n_samples,), float32 mono in [-1, 1], and their rate in Hz.

    Raises:
        MissingExtraError, AudioDeviceError: as `play`.
    """
    with _device("Recording") as sounddevice:
        rate = _device_rate(sounddevice, "input", sample_rate)
        block, n_max = round(rate * _BLOCK_S), round(rate * max_duration_s)
        recorded = bytearray()
        n_frames = 0
        with sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32") as stream:
            while n_frames < n_max and not stop.is_set():
                samples, _ = stream.read(min(block, n_max - n_frames))
                recorded += samples.tobytes()
                n_frames += len(samples)
                if on_level is not None:
                    on_level(n_frames / rate, float(np.abs(samples).max()))
        return np.clip(np.frombuffer(recorded, np.float32), np.float32(-1), np.float32(1)), rate


@contextmanager
def _device(purpose: str) -> Iterator[Any]:
    """The library `sounddevice`, with its errors turned into ours."""
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("play", purpose=purpose) from error
    except OSError as error:
        fix = "; on Debian and Ubuntu: apt-get install libportaudio2" if sys.platform == "linux" else ""
        raise AudioDeviceError(purpose, why=f"the system library PortAudio is missing{fix}") from error
    try:
        yield sounddevice
    except sounddevice.PortAudioError as error:
        is_none = "device -1" in str(error)  # PortAudio's number for "there is no default device"
        raise AudioDeviceError(purpose, why="none is set up" if is_none else str(error)) from error


def _device_rate(sounddevice: Any, kind: str, sample_rate: int) -> int:
    """The rate asked for, or the device's own where it can't do that."""
    check = sounddevice.check_output_settings if kind == "output" else sounddevice.check_input_settings
    try:
        check(channels=1, dtype="float32", samplerate=sample_rate)
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(kind=kind)["default_samplerate"])
    return sample_rate


def _play_waiting(stream: Any, waiting: SimpleQueue[Samples | None], is_stopped: Event, *, block: int) -> None:
    """Play what is put into `waiting`, until None comes or `is_stopped` is set."""
    for samples in _blocks(waiting, block):
        if is_stopped.is_set():
            break
        if not stream.active:
            stream.start()
        stream.write(np.ascontiguousarray(samples, np.float32).reshape(-1, 1))
    if is_stopped.is_set():
        stream.abort()
    elif stream.active:
        stream.stop()  # waits until all has been heard


def _blocks(waiting: SimpleQueue[Samples | None], size: int) -> Iterator[Samples]:
    while (chunk := waiting.get()) is not None:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def _at_rate(chunks: Iterable[Samples], from_rate: int, to_rate: int) -> Iterator[Samples]:
    if from_rate == to_rate:
        yield from chunks
        return
    import soxr

    resampler = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
    for chunk in chunks:
        yield resampler.resample_chunk(chunk)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
