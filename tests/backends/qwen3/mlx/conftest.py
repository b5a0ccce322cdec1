"""What the checks of the MLX engine share: a tiny checkpoint in the layout that mlx-audio publishes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.qwen3.contract import shelved


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of about 1 MB with random weights. Not to be written to."""
    from scripts.make_mlx_tiny import make_mlx_checkpoint

    return make_mlx_checkpoint(tmp_path_factory.mktemp("mlx") / "tiny")


@pytest.fixture(scope="session")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of models, as AFTERWORDS_MODELS names it."""
    with shelved(tmp_path_factory.mktemp("models"), checkpoint, "qwen3-1.7b-bf16", "qwen3-0.6b-8bit") as folder:
        yield folder
