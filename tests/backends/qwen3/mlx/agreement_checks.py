"""MLX compared with torch on the same tiny weights: codes, greedy and sampled, and audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from afterwords.audio.wav import Samples
from afterwords.backends.base import Reference
from afterwords.backends.qwen3.config import Sampling
from afterwords.backends.qwen3.mlx.batch import MlxBatch
from afterwords.backends.qwen3.mlx.codec import CodecState
from afterwords.backends.qwen3.mlx.model import MlxModel
from afterwords.backends.qwen3.mlx.sampling import draw, noise
from afterwords.backends.qwen3.mlx.thread import device_thread
from afterwords.backends.qwen3.reference_prompt import ReferencePrompt
from afterwords.backends.qwen3.torch import sampling as torch_sampling
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.backends.qwen3.torch.talker import PrefillRow
from scripts.make_qwen3_sound_goldens import clip
from scripts.make_qwen3_tiny import make_checkpoint

TEXTS = ["Hello.", "The quick brown fox jumps over the lazy dog, then sleeps.", "a"]
N_FRAMES = 24
WINDOW = 72


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchModel]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = make_checkpoint(tmp_path_factory.mktemp("torch") / "tiny")
    yield TorchModel(folder, name="tiny", device=torch.device("cpu"), dtype=torch.float32)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mlx_model(checkpoint: Path) -> MlxModel:
    return MlxModel(checkpoint, name="tiny", device_thread=device_thread())


@pytest.fixture(scope="module")
def in_context(torch_model: TorchModel) -> ReferencePrompt:
    return torch_model.encode_reference(Reference(clip("odd"), 24_000, "hello world"))


def spoken_by_torch(model: TorchModel, voice: ReferencePrompt, samplings: list[Sampling]) -> list[list[list[int]]]:
    rows, placed = model.talker.new_rows(len(TEXTS), 512), model.to_device(voice)
    utterances = [
        PrefillRow(row, model.prompt(placed, text, "en"), N_FRAMES, sampling)
        for row, (text, sampling) in enumerate(zip(TEXTS, samplings, strict=True))
    ]
    model.talker.prefill(rows, utterances)
    for _ in range(N_FRAMES):
        model.talker.decode_frame(rows)
    return [rows.history[row, :n].tolist() for row, (n, _, _) in enumerate(rows.read_progress())]


def spoken_by_mlx(
    model: MlxModel, voice: ReferencePrompt, samplings: list[Sampling], texts: list[str]
) -> NDArray[np.int32]:
    scripts = [model.make_request(voice, text, "en", max_frames=N_FRAMES, seed=0).prompt for text in texts]

    def speak() -> NDArray[np.int32]:
        group = MlxBatch(model, scripts, samplings)
        for _ in range(N_FRAMES):
            group.decode_frame()
        codes, is_sane = group.read_codes()
        assert is_sane.all()
        return codes

    return device_thread().run(speak)


@pytest.mark.parametrize("is_alone", [True, False], ids=["embedding alone", "in context"])
@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "drawn"])
def test_codes_equal_torch(
    torch_model: TorchModel, mlx_model: MlxModel, in_context: ReferencePrompt, temperature: float, is_alone: bool
) -> None:
    voice = replace(in_context, codes=None, text_ids=()) if is_alone else in_context
    base = replace(torch_model.config.sampling, temperature=temperature, predictor_temperature=temperature)
    samplings = [replace(base, seed=seed) for seed in (5, 2**63 - 1, 7)]
    expected = spoken_by_torch(torch_model, voice, samplings)
    codes = spoken_by_mlx(mlx_model, voice, samplings, TEXTS)
    for row, frames in enumerate(expected):
        assert codes[row, : len(frames)].tolist() == frames
    alone = spoken_by_mlx(mlx_model, voice, samplings[1:2], TEXTS[1:2])
    assert alone[0, : len(expected[1])].tolist() == expected[1]
    assert max(len(frames) for frames in expected) > 20
    assert len({tuple(frames[0]) for frames in expected if frames}) > 1  # otherwise the text would have no effect


def test_random_numbers_equal_torch() -> None:
    counters = np.arange(16 * 1088).reshape(16, 1088)
    ours = noise(mx.array([3, 2**63 - 1], mx.uint64), mx.array(7, mx.uint64), mx.array(counters.astype(np.uint64)))
    theirs = torch_sampling.noise(torch.tensor([3, 2**63 - 1]), torch.tensor([7, 7]), torch.from_numpy(counters))
    np.testing.assert_allclose(np.array(ours), theirs.numpy(), atol=2e-6)


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (5, 1.0), (50, 0.6), (50, 0.05)])
def test_draw_respects_top_k(top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (1, 64)).astype(np.float32)
    order = np.argsort(-logits[0])[:top_k]
    share = np.exp(logits[0][order] / 0.9)
    share /= share.sum()
    allowed = set(order[np.cumsum(share) - share < top_p].tolist())
    drawn: set[object] = set()
    for _ in range(300):
        dice = mx.array(rng.gumbel(size=(1, 64)).astype(np.float32))
        drawn.add(np.array(draw(mx.array(logits), dice, temperature=0.9, top_k=top_k, top_p=top_p)).item())
    assert drawn <= allowed
    assert len(drawn) == len(allowed) or len(allowed) > 4  # rare ones may not have come


@pytest.mark.parametrize("name", ["short", "odd", "long"])
def test_encoded_reference_equals_torch(torch_model: TorchModel, mlx_model: MlxModel, name: str) -> None:
    reference = Reference(clip(name), 24_000, "hello world")
    ours, theirs = mlx_model.encode_reference(reference), torch_model.encode_reference(reference)
    assert ours.codes is not None
    assert theirs.codes is not None
    assert np.mean(ours.codes == theirs.codes) > 0.99  # one of thousands lies between two entries of a codebook
    assert (ours.text_ids, ours.recording) == (theirs.text_ids, theirs.recording)
    likeness = ours.speaker @ theirs.speaker / np.linalg.norm(ours.speaker) / np.linalg.norm(theirs.speaker)
    assert likeness > 0.9999


@pytest.fixture(scope="module")
def codes() -> NDArray[np.int32]:
    return np.random.default_rng(1).integers(0, 64, (1, 2 * WINDOW + 9, 16)).astype(np.int32)


def decoded(model: MlxModel, codes: NDArray[np.int32], state: CodecState, steps: list[int]) -> Samples:
    def decode() -> Samples:
        sound, begin, now = [], 0, state
        for n_frames in steps:
            output, now = model.decoder.step(codes[:, begin : begin + n_frames], now)
            sound.append(output[0])
            begin += n_frames
        return np.concatenate(sound)

    return device_thread().run(decode)


@pytest.mark.parametrize("is_primed", [True, False])
def test_streamed_audio_equals_torch_beyond_the_window(
    torch_model: TorchModel, mlx_model: MlxModel, in_context: ReferencePrompt, codes: NDArray[np.int32], is_primed: bool
) -> None:
    assert in_context.codes is not None
    output: Any = torch_model.decoder.new_state(1)
    state = CodecState()
    if is_primed:
        output = torch_model.to_device(in_context).codec_state
        state = device_thread().run(lambda: mlx_model.decoder.prefill_codec(in_context.codes))  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = torch_model.decoder.step(torch.from_numpy(codes).long(), output, torch.tensor([codes.shape[1]]))
    ours = decoded(mlx_model, codes, state, [1, 2, 4, 8, 8, 30, codes.shape[1] - 53])
    assert np.abs(expected[0].numpy()).max() > 0.1
    np.testing.assert_allclose(ours, expected[0].numpy(), atol=5e-5)


def test_prefilled_state_keeps_no_other_memory(mlx_model: MlxModel, codes: NDArray[np.int32]) -> None:
    def codec_state() -> tuple[int, int]:
        mlx_model.decoder.prefill_codec(codes[0].astype(np.uint16))  # what is made once is made
        before = mx.get_active_memory()
        state = mlx_model.decoder.prefill_codec(codes[0].astype(np.uint16))
        return mx.get_active_memory() - before, sum(array.nbytes for array in state.arrays())

    held, own = device_thread().run(codec_state)
    assert held <= own + 2**16


def test_state_rows_are_independent(mlx_model: MlxModel, codes: NDArray[np.int32]) -> None:
    def apart() -> tuple[Samples, Samples]:
        both = np.concatenate([codes, codes[:, ::-1]])
        _, state = mlx_model.decoder.step(both[:, :80], CodecState())
        together, _ = mlx_model.decoder.step(both[1:, 80:90], state.rows([1]))
        _, alone = mlx_model.decoder.step(both[1:, :80], CodecState())
        return together[0], mlx_model.decoder.step(both[1:, 80:90], alone)[0][0]

    together, alone = device_thread().run(apart)
    np.testing.assert_allclose(together, alone, atol=1e-5)
