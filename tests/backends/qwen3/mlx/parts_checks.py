"""Loading checkpoints in MLX: either layout, quantized or not, and errors that name the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from afterwords.backends.base import Reference
from afterwords.backends.qwen3.mlx.model import MlxModel
from afterwords.backends.qwen3.mlx.thread import device_thread
from afterwords.backends.qwen3.mlx.weights import load_modules
from afterwords.errors import ModelError
from scripts.make_mlx_tiny import make_mlx_checkpoint
from scripts.make_qwen3_sound_goldens import clip
from scripts.make_qwen3_tiny import make_checkpoint


def tensors(folder: Path) -> dict[str, mx.array]:
    parts = zip(("network", "codec"), device_thread().run(lambda: load_modules(folder)), strict=True)
    return {f"{kind}.{name}": value for kind, part in parts for name, value in tree_of(part)}


def tree_of(module: Any) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(module.parameters())
    return list(flat)


def test_both_layouts_give_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    turned, published = tensors(checkpoint), tensors(make_checkpoint(tmp_path / "torch"))
    assert turned.keys() == published.keys()
    assert all(mx.array_equal(turned[name], published[name]) for name in turned)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_give_speech(tmp_path: Path, bits: int) -> None:
    folder = make_mlx_checkpoint(tmp_path / "tiny", bits=bits)
    assert sum(name.endswith(".scales") for name in tensors(folder)) == 18
    model = MlxModel(folder, name="tiny", device_thread=device_thread())
    prompt = model.encode_reference(Reference(clip("short"), 24_000, "hello"))
    assert np.isfinite(prompt.speaker).all()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights: Any = mx.load(str(path))
    mx.eval(weights)
    del weights["talker.codec_head.weight"]
    mx.save_safetensors(str(path), weights)


def with_another_shape(folder: Path) -> None:
    path = folder / "speech_tokenizer" / "model.safetensors"
    weights: Any = mx.load(str(path))
    mx.eval(weights)
    weights["decoder.pre_conv.conv.bias"] = mx.zeros((3,))
    mx.save_safetensors(str(path), weights)


def without_a_tokenizer(folder: Path) -> None:
    (folder / "merges.txt").unlink()


def of_another_kind(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"tts_model_type": "custom_voice"}), "utf-8")


def with_a_codec_of_fewer_codes(folder: Path) -> None:
    path = folder / "speech_tokenizer" / "config.json"
    described = json.loads(path.read_text("utf-8"))
    described["decoder_config"]["codebook_size"] = 32
    path.write_text(json.dumps(described), "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_a_codec_of_fewer_codes, "16 codebooks of 32 codes"),
        (cut, r"model\.safetensors"),
        (without_a_tensor, r"no weights for talker\.codec_head\.weight"),
        (with_another_shape, r"\(3,\) for decoder\.pre_conv\.conv\.bias"),
        (without_a_tokenizer, r"merges\.txt"),
        (of_another_kind, "custom_voice"),
    ],
)
def test_damaged_checkpoint_is_named(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message):
        MlxModel(folder, name="tiny", device_thread=device_thread())
