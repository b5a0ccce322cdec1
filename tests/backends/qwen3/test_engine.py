"""The engine on a tiny checkpoint: the contract of all engines, and what is its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from afterwords.backends.base import Available, Engine, Reference, Unavailable
from afterwords.backends.qwen3 import engine as engine_module
from afterwords.backends.qwen3 import reading
from afterwords.backends.qwen3.engine import Qwen3Large, Qwen3Small
from afterwords.errors import SynthesisError
from afterwords.models import SpeechTask
from afterwords.riff import Samples
from afterwords.testing import EngineContract
from afterwords.testing.engine_contract import TEXT

SEED = 3  # random weights end an utterance by chance; with this seed they do
TEXTS = ["Hello.", "The quick brown fox.", "It sleeps, for a while.", "In the sun."]


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of models, as AFTERWORDS_MODELS names it."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen3-1.7b", "qwen3-0.6b"):
        (folder / name).symlink_to(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERWORDS_MODELS", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def here(models: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # after `home`, which clears it
    monkeypatch.setenv("AFTERWORDS_MODELS", str(models))


class TestQwen3(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models: Path) -> Iterator[Engine]:
        assert (models / "qwen3-1.7b").is_dir()
        engine = Qwen3Large()
        yield engine
        engine.close()

    def task(self, engine: Engine, prompt: bytes, *, text: str = TEXT, seed: int | None = SEED) -> SpeechTask:
        return super().task(engine, prompt, text=text, seed=seed)

    def test_a_voice_without_a_transcript_speaks_by_its_embedding_alone(self, engine: Engine) -> None:
        reference = Reference(np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32), 16_000)
        prompt = engine.prepare(reference)
        assert "alone" in str(engine.describe(prompt)["speaks"])
        tasks = [self.task(engine, prompt, text="In the sun.", seed=seed) for seed in range(5)]
        assert any(len(_spoken(engine, task)) for task in tasks)  # random weights don't always find an end

    def test_a_prompt_of_another_engine_is_refused(self, engine: Engine, prompt: bytes) -> None:
        with pytest.raises(SynthesisError, match="not a prompt for this model"):
            self.speak(engine, self.task(engine, prompt[:-1] + bytes([prompt[-1] ^ 1])))
        with pytest.raises(SynthesisError, match="its model is"):
            list(Qwen3Small().synthesize(self.task(engine, prompt)))

    def test_many_speak_at_once_as_each_does_alone(self, engine: Engine, prompt: bytes) -> None:
        tasks = [self.task(engine, prompt, text=text, seed=seed) for text in TEXTS for seed in (3, 5)]
        alone = [_spoken(engine, task) for task in tasks]
        together: list[Samples | None] = [None] * len(tasks)

        def speak(place: int) -> None:
            together[place] = _spoken(engine, tasks[place])

        threads = [threading.Thread(target=speak, args=(place,)) for place in range(len(tasks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, many in zip(alone, together, strict=True):
            assert many is not None
            np.testing.assert_allclose(one, many, atol=1e-4)

    def test_the_first_chunk_is_one_frame_and_later_ones_are_longer(self, engine: Engine, prompt: bytes) -> None:
        chunks = [len(chunk.samples) // 1920 for chunk in engine.synthesize(self.task(engine, prompt))]
        assert chunks[0] == 1
        assert max(chunks) == 8

    def test_speech_that_does_not_end_is_no_speech(
        self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "FRAMES_PER_TOKEN", 0)  # the ceiling, where random weights reach it
        monkeypatch.setattr(reading, "FRAMES_MORE", 5)
        with pytest.raises(SynthesisError, match="did not come to its end"):
            self.speak(engine, self.task(engine, prompt))


def _spoken(engine: Engine, task: SpeechTask) -> Samples:
    try:
        return np.concatenate([chunk.samples for chunk in engine.synthesize(task)])
    except SynthesisError:  # it ran on: alone and in company alike
        return np.zeros(0, np.float32)


def test_without_its_weights_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))
    state = Qwen3Small().availability()
    assert isinstance(state, Unavailable)
    assert "afterwords models pull qwen3-0.6b" in state.fix


def test_on_a_cpu_it_says_that_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_has_gpu", lambda: False)  # whatever machine this is
    state = Qwen3Large().availability()
    assert isinstance(state, Available)
    assert state.is_slow
