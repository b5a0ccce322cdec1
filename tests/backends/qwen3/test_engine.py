"""The engine on a tiny checkpoint: the contract of all engines, and what is its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from afterwords.backends.base import Available, Engine, Reference, Unavailable
from afterwords.backends.qwen3 import engine as engine_module
from afterwords.backends.qwen3.config import Sampling
from afterwords.backends.qwen3.engine import Qwen3Large, Qwen3Small
from afterwords.backends.qwen3.loop import LOOP_FRAMES, Finish, Loop, Turn, goes_round
from afterwords.backends.qwen3.model import Model
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
        monkeypatch.setattr(engine_module, "FRAMES_PER_TOKEN", 0)  # the ceiling, where random weights reach it
        monkeypatch.setattr(engine_module, "FRAMES_MORE", 5)
        with pytest.raises(SynthesisError, match="did not come to its end"):
            self.speak(engine, self.task(engine, prompt))


def _spoken(engine: Engine, task: SpeechTask) -> Samples:
    try:
        return np.concatenate([chunk.samples for chunk in engine.synthesize(task)])
    except SynthesisError:  # it ran on: alone and in company alike
        return np.zeros(0, np.float32)


class TestLoop:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, checkpoint: Path) -> Model:
        return Model(checkpoint, name="tiny", device=torch.device("cpu"), dtype=torch.float32)

    @pytest.fixture
    def loop(self, model: Model) -> Iterator[Loop]:
        loop = Loop(model.talker, model.decoder, n_rows=2, n_positions=256)
        yield loop
        loop.close()

    def turn(self, model: Model, text: str = "abc", *, seed: int = SEED, max_frames: int = 60) -> Turn:
        speaker = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 32).astype(np.float32))
        prompt = model.prompts.of_speaker(text, speaker=speaker)
        return Turn(prompt, None, max_frames=max_frames, sampling=Sampling(seed=seed))

    def heard(self, loop: Loop, turn: Turn) -> tuple[Samples, Finish]:
        sound, parts = loop.sound_of(turn), []
        while True:
            try:
                parts.append(next(sound))
            except StopIteration as end:
                return np.concatenate([np.zeros(0, np.float32), *parts]), end.value

    def test_more_than_there_are_rows_wait_and_all_are_spoken(self, model: Model, loop: Loop) -> None:
        turns = [self.turn(model, seed=seed, max_frames=10 + seed) for seed in range(7)]
        for turn in turns:
            loop.hand_in(turn)
        for turn in turns:
            sound, finish = self.heard(loop, turn)
            assert finish in (Finish.STOP, Finish.LENGTH)
            assert len(sound) == 1920 * turn.n_decoded

    def test_a_turn_that_nobody_hears_any_more_frees_its_row(self, model: Model, loop: Loop) -> None:
        given_up = [self.turn(model, seed=seed, max_frames=200) for seed in range(2)]
        for turn in given_up:
            loop.hand_in(turn)
            sound = loop.sound_of(turn)
            next(sound)
            sound.close()
        after = self.turn(model, max_frames=5)
        loop.hand_in(after)
        assert len(self.heard(loop, after)[0]) > 0

    def test_a_prompt_that_no_row_holds_ends_its_turn_alone(self, model: Model, loop: Loop) -> None:
        long, short = self.turn(model, "a" * 400), self.turn(model, max_frames=5)
        loop.hand_in(long)
        loop.hand_in(short)
        with pytest.raises(ValueError, match="too long"):
            self.heard(loop, long)
        assert len(self.heard(loop, short)[0]) > 0

    def test_closing_ends_those_who_speak(self, model: Model) -> None:
        loop = Loop(model.talker, model.decoder, n_rows=1, n_positions=256)
        turns = [self.turn(model, max_frames=200) for _ in range(2)]
        for turn in turns:
            loop.hand_in(turn)
        loop.close()
        assert [self.heard(loop, turn)[1] for turn in turns] == [Finish.CANCELLED] * 2
        with pytest.raises(RuntimeError):
            loop.hand_in(turns[0])


@pytest.mark.parametrize(
    ("codes", "is_round"),
    [
        ([7] * LOOP_FRAMES, True),
        ([1, 2, 3] * LOOP_FRAMES, True),
        ([1, 2, 3] * 3, False),
        (list(range(LOOP_FRAMES)), False),
        ([*[7] * (LOOP_FRAMES - 1), 8], False),
    ],
)
def test_codes_that_go_round_are_told_from_speech(codes: list[int], is_round: bool) -> None:
    assert goes_round(deque(codes, maxlen=LOOP_FRAMES)) is is_round


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
