"""Fixtures of the Qwen3-TTS tests: a tiny checkpoint and the model loaded from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch

from afterwords.backends.qwen3.torch.model import TorchModel
from scripts.make_qwen3_tiny import make_checkpoint

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete read-only checkpoint of about 1 MB, with random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("qwen3") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TorchModel:
    """Return the loaded checkpoint."""
    return TorchModel(checkpoint, name="tiny", device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, which is faster for tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
