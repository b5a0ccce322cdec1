"""Synthesis of long texts: splitting, limits, retries and joining."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from afterwords.audio.wav import Samples
from afterwords.backends.base import Reference
from afterwords.backends.qwen3 import long_text
from afterwords.backends.qwen3.config import Sampling
from afterwords.backends.qwen3.long_text import AHEAD, FADE, PAUSE_S, TRIES, LongTextStream, smooth_edges, split_text
from afterwords.backends.qwen3.request import FinishReason
from afterwords.backends.qwen3.torch.model import TorchModel, VoiceOnDevice
from afterwords.backends.qwen3.torch.scheduler import Request, TorchScheduler
from afterwords.errors import SynthesisError, TextError
from afterwords.models import SpeechTask
from tests.error_codes import has_code

FOUR = "One two three four five. Six seven eight nine ten. Eleven twelve and so on. Thirteen and no more."


@pytest.fixture(scope="module")
def voice(model: TorchModel) -> VoiceOnDevice:
    samples = np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32)
    return model.to_device(model.encode_reference(Reference(samples, 16_000)))


class Scripted(TorchScheduler):
    """A scheduler without a thread: requests end as scripted, in order, after a frame of audio each."""

    def __init__(self, *ends: FinishReason | Exception, is_streamed_first: bool = False) -> None:
        self.ends, self.is_streamed_first = list(ends), is_streamed_first
        self.requests: list[Request] = []

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        end = self.ends.pop(0) if self.ends else FinishReason.STOP
        request.sound.put(np.full(1920, 0.1 * len(self.requests), np.float32))
        if isinstance(end, Exception):
            request.finish(FinishReason.CANCELLED, end)
        elif self.is_streamed_first:
            request.sound.put(None)  # the end is known only after the audio was read
        else:
            request.finish(end)


def task(text: str = "A text.", *, lang: str = "en", seed: int | None = 3) -> SpeechTask:
    return SpeechTask(text=text, lang=lang, backend="qwen3-1.7b", voice_id="me", prompt=b"", seed=seed)


def read(model: TorchModel, voice: VoiceOnDevice, scheduler: TorchScheduler, text: str = "A text.") -> Samples:
    return np.concatenate([chunk.samples for chunk in LongTextStream(model, scheduler, voice, task(text)).chunks()])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "SEGMENT_CHARS", 26)  # so that a text of four sentences has as many pieces


@pytest.mark.parametrize("bad", [FinishReason.LENGTH, FinishReason.RUNAWAY])
def test_unstreamed_runaway_segment_is_retried(model: TorchModel, voice: VoiceOnDevice, bad: FinishReason) -> None:
    scheduler = Scripted(bad, bad, FinishReason.STOP)
    sound = read(model, voice, scheduler)
    assert len({request.sampling.seed for request in scheduler.requests}) == 3
    assert np.abs(sound).max() == np.float32(0.3)  # only the third was streamed
    assert len(sound) == 1920 + FADE


def test_segment_that_always_runs_away_is_an_error(model: TorchModel, voice: VoiceOnDevice) -> None:
    scheduler = Scripted(*[FinishReason.RUNAWAY] * TRIES)
    with pytest.raises(SynthesisError, match=r"did not come to its end \(runaway\)"):
        read(model, voice, scheduler)
    assert len(scheduler.requests) == TRIES


def test_streamed_runaway_segment_is_not_retried(model: TorchModel, voice: VoiceOnDevice) -> None:
    scheduler = Scripted(is_streamed_first=True)
    chunks = LongTextStream(model, scheduler, voice, task()).chunks()
    next(chunks)
    scheduler.requests[0].finish_reason = FinishReason.LENGTH
    with pytest.raises(SynthesisError, match=r"\(length\)"):
        list(chunks)
    assert len(scheduler.requests) == 1


def test_exception_is_named_and_not_retried(model: TorchModel, voice: VoiceOnDevice) -> None:
    scheduler = Scripted(MemoryError("of a text"))
    with pytest.raises(SynthesisError, match="it raised MemoryError") as caught:
        read(model, voice, scheduler)
    assert isinstance(caught.value.__cause__, MemoryError)  # by which a server knows that memory ran out
    assert len(scheduler.requests) == 1


def test_closed_engine_is_named_in_the_error(model: TorchModel, voice: VoiceOnDevice) -> None:
    with pytest.raises(SynthesisError, match="the engine was closed"):
        read(model, voice, Scripted(FinishReason.CANCELLED))
    closed = TorchScheduler(model.talker, model.decoder, n_rows=1, n_positions=256)
    closed.close()
    with pytest.raises(SynthesisError, match="the engine was closed"):
        read(model, voice, closed)


@pytest.mark.usefixtures("short")
def test_some_segments_are_submitted_ahead(model: TorchModel, voice: VoiceOnDevice) -> None:
    scheduler = Scripted()
    chunks = LongTextStream(model, scheduler, voice, task(" ".join([FOUR] * 3))).chunks()
    assert len(scheduler.requests) == 0
    next(chunks)
    assert len(scheduler.requests) == 1 + AHEAD
    list(chunks)
    assert len(scheduler.requests) == 12
    assert len({request.sampling.seed for request in scheduler.requests}) == 12


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("n_read", [0, 1, 2, 3])
def test_closed_stream_cancels_its_requests(model: TorchModel, voice: VoiceOnDevice, n_read: int) -> None:
    scheduler = Scripted()
    chunks = LongTextStream(model, scheduler, voice, task(FOUR)).chunks()
    for _ in range(n_read):
        next(chunks)
    chunks.close()
    assert all(request.is_cancelled for request in scheduler.requests)


@pytest.mark.usefixtures("short")
def test_segments_join_smoothly_with_a_pause(model: TorchModel, voice: VoiceOnDevice) -> None:
    sound = read(model, voice, Scripted(), FOUR)
    pause = round(PAUSE_S * 24_000)
    assert len(sound) == 4 * (1920 + FADE) + 3 * pause
    assert (np.abs(sound) == 0).sum() >= 3 * pause
    assert np.abs(np.diff(sound, prepend=0, append=0)).max() < 0.41 / FADE  # without fades it would be 0.4


def test_fade_in_spans_small_chunks() -> None:
    parts = list(smooth_edges(iter([np.ones(50, np.float32)] * 4), pause_s=0.0))
    assert all(part.dtype == np.float32 for part in parts)
    assert np.abs(np.diff(np.concatenate(parts), append=0)).max() <= 1 / 100


@pytest.mark.parametrize("text", ["...", "?! —", "…\n\n。"])
def test_punctuation_alone_is_refused(model: TorchModel, text: str) -> None:
    with pytest.raises(TextError, check=has_code("empty_text")):
        split_text(text, "en", model)


def test_segments_without_tokens_are_skipped(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ascii(text: str) -> int:  # a vocabulary of all bytes makes something of everything; others need not
        return len(text) if text.isascii() else 0

    monkeypatch.setattr(model, "n_tokens", only_ascii)
    with pytest.raises(TextError, check=has_code("empty_text")):
        split_text("日本語です。", "ja", model)
    assert split_text("A sentence of its own. 日本語の長い文がここにあります。", "en", model) == [
        "A sentence of its own."
    ]


@pytest.mark.parametrize(
    ("lang", "sentence", "seconds_a_character"),
    [("en", "and on it goes, " * 60, 0.07), ("zh", "今天天气很好，我们去公园吧，" * 40, 0.25)],
)
def test_segments_are_short_enough(model: TorchModel, lang: str, sentence: str, seconds_a_character: float) -> None:
    assert max(map(len, split_text(sentence, lang, model))) * seconds_a_character <= 20


def test_max_frames_follows_the_text(model: TorchModel, voice: VoiceOnDevice) -> None:
    scheduler = Scripted()
    read(model, voice, scheduler, "Abc.")
    read(model, voice, scheduler, "abc " * 10)
    short, long = (request.max_frames for request in scheduler.requests)
    assert 50 < short < 100 < long


def test_min_frames_is_the_checkpoints(model: TorchModel, voice: VoiceOnDevice) -> None:
    scheduler = Scripted()
    read(model, voice, scheduler)
    assert scheduler.requests[0].sampling.min_frames == Sampling().min_frames == 2


@pytest.fixture
def scheduler(model: TorchModel) -> Iterator[TorchScheduler]:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=4, n_positions=512)
    yield scheduler
    scheduler.close()


@pytest.mark.usefixtures("short")
def test_long_text_is_reproducible_with_a_seed(
    model: TorchModel, voice: VoiceOnDevice, scheduler: TorchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_text, "TRIES", 40)  # random weights end when they end
    alone = read(model, voice, scheduler, FOUR)
    others = [LongTextStream(model, scheduler, voice, task(FOUR, seed=seed)).chunks() for seed in (7, 8)]
    for other in others:
        next(other)
    np.testing.assert_allclose(read(model, voice, scheduler, FOUR), alone, atol=1e-4)
    for other in others:
        other.close()
