"""Play on the loudspeaker and capture from the microphone of this machine, with the extra `play`."""

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
from afterwords.errors import MissingExtraError, UnavailableError

_BLOCK_S = 0.05  # between two checks whether to stop
_WAIT_S = 0.1  # an unlimited wait can't be interrupted on Windows


def play(chunks: Iterable[Samples], sample_rate: int) -> None:
    """Play chunks as they arrive, and return when the last one has been played.

    Playback never delays the source of the chunks. Ctrl-C, or an error of the source, stops the sound at once.

    Args:
        chunks: Samples of shape (n_samples,), float32 in [-1, 1].
        sample_rate: In Hz; resampled for a device that doesn't support it.

    Raises:
        MissingExtraError: The extra `play` is not installed.
        UnavailableError: No device can play, or its system library is missing.
    """
    with _device("Playing") as sounddevice:
        rate = _device_rate(sounddevice, "output", sample_rate)
        stream = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32", latency="high")
        waiting: SimpleQueue[Samples | None] = SimpleQueue()
        is_stopped = Event()
        with closing(stream), ThreadPoolExecutor(1, thread_name_prefix="afterwords-play") as pool:
            playing = pool.submit(_play_queued, stream, waiting, is_stopped, block=round(rate * _BLOCK_S))
            try:
                resampler = None
                if rate != sample_rate:
                    import soxr

                    resampler = soxr.ResampleStream(sample_rate, rate, 1, dtype="float32")
                for chunk in chunks:
                    waiting.put(resampler.resample_chunk(chunk) if resampler else chunk)
                    if playing.done():  # the device failed
                        break
                if resampler:
                    waiting.put(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
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
    """Record from the default microphone, as `audio.record` describes.

    Returns:
        Samples of shape (n_samples,), float32 mono in [-1, 1], and their rate in Hz.

    Raises:
        MissingExtraError, UnavailableError: As for `play`.
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
    """Import `sounddevice`, and translate its errors."""
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError.for_extra("play", purpose=purpose) from error
    except OSError as error:
        fix = "; on Debian and Ubuntu: apt-get install libportaudio2" if sys.platform == "linux" else ""
        raise _unavailable(purpose, f"the system library PortAudio is missing{fix}") from error
    try:
        yield sounddevice
    except sounddevice.PortAudioError as error:
        has_none = "device -1" in str(error)  # PortAudio's number of a missing default device
        raise _unavailable(purpose, "no device is set up" if has_none else str(error)) from error


def _unavailable(purpose: str, why: str) -> UnavailableError:
    hint = "give a recorded file instead of --record."
    if purpose == "Playing":
        hint = "write to a file instead: -o hello.wav."
    return UnavailableError(f"{purpose} needs an audio device: {why}.", code="no_audio_device", hint=hint)


def _device_rate(sounddevice: Any, kind: str, sample_rate: int) -> int:
    """Return the requested rate if the device supports it, else its default."""
    check = sounddevice.check_output_settings if kind == "output" else sounddevice.check_input_settings
    try:
        check(channels=1, dtype="float32", samplerate=sample_rate)
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(kind=kind)["default_samplerate"])
    return sample_rate


def _play_queued(stream: Any, waiting: SimpleQueue[Samples | None], is_stopped: Event, *, block: int) -> None:
    """Play queued samples until None arrives or `is_stopped` is set."""
    while (chunk := waiting.get()) is not None and not is_stopped.is_set():
        for start in range(0, len(chunk), block):
            if is_stopped.is_set():
                break
            if not stream.active:
                stream.start()
            stream.write(np.ascontiguousarray(chunk[start : start + block], np.float32).reshape(-1, 1))
    if is_stopped.is_set():
        stream.abort()
    elif stream.active:
        stream.stop()  # waits for the buffer to play
