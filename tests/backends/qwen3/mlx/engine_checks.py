"""The engine on a tiny checkpoint: the contract of all engines, and its own behavior."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from afterwords.backends.base import Available, Engine, Reference, Unavailable
from afterwords.backends.qwen3 import long_text
from afterwords.backends.qwen3.mlx import engine as engine_module
from afterwords.backends.qwen3.mlx import scheduler as scheduler_module
from afterwords.backends.qwen3.mlx.batch import MlxBatch
from afterwords.backends.qwen3.mlx.engine import MlxLarge, MlxSmall
from afterwords.backends.qwen3.mlx.thread import device_thread
from afterwords.backends.qwen3.request import DecodeRequest, FinishReason
from afterwords.errors import MissingExtraError, ModelError, SynthesisError, pip_install
from afterwords.testing.engine_contract import SHORT_TEXT
from tests.backends.qwen3.contract import SEED, Qwen3Contract, run_concurrently, spoken
from tests.error_codes import has_code


@pytest.fixture(autouse=True)
def here(models: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # after `home`, which clears it
    monkeypatch.setenv("AFTERWORDS_MODELS", str(models))


def read_audio(request: DecodeRequest[Any, Any]) -> NDArray[np.float32]:
    """Return the audio of a request; fail if it does not end."""
    parts = [np.zeros(0, np.float32)]
    while (sound := request.sound.get(timeout=120)) is not None:
        parts.append(sound)
    return np.concatenate(parts)


class TestMlx(Qwen3Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models: Path) -> Iterator[Engine]:
        assert (models / "qwen3-1.7b-bf16").is_dir()
        engine = MlxLarge()
        yield engine
        engine.close()

    @pytest.fixture
    def other(self) -> Engine:
        return MlxSmall()

    def test_unseeded_requests_of_a_voice_share_a_batch(
        self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []

        class Counted(MlxBatch):
            def __init__(self, model: object, scripts: list[object], samplings: list[object]) -> None:
                sizes.append(len(scripts))
                super().__init__(model, scripts, samplings)  # type: ignore[arg-type]

        monkeypatch.setattr(scheduler_module, "MlxBatch", Counted)  # the batch size is not visible from outside
        task = self.task(engine, prompt, text="One two three. " * 60, seed=None)
        speech = engine.synthesize(task)
        any(max(sizes) > 1 for _ in speech)  # the first segment may begin before the others are there
        speech.close()
        assert 1 < max(sizes) < engine_module.ROWS  # and a row is left for others
        sizes.clear()
        speech = engine.synthesize(self.task(engine, prompt, text="One two three. " * 60))
        next(speech, None)
        speech.close()
        assert sizes == [1]  # alone, and nothing ahead of it that would take turns with it

    def test_nan_ends_one_utterance_only(self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = MlxBatch._forward
        is_broken = True

        def broken(group: MlxBatch, columns: mx.array) -> tuple[mx.array, mx.array]:
            hidden, logits = forward(group, columns)
            return hidden, logits * mx.nan if is_broken else logits

        monkeypatch.setattr(MlxBatch, "_forward", broken)  # weights that overflow can't be had
        with pytest.raises(SynthesisError, match="NotFiniteError"):
            self.speak(engine, self.task(engine, prompt))
        is_broken = False
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))

    def test_nan_in_the_code_predictor_is_detected(self, prompt: bytes) -> None:
        engine = MlxLarge()
        norm = engine._ensure_loaded()[0].network.talker.code_predictor.model.norm
        norm.weight = device_thread().run(
            lambda: mx.full(norm.weight.shape, mx.nan)
        )  # weights that overflow can't be had
        with pytest.raises(SynthesisError, match="NotFiniteError"):
            self.speak(engine, self.task(engine, prompt))
        engine.close()

    def test_max_frames_is_limited_by_positions(self, engine: Engine, prompt: bytes) -> None:
        assert isinstance(engine, MlxLarge)
        model, scheduler = engine._ensure_loaded()
        request = model.make_request(model.load_voice(prompt), SHORT_TEXT, "en", max_frames=10**6, seed=SEED)
        scheduler.submit(request)
        assert request.max_frames == engine_module.POSITIONS - request.n_columns
        request.cancel()
        small = scheduler_module.MlxScheduler(model, device_thread(), n_rows=1, n_positions=8)
        request = model.make_request(model.load_voice(prompt), SHORT_TEXT, "en", max_frames=5, seed=SEED)
        small.submit(request)
        assert isinstance(request.error, ValueError)

    def test_languages_do_not_share_a_batch(self, engine: Engine, prompt: bytes) -> None:
        assert isinstance(engine, MlxLarge)
        model, _ = engine._ensure_loaded()
        english, german, other = (
            model.make_request(model.load_voice(prompt), text, lang, max_frames=5, seed=SEED)
            for text, lang in (("One.", "en"), ("Eins.", "de"), ("Two and three.", "en"))
        )
        assert scheduler_module.is_same_batch(english, other)
        assert not scheduler_module.is_same_batch(english, german)

    def test_device_error_ends_requests_not_the_scheduler(
        self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MlxBatch, "decode_frame", _out_of_memory)  # a device that is full can't be had
            with pytest.raises(SynthesisError, match="it raised MemoryError"):
                self.speak(engine, self.task(engine, prompt))
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))

    @pytest.mark.parametrize("where", ["prompt", "frame", "codec", "reader"])
    def test_failure_of_one_utterance_ends_it_alone(
        self, engine: Engine, prompt: bytes, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(engine, MlxLarge)
        model, scheduler = engine._ensure_loaded()
        voice = model.load_voice(prompt)

        def a_request(seed: int) -> DecodeRequest[Any, Any]:
            request: DecodeRequest[Any, Any] = model.make_request(voice, SHORT_TEXT, "en", max_frames=8, seed=seed)
            request.sampling, request.is_streaming = replace(request.sampling, min_frames=8), True
            return request

        def submit(*requests: DecodeRequest[Any, Any]) -> None:
            device_thread().run(
                lambda: [scheduler.submit(request) for request in requests]
            )  # a round comes behind it: they are one group

        def is_bad(group: MlxBatch) -> bool:
            return 1 in np.array(group._seeds)

        def broken_forward(group: MlxBatch, columns: mx.array) -> tuple[mx.array, mx.array]:
            output = forward(group, columns)  # the cache has gone on for all when one fails
            if is_bad(group) and (where == "prompt" or group.n_frames > 4):
                raise IndexError
            return output

        def broken_sound(group: MlxBatch, codes: NDArray[np.int32]) -> list[NDArray[np.float32]]:
            if is_bad(group) and group.n_frames > 4:
                raise IndexError
            return sound(group, codes)

        class Deaf:  # a reader that fails when the sound reaches it
            def put(self, output: Any) -> None:
                if output is not None and bad.n_decoded > 4:
                    raise IndexError
                queue.put(output)

        other, good, bad = a_request(2), a_request(2), a_request(1)
        submit(other)
        expected, queue = read_audio(other), bad.sound
        forward, sound = MlxBatch._forward, MlxBatch.decode_audio
        monkeypatch.setattr(MlxBatch, "_forward", broken_forward if where in ("prompt", "frame") else forward)
        monkeypatch.setattr(MlxBatch, "decode_audio", broken_sound if where == "codec" else sound)
        if where == "reader":
            bad.sound = Deaf()  # type: ignore[assignment]
        submit(bad, good)
        np.testing.assert_allclose(read_audio(good), expected, atol=1e-3)
        while queue.get(timeout=120) is not None:
            pass
        assert (bad.finish_reason, type(bad.error), good.error) == (FinishReason.CANCELLED, IndexError, None)

    def test_concurrent_loads_share_one_model(self, reference: Reference) -> None:
        engine = MlxLarge()
        prompts = run_concurrently([lambda: engine.prepare(reference)] * 4)
        assert len(set(map(len, prompts))) == 1
        loaded = engine._loaded
        assert len(self.speak(engine, self.task(engine, prompts[0], text=SHORT_TEXT)))
        assert engine._loaded is loaded
        engine.close()

    def test_memory_does_not_grow_with_requests(
        self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(long_text, "FRAMES_PER_TOKEN", 0)  # so that they don't take a minute
        monkeypatch.setattr(long_text, "FRAMES_MORE", 4)
        used = []
        for seed in range(6):
            spoken(engine, self.task(engine, prompt, text=SHORT_TEXT, seed=seed))
            used.append(mx.get_active_memory())
        assert max(used[2:]) <= max(used[:2]) + 2**18

    def test_idle_model_is_unloaded_and_loads_again(self, prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AFTERWORDS_IDLE_UNLOAD_S", "0.05")
        before = mx.get_active_memory()
        engine = MlxLarge()
        is_closed = threading.Event()
        close = engine._idle._close

        def noted() -> None:
            close()
            is_closed.set()

        monkeypatch.setattr(engine._idle, "_close", noted)  # to wait for it without looking again and again
        said = self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT))
        assert is_closed.wait(60)
        assert engine._loaded is None
        assert mx.get_active_memory() <= before + 2**18  # the network alone has 700 kB
        np.testing.assert_allclose(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)), said, atol=1e-4)
        engine.close()


def _out_of_memory(_: MlxBatch) -> None:
    raise MemoryError


def test_weights_are_chosen_by_memory_and_presence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))

    def describe(memory_gb: int) -> str:
        monkeypatch.setattr(engine_module, "memory_bytes", lambda: memory_gb * 10**9)  # of other machines
        state = MlxLarge().availability()
        return state.fix if isinstance(state, Unavailable) else state.note

    assert [describe(gb).split()[-1] for gb in (6, 7, 9, 12, 64)] == [
        f"qwen3-1.7b-{weights}" for weights in ("4bit", "4bit", "8bit", "bf16", "bf16")
    ]
    (tmp_path / "qwen3-1.7b-4bit").symlink_to(checkpoint)
    assert "weights qwen3-1.7b-4bit" in describe(64)
    (tmp_path / "qwen3-1.7b-bf16").symlink_to(checkpoint)
    assert "weights qwen3-1.7b-bf16" in describe(64)
    assert "weights qwen3-1.7b-4bit" in describe(8)
    monkeypatch.setenv("AFTERWORDS_MLX_WEIGHTS", "8bit")
    assert describe(64) == "afterwords models pull qwen3-1.7b-8bit"
    monkeypatch.delenv("AFTERWORDS_MLX_WEIGHTS")
    (tmp_path / "qwen3-0.6b").symlink_to(checkpoint)
    state = MlxSmall().availability()
    assert isinstance(state, Available)
    assert "weights qwen3-0.6b," in state.note  # as published for torch


def test_too_little_memory_names_what_fits(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.is_dir()
    monkeypatch.setattr(engine_module, "memory_bytes", lambda: 1_200_000_000)  # of another machine
    with pytest.raises(ModelError, match=r"needs 1\.0 GB", check=has_code("too_little_memory")) as caught:
        MlxLarge().load("qwen3-1.7b")
    assert "lite" in caught.value.hint
    monkeypatch.setattr(engine_module, "SPEAKING_BYTES", 4_000_000_000)
    monkeypatch.setattr(engine_module, "memory_bytes", lambda: 4_000_000_000)
    with pytest.raises(ModelError, check=has_code("too_little_memory")) as caught:
        MlxLarge().load("qwen3-1.7b")
    assert caught.value.hint == "use qwen3-0.6b-8bit or qwen3-0.6b-4bit."


@pytest.mark.parametrize("missing", ["mlx_audio", "safetensors", "tokenizers"])
def test_missing_package_names_the_pip_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None if name == missing else name)
    state = MlxLarge().availability()
    assert isinstance(state, Unavailable)
    assert (missing.replace("_", "-") in state.reason, state.fix == pip_install("mlx"), state.is_foreign) == (
        True,
        True,
        False,
    )
    with pytest.raises(MissingExtraError):
        MlxLarge().load("qwen3-1.7b")


def test_other_machines_are_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda _: None)  # as on most of them
    state = MlxLarge().availability()
    assert isinstance(state, Unavailable)
    assert state.is_foreign


def test_apple_silicon_is_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    state = MlxLarge().availability()
    assert isinstance(state, Available)
    assert state.is_slow
    monkeypatch.setattr(engine_module, "_is_apple_silicon", lambda: True)  # there is no such machine here
    state = MlxLarge().availability()
    assert isinstance(state, Available)
    assert not state.is_slow
