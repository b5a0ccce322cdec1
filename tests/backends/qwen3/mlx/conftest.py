"""Fixtures of the MLX checks: a tiny checkpoint in the layout of mlx-audio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.qwen3.contract import linked_models


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete read-only checkpoint of about 1 MB, with random weights."""
    from scripts.make_mlx_tiny import make_mlx_checkpoint

    return make_mlx_checkpoint(tmp_path_factory.mktemp("mlx") / "tiny")


@pytest.fixture(scope="session")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of models, set as AFTERWORDS_MODELS."""
    with linked_models(tmp_path_factory.mktemp("models"), checkpoint, "qwen3-1.7b-bf16", "qwen3-0.6b-8bit") as folder:
        yield folder
