"""Reading tensors: each once, from one file or several, and errors that name the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from afterwords.backends.qwen3.config import read_config
from afterwords.backends.qwen3.torch.talker import Talker
from afterwords.backends.qwen3.torch.weights import Weights
from afterwords.errors import ModelError

HEAD = "talker.codec_head.weight"
Tensors = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]


def open_weights(source: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return Weights.open(source, device="cpu", dtype=dtype)


def load_talker(folder: Path) -> Talker:
    with open_weights(folder) as weights:
        return Talker(weights, read_config(folder), max_positions=64)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a writable copy."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def alter(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensor_is_taken_once_with_its_dtype(checkpoint: Path) -> None:
    with open_weights(checkpoint, torch.bfloat16) as weights:
        assert weights.has(HEAD)
        assert weights.take(HEAD, (1088, 32)).dtype == torch.bfloat16
        assert not weights.has(HEAD)
        with pytest.raises(ModelError, match=f"lacks the tensor {HEAD}"):
            weights.take(HEAD, (1088, 32))


def test_dtype_can_be_overridden(checkpoint: Path) -> None:
    with open_weights(checkpoint, torch.bfloat16) as weights:
        assert weights.take(HEAD, (1088, 32), dtype=torch.float32).dtype == torch.float32


def test_join_concatenates_tensors(checkpoint: Path) -> None:
    names = [f"talker.model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    shapes = [(64, 32), (32, 32), (32, 32)]
    stored = load_file(checkpoint / "model.safetensors")
    with open_weights(checkpoint) as weights:
        joined = weights.join(list(zip(names, shapes, strict=True)))
    assert np.array_equal(joined.numpy(), np.concatenate([stored[name] for name in names]))


def test_shards_equal_one_file(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{place % 2 + 1:05}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), "utf-8")
    assert load_talker(folder).embeddings.codes.shape == (1088 + 15 * 64, 32)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"00002-of-00002\.safetensors is missing"):
        load_talker(folder)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("{}", "is not an index of weight files"),
        ("[", "is not an index of weight files"),
        ('{"weight_map": {"x": "../model.safetensors"}}', "is not an index of weight files"),
        ('{"weight_map": {"x": "pytorch_model.bin"}}', "is a pickle"),
    ],
)
def test_index_outside_its_folder_is_refused(tmp_path: Path, index: str, why: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index, "utf-8")
    with pytest.raises(ModelError, match=why):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ModelError, match=rf"{name} is a pickle, which can run arbitrary code"):
            open_weights(source)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        open_weights(tmp_path)
    with pytest.raises(ModelError, match=r"other\.safetensors is missing"):
        open_weights(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"model\.gguf is not a \.safetensors file"):
        open_weights(tmp_path / "model.gguf")


@pytest.mark.parametrize("n_bytes", [0, 5, 1_000, -1])
def test_truncated_file_is_refused(folder: Path, n_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ModelError, match="is damaged or truncated"):
        open_weights(folder)


def test_other_file_type_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x93NUMPY" * 1_000)
    with pytest.raises(ModelError, match="is damaged or truncated"):
        open_weights(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop(HEAD), f"lacks the tensor {HEAD}"),
        (
            lambda tensors: tensors.update({HEAD: np.zeros((1088, 16), np.float32)}),
            r"has talker\.codec_head\.weight of shape \(1088, 16\), not \(1088, 32\)",
        ),
        (
            lambda tensors: tensors.update(
                {"talker.lora.0": np.zeros(1, np.float32), "talker.lora.1": np.zeros(1, np.float32)}
            ),
            r"has the tensor talker\.lora\.0 and 1 more, which this version does not support",
        ),
    ],
)
def test_unknown_tensor_is_named(folder: Path, change: Callable[[Tensors], object], why: str) -> None:
    alter(folder, change)
    with pytest.raises(ModelError, match=why):
        load_talker(folder)


def test_skip_ignores_a_prefix(checkpoint: Path) -> None:
    with open_weights(checkpoint) as weights:
        Talker(weights, read_config(checkpoint), max_positions=64)
        with pytest.raises(ModelError, match=r"has the tensor speaker_encoder\."):
            weights.check_all_taken()
        weights.skip("speaker_encoder.")
        weights.check_all_taken()
