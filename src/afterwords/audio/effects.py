"""Effects on samples: change the sample rate, change the speed at the same pitch, join without a click."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from afterwords.audio.wav import Samples
from afterwords.models import SpeechOptions

FADE_S = 0.005
_TAIL_S = 0.25  # longer than the delay of two filters


def resample(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    """Resample samples of shape (n_samples,) from one rate to another, both in Hz. Overshoot is clipped."""
    if from_rate == to_rate or not len(samples):
        return samples
    import soxr

    resampled: Samples = soxr.resample(samples, from_rate, to_rate)
    return np.clip(resampled, np.float32(-1), np.float32(1))


def fade_from(sample: float, sample_rate: int) -> Samples:
    """Return a fade from the last sample of a sound to 0, so that silence or another sound follows without a click."""
    return np.linspace(sample, 0, round(FADE_S * sample_rate), dtype=np.float32)


def change_speed(chunks: Iterable[Samples], sample_rate: int, speed: float) -> Iterator[Samples]:
    """Change the speed of streamed speech and keep its pitch.

    Args:
        chunks: samples of shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: in Hz.
        speed: 0.25 to 4; at 1 the chunks pass unchanged.

    Returns:
        Chunks of other sizes. Their total length is exactly 1/speed of the input.

    Raises:
        InvalidOptionError: The speed is out of range.

    Source: libav's filter `atempo` (WSOLA), https://ffmpeg.org/ffmpeg-filters.html#atempo.
    """
    speed = SpeechOptions.check(speed=speed).speed
    return iter(chunks) if speed == 1 else _stretch(chunks, sample_rate, speed)


def _stretch(chunks: Iterable[Samples], sample_rate: int, speed: float) -> Iterator[Samples]:
    stretcher = _Stretcher(sample_rate, speed)
    n_in = n_out = 0
    for chunk in chunks:
        n_in += len(chunk)
        for stretched in stretcher.push(chunk):
            n_out += len(stretched)
            yield stretched
    # Silence pushes the last samples out of the filters; the excess is cut.
    n_missing = round(n_in / speed) - n_out
    tail = [*stretcher.push(np.zeros(round(_TAIL_S * sample_rate), np.float32)), *stretcher.push(None)]
    if n_missing > 0:
        yield np.concatenate([*tail, np.zeros(n_missing, np.float32)])[:n_missing]


class _Stretcher:
    """A chain of libav tempo filters."""

    def __init__(self, sample_rate: int, speed: float) -> None:
        import av

        # One filter reaches down to half speed, and above double speed it drops sound instead of blending it.
        n_filters = 2 if not 0.5 <= speed <= 2 else 1
        self._sample_rate = sample_rate
        self._n_frames = 0
        self._graph = av.filter.Graph()
        last = self._graph.add_abuffer(
            sample_rate=sample_rate, format="flt", layout="mono", time_base=Fraction(1, sample_rate)
        )
        for _ in range(n_filters):
            tempo = self._graph.add("atempo", f"{math.pow(speed, 1 / n_filters):.9f}")
            last.link_to(tempo)
            last = tempo
        last.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def push(self, samples: Samples | None) -> Iterator[Samples]:
        """Push samples, or None at the end, and yield the samples that are ready."""
        import av

        if samples is None:
            self._graph.push(None)
        elif len(samples):
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
            frame.sample_rate = self._sample_rate
            frame.time_base = Fraction(1, self._sample_rate)
            frame.pts = self._n_frames
            self._n_frames += len(samples)
            self._graph.push(frame)
        while True:
            try:
                ready = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield ready.to_ndarray().reshape(-1).astype(np.float32, copy=False)
