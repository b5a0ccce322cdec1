"""The decoder of the codec: equal to the reference package, in chunks and at once, and fit for CUDA graphs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afterwords.backends.qwen3.codec_config import read_codec_config
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder
from afterwords.backends.qwen3.torch.weights import Weights
from afterwords.errors import ModelError
from scripts.make_qwen3_sound_goldens import EVERY, codes
from tests.backends.qwen3.conftest import GOLDENS

N_FRAMES = 100
PIECES = (1, 2, 4, 8, 25)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> CodecDecoder:
    with Weights.open(folder / "speech_tokenizer", device="cpu", dtype=dtype) as weights:
        return CodecDecoder(read_codec_config(folder / "speech_tokenizer"), weights)


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> CodecDecoder:
    return load(checkpoint)


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> CodecDecoder:
    """Return a decoder in float64, in which rounding hides no difference."""
    return load(checkpoint, torch.float64)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Return two rows of frames."""
    return torch.from_numpy(codes("long"))[:, :N_FRAMES]


@pytest.fixture(scope="module")
def whole(exact: CodecDecoder, frames: Tensor) -> Tensor:
    """Return the audio of both rows, each decoded alone and at once."""
    return torch.cat([exact.step(row[None], exact.new_state(1)) for row in frames])


def gap(output: Tensor, expected: Tensor) -> float:
    assert output.shape == expected.shape
    return float((output - expected).abs().max())


@pytest.mark.parametrize("name", ["short", "long"])
def test_audio_equals_the_reference_package(decoder: CodecDecoder, name: str) -> None:
    with np.load(GOLDENS / "sound.npz") as goldens:
        expected = torch.from_numpy(goldens[f"sound_{name}"] / 32_767)
    output = decoder.decode(torch.from_numpy(codes(name)))[:, :: EVERY[name]]
    assert gap(output, expected) < 1e-4
    assert expected.std() > 0.1  # or silence would pass


@pytest.mark.parametrize("size", PIECES)
def test_audio_in_chunks_equals_audio_at_once(exact: CodecDecoder, frames: Tensor, whole: Tensor, size: int) -> None:
    state = exact.new_state(2)
    output = torch.cat([exact.step(piece, state) for piece in frames.split(size, dim=1)], dim=1)
    assert gap(output, whole) < 1e-12


def test_chunks_may_grow(decoder: CodecDecoder, frames: Tensor, whole: Tensor) -> None:
    state = decoder.new_state(2)
    output = torch.cat([decoder.step(piece, state) for piece in frames.split([1, 2, 4, 8, 25, 25, 35], dim=1)], dim=1)
    assert gap(output.double(), whole) < 1e-4


def test_rows_may_be_at_different_positions(exact: CodecDecoder, frames: Tensor, whole: Tensor) -> None:
    """Give each row 0 to 8 valid frames per step; the codes after them are random."""
    state, taken = exact.new_state(2), [0, 0]
    output: list[list[Tensor]] = [[], []]
    generator = np.random.Generator(np.random.PCG64(1))
    while max(taken) < N_FRAMES - 8:
        counts = generator.integers(0, 9, 2).tolist()
        piece = torch.randint(0, 64, (2, 8, 16))
        for row, count in enumerate(counts):
            piece[row, :count] = frames[row, taken[row] : taken[row] + count]
        sound = exact.step(piece, state, torch.tensor(counts))
        for row, count in enumerate(counts):
            output[row].append(sound[row, : count * exact.samples_per_frame])
            taken[row] += count
    for row in (0, 1):
        got = torch.cat(output[row])
        assert gap(got, whole[row, : len(got)]) < 1e-12


@pytest.mark.parametrize("n_before", [0, 1, 5, 72, 90])
def test_prefilled_row_continues_its_reference(
    exact: CodecDecoder, frames: Tensor, whole: Tensor, n_before: int
) -> None:
    state = exact.prefill_codec(frames[0, :n_before])
    output = exact.decode(frames[:1, n_before:], state)
    assert gap(output[0], whole[0, n_before * exact.samples_per_frame :]) < 1e-12


def test_row_can_change_its_voice(exact: CodecDecoder, frames: Tensor, whole: Tensor) -> None:
    state, codec_state = exact.new_state(2), exact.prefill_codec(frames[1, :40])
    exact.step(frames[:, :7], state)
    state.copy_row(0, codec_state)
    state.clear_row(1)
    output = exact.step(torch.stack([frames[1, 40:48], frames[0, :8]]), state)
    start = 40 * exact.samples_per_frame
    assert gap(output[0], whole[1, start : start + output.shape[1]]) < 1e-12
    assert gap(output[1], whole[0, : output.shape[1]]) < 1e-12
    assert int(codec_state.window.n_seen) == 40  # a voice's state serves the next utterance too


