"""The contract of every engine, as tests to inherit.

from afterwords.testing import EngineContract

class TestMyEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls):
        return MyEngine()
"""

from __future__ import annotations

import gc
import sys
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest

from afterwords.backends.base import Available, CachingEngine, Chunk, Engine, Reference, Unavailable, has_timing
from afterwords.models import SpeechTask, word_spans
from afterwords.text import LANGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXT = "The quick brown fox jumps over the lazy dog. Then it sleeps, for a while, in the sun."
SHORT_TEXT = "In the sun."


class EngineContract:
    """Inherit it and provide a fixture `engine`; and a fixture `reference` if the engine needs real speech."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls) -> Reference:
        """Return eight seconds of a buzzing voice with pauses; override it if the engine needs real speech."""
        time_s = np.arange(8 * 24_000) / 24_000
        buzz = sum(np.sin(2 * np.pi * 120 * harmonic * time_s) / harmonic for harmonic in range(1, 30))
        syllables = np.clip(np.sin(2 * np.pi * 2.5 * time_s), 0, 1)
        return Reference((0.1 * buzz * syllables).astype(np.float32), 24_000, "a test of the reference", "en")

    @pytest.fixture(scope="class")
    @classmethod
    def prompt(cls, engine: Engine, reference: Reference) -> bytes:
        return engine.prepare(reference, fast=True)

    @pytest.fixture(scope="class")
    @classmethod
    def chunks(cls, engine: Engine, prompt: bytes) -> list[Chunk]:
        """Return the speech of TEXT, which several tests examine."""
        return list(engine.synthesize(cls().task(engine, prompt)))

    def task(self, engine: Engine, prompt: bytes, *, text: str = TEXT, seed: int | None = 7) -> SpeechTask:
        backend = engine.backends[0]
        lang = "en" if "en" in engine.languages(backend) else sorted(engine.languages(backend))[0]
        return SpeechTask(text=text, lang=lang, backend=backend, voice_id="contract", prompt=prompt, seed=seed)

    def speak(self, engine: Engine, task: SpeechTask) -> NDArray[np.float32]:
        return np.concatenate([chunk.samples for chunk in engine.synthesize(task)])

    def test_engine_has_names_and_limits(self, engine: Engine) -> None:
        assert isinstance(engine, Engine)
        assert engine.name
        assert engine.backends
        assert 8_000 <= engine.sample_rate <= 48_000
        assert engine.max_concurrent >= 1
        assert engine.prompt_version

    def test_availability_has_a_reason_and_a_fix(self, engine: Engine) -> None:
        state = engine.availability()
        assert isinstance(state, Available) or (isinstance(state, Unavailable) and state.reason and state.fix)

    def test_backends_speak_known_languages(self, engine: Engine) -> None:
        for backend in engine.backends:
            assert engine.languages(backend)
            assert engine.languages(backend) <= set(LANGS)

    def test_load_reports_progress_up_to_the_end(self, engine: Engine, prompt: bytes) -> None:
        fractions: list[float] = []
        for _ in range(2):
            fractions.clear()
            engine.load(engine.backends[0], lambda done, _: fractions.append(done))
            assert fractions == sorted(fractions)
            assert fractions[-1] == 1.0
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))

    def test_prepare_reports_progress_up_to_the_end(self, engine: Engine, reference: Reference) -> None:
        fractions: list[float] = []
        assert isinstance(engine.prepare(reference, lambda done, _: fractions.append(done), fast=True), bytes)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0

    def test_chunks_are_mono_float32_within_one(self, chunks: list[Chunk]) -> None:
        assert chunks
        for chunk in chunks:
            assert isinstance(chunk, Chunk)
            assert chunk.samples.dtype == np.float32
            assert chunk.samples.ndim == 1
            assert np.isfinite(chunk.samples).all()
            assert np.abs(chunk.samples).max(initial=0) <= 1.0

    def test_speech_is_audible_and_lasts_as_long_as_its_text(self, engine: Engine, chunks: list[Chunk]) -> None:
        samples = np.concatenate([chunk.samples for chunk in chunks])
        assert 0.03 * len(TEXT) < len(samples) / engine.sample_rate < 0.3 * len(TEXT)
        assert float(np.sqrt(np.mean(samples**2))) > 0.005

    def test_words_have_times_within_the_speech(self, engine: Engine, chunks: list[Chunk]) -> None:
        words = [word for chunk in chunks for word in chunk.words]
        if not has_timing(engine):
            assert not words
            return
        assert [(word.start, word.start + len(word.text)) for word in words] == word_spans(TEXT)
        assert [word.text for word in words] == [TEXT[start:end] for start, end in word_spans(TEXT)]
        edges = [edge for word in words for edge in (word.start_s, word.end_s)]
        assert edges == sorted(edges)
        assert edges[-1] <= sum(len(chunk.samples) for chunk in chunks) / engine.sample_rate + 1e-6

    def test_same_seed_gives_the_same_audio(self, engine: Engine, prompt: bytes, chunks: list[Chunk]) -> None:
        first = np.concatenate([chunk.samples for chunk in chunks])
        np.testing.assert_allclose(self.speak(engine, self.task(engine, prompt)), first, atol=1e-4)

    def test_closed_utterance_does_not_affect_the_next(self, engine: Engine, prompt: bytes) -> None:
        started = engine.synthesize(self.task(engine, prompt))
        assert list(islice(started, 1))
        started.close()
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))

    def test_one_character_is_spoken(self, engine: Engine, prompt: bytes) -> None:
        assert len(self.speak(engine, self.task(engine, prompt, text="A"))) > 0

    def test_forgotten_voice_is_not_kept_in_memory(self, engine: Engine, prompt: bytes) -> None:
        if not isinstance(engine, CachingEngine):
            pytest.skip("this engine keeps no voices")
        engine.forget_voices()  # or an equal prompt of another test stays in place of this one
        engine.forget_voices()  # an equal prompt of an earlier test
        own = bytes(bytearray(prompt))
        n_before = sys.getrefcount(own)
        self.speak(engine, self.task(engine, own, text=SHORT_TEXT))
        assert sys.getrefcount(own) > n_before
        engine.forget_voices()
        gc.collect()
        assert sys.getrefcount(own) == n_before
        assert len(self.speak(engine, self.task(engine, own, text=SHORT_TEXT)))

    def test_closed_engine_speaks_again(self, engine: Engine, prompt: bytes) -> None:
        engine.close()
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT))) > 0
