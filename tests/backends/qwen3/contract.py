"""The contract of the Qwen3-TTS engines, in addition to that of all engines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from afterwords.audio.wav import Samples
from afterwords.backends.base import Chunk, Engine, InvalidPromptError, Reference
from afterwords.backends.qwen3 import long_text
from afterwords.errors import SynthesisError, TextError, UnsupportedLangError
from afterwords.models import SpeechTask
from afterwords.testing import EngineContract
from afterwords.testing.engine_contract import SHORT_TEXT, TEXT
from tests.error_codes import has_code

SEED = 3  # random weights end an utterance by chance; with this seed they do
TEXTS = ["Hello.", "The quick brown fox.", "It sleeps, for a while.", "In the sun."]

T = TypeVar("T")


class Qwen3Contract(EngineContract):
    """Inherit it, and define the fixtures `engine` and `other`, an engine of another size."""

    def task(self, engine: Engine, prompt: bytes, *, text: str = TEXT, seed: int | None = SEED) -> SpeechTask:
        return super().task(engine, prompt, text=text, seed=seed)

    def test_voice_without_transcript_uses_embedding_alone(self, engine: Engine) -> None:
        reference = Reference(np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32), 16_000)
        prompt = engine.prepare(reference)
        assert "alone" in str(engine.describe(prompt)["speaks"])
        tasks = [self.task(engine, prompt, text=SHORT_TEXT, seed=seed) for seed in range(5)]
        assert any(len(spoken(engine, task)) for task in tasks)  # random weights don't always find an end

    def test_describe_says_how_a_voice_is_made(self, engine: Engine, prompt: bytes) -> None:
        assert engine.describe(prompt) == {"speaks": "as a continuation of the recording"}
        for damaged in (b"", prompt[:20], b"\x02" + 7 * b"\x00" + b"12", b"\xff" * 40):
            with pytest.raises(InvalidPromptError):
                engine.describe(damaged)

    def test_prompt_of_another_model_is_refused(self, engine: Engine, other: Engine, prompt: bytes) -> None:
        with pytest.raises(SynthesisError, match="not a prompt for this model"):
            self.speak(engine, self.task(engine, prompt[:-1] + bytes([prompt[-1] ^ 1])))
        with pytest.raises(SynthesisError, match="its model is"):
            list(other.synthesize(self.task(engine, prompt)))

    def test_stored_prompt_equals_a_new_one(self, engine: Engine, reference: Reference, prompt: bytes) -> None:
        fresh = engine.prepare(reference)
        assert tensors(fresh) == tensors(prompt)
        said = self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT))
        engine.close()
        np.testing.assert_allclose(self.speak(engine, self.task(engine, fresh, text=SHORT_TEXT)), said, atol=1e-4)

    def test_concurrent_requests_equal_single_ones(self, engine: Engine, prompt: bytes) -> None:
        tasks = [self.task(engine, prompt, text=text) for text in TEXTS]
        alone = [spoken(engine, task) for task in tasks]
        together = run_concurrently([partial(spoken, engine, task) for task in tasks])
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, many, atol=1e-4)

    def test_chunks_grow_from_one_frame(self, chunks: list[Chunk]) -> None:
        n_frames = [len(chunk.samples) // 1920 for chunk in chunks]
        assert n_frames[0] == 1
        assert max(n_frames) == 8

    def test_endless_speech_is_an_error(self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(long_text, "FRAMES_PER_TOKEN", 0)  # the ceiling, where random weights reach it
        monkeypatch.setattr(long_text, "FRAMES_MORE", 5)
        with pytest.raises(SynthesisError, match="did not come to its end"):
            self.speak(engine, self.task(engine, prompt))

    def test_unknown_language_is_refused(self, engine: Engine, prompt: bytes) -> None:
        task = self.task(engine, prompt)
        for lang in ("sv", "ja"):  # one that no checkpoint speaks, and one that this one does not
            with pytest.raises(UnsupportedLangError, match="it speaks de, en, zh"):
                list(engine.synthesize(task.model_copy(update={"lang": lang})))

    def test_text_without_tokens_is_refused(self, engine: Engine, prompt: bytes) -> None:
        with pytest.raises(TextError, check=has_code("empty_text")):
            self.speak(engine, self.task(engine, prompt, text="... — !"))

    def test_unstarted_stream_leaves_nothing_behind(self, engine: Engine, prompt: bytes) -> None:
        engine.synthesize(self.task(engine, prompt)).close()
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))

    def test_closing_ends_streams_and_reloads_later(self, engine: Engine, prompt: bytes) -> None:
        speech = engine.synthesize(self.task(engine, prompt, text=TEXT * 9))
        next(speech)
        engine.close()
        with pytest.raises(SynthesisError, match="the engine was closed"):
            list(speech)
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))


@contextmanager
def linked_models(folder: Path, checkpoint: Path, *names: str) -> Iterator[Path]:
    """Set AFTERWORDS_MODELS to a folder with a checkpoint under these names."""
    for name in names:
        (folder / name).symlink_to(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERWORDS_MODELS", str(folder))
        yield folder


def spoken(engine: Engine, task: SpeechTask) -> Samples:
    """Return the audio of an utterance; empty if it runs away, which random weights may do."""
    try:
        return np.concatenate([chunk.samples for chunk in engine.synthesize(task)])
    except SynthesisError:
        return np.zeros(0, np.float32)


def tensors(prompt: bytes) -> bytes:
    """Return a prompt without its header, whose order varies."""
    return prompt[8 + int.from_bytes(prompt[:8], "little") :]


def run_concurrently(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run calls concurrently and return their results."""
    results: dict[int, T] = {}

    def call(place: int) -> None:
        results[place] = calls[place]()

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[place] for place in range(len(calls))]
