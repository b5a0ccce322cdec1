"""The tone engine: the contract of every engine, exact timing, and its fault words."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest

from afterwords.backends.base import Engine
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER, ToneEngine
from afterwords.errors import SynthesisError
from afterwords.models import SpeechTask
from afterwords.testing import EngineContract


def task(text: str) -> SpeechTask:
    return SpeechTask(text=text, lang="en", backend="tone", voice_id="test", prompt=b"")


class TestTone(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return ToneEngine()

    @pytest.mark.parametrize("text", ["a", "exactly twenty chars", "x" * 500])
    def test_duration_is_60_ms_per_character(self, text: str) -> None:
        samples = self.speak(ToneEngine(), task(text))
        assert len(samples) == round(SECONDS_PER_CHARACTER * len(text) * SAMPLE_RATE)

    def test_other_words_give_another_tone(self) -> None:
        one, other = (self.speak(ToneEngine(), task(text)) for text in ("this text", "that text"))
        assert np.abs(one - other).max() > 0.1


def test_fault_words_need_testing_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFTERWORDS_TESTING", raising=False)
    assert len(list(ToneEngine().synthesize(task("please fault-fail here")))) > 1


def test_fault_word_fails_after_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    chunks = ToneEngine().synthesize(task("please fault-fail here"))
    assert next(chunks).samples.any()
    with pytest.raises(SynthesisError, match="asked for a failure"):
        next(chunks)


@pytest.mark.parametrize(("word", "error"), [("fault-error", ValueError), ("fault-memory", MemoryError)])
def test_unexpected_faults_pass_unchanged(word: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    with pytest.raises(error):
        list(ToneEngine().synthesize(task(f"please {word} here")))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this platform")
def test_crash_word_kills_the_process() -> None:
    code = (
        "from afterwords.backends.tone import ToneEngine; from afterwords.models import SpeechTask;"
        "list(ToneEngine().synthesize(SpeechTask(text='now fault-crash', lang='en', backend='tone', voice_id='t',"
        "prompt=b'')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"AFTERWORDS_TESTING": "1"}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