def test_batch_equals_its_rows_alone(decoder: CodecDecoder, frames: Tensor) -> None:
    together = decoder.decode(frames)
    alone = torch.cat([decoder.decode(row[None]) for row in frames])
    assert gap(together, alone) < 1e-5


def test_state_works_outside_inference_mode(decoder: CodecDecoder, frames: Tensor) -> None:
    with torch.inference_mode():
        inside = decoder.prefill_codec(frames[0, :3])
    state = decoder.new_state(1)
    state.copy_row(0, inside)
    assert torch.equal(decoder.step(frames[:1, 3:5], state), decoder.step(frames[:1, 3:5], inside))


def test_padding_does_not_change_earlier_audio(decoder: CodecDecoder, frames: Tensor) -> None:
    short = frames[1:, :10]
    filled = torch.cat([short, torch.full_like(short, 7)], dim=1)
    together = decoder.decode(torch.cat([frames[:1, :20], filled]))
    assert gap(together[1:, : 10 * decoder.samples_per_frame], decoder.decode(short)) < 1e-5


def test_codes_out_of_range_are_clamped(decoder: CodecDecoder) -> None:
    assert decoder.decode(torch.tensor([[[2150] * 16], [[-1] * 16]])).isfinite().all()


def test_too_large_n_frames_is_clamped(decoder: CodecDecoder, frames: Tensor) -> None:
    one, other = decoder.new_state(2), decoder.new_state(2)
    decoder.step(frames[:, :3], one, torch.tensor([9, -1]))
    decoder.step(frames[:, :3], other, torch.tensor([3, 0]))
    assert torch.equal(decoder.step(frames[:, 3:5], one), decoder.step(frames[:, 3:5], other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(checkpoint: Path, whole: Tensor, frames: Tensor, dtype: torch.dtype) -> None:
    output = load(checkpoint, dtype).decode(frames)
    assert output.dtype == dtype
    assert float((output.double() - whole).square().mean().sqrt() / whole.square().mean().sqrt()) < 0.05


class Operations(TorchDispatchMode):
    """Records every operation with its shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((str(func), [arg.shape for arg in args if isinstance(arg, Tensor)]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_ragged", [False, True])
def test_steps_have_the_same_operations(decoder: CodecDecoder, frames: Tensor, is_ragged: bool) -> None:
    state, seen = decoder.new_state(2), []
    places = [tensor.data_ptr() for tensor in (*state.pasts, state.window.keys, state.window.n_seen)]
    for step in range(3):
        counts = torch.tensor([step, 4]) if is_ragged else None
        with Operations() as operations:
            decoder.step(frames[:, 4 * step : 4 * step + 4], state, counts)
        seen.append(operations.seen)
    assert seen[0] == seen[1] == seen[2]
    assert not {name for name, _ in seen[0]} & {"aten._local_scalar_dense.default", "aten.nonzero.default"}
    assert places == [tensor.data_ptr() for tensor in (*state.pasts, state.window.keys, state.window.n_seen)]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("decoder_config", "sliding_window", None),
        ("decoder_config", "hidden_act", "relu"),
        ("decoder_config", "upsample_rates", [8, 5, 4]),
        ("decoder_config", "num_attention_heads", 3),
        ("encoder_config", "num_quantizers", 8),
        ("encoder_config", "use_causal_conv", False),
        ("encoder_config", "upsampling_ratios", [8, 6, 5, 2]),
    ],
)
def test_unsupported_config_names_its_field(
    checkpoint: Path, tmp_path: Path, section: str, field: str, value: object
) -> None:
    content = json.loads((checkpoint / "speech_tokenizer/config.json").read_text("utf-8"))
    content[section][field] = value
    (tmp_path / "config.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ModelError, match=r"config\.json can't be used: "):
        read_codec_config(tmp_path)


def test_missing_tensor_is_named(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint / "speech_tokenizer", tmp_path / "speech_tokenizer")
    file = tmp_path / "speech_tokenizer/model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.decoder.2.block.0.alpha"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"lacks the tensor decoder\.decoder\.2\.block\.0\.alpha"):
        load(tmp_path)
