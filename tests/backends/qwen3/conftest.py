"""What the tests of Qwen3-TTS share: a tiny checkpoint, and what the reference package made with it."""

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
    """A whole checkpoint of about 1 MB, with random weights. Not to be written to."""
    return make_checkpoint(tmp_path_factory.mktemp("qwen3") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TorchModel:
    """It, loaded."""
    return TorchModel(checkpoint, name="tiny", device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small, threads cost more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
