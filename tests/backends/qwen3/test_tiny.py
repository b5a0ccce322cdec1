"""The tiny checkpoint is small and reproducible."""

from __future__ import annotations

from pathlib import Path

from scripts.make_qwen3_tiny import make_checkpoint


def test_checkpoint_is_small_and_reproducible(checkpoint: Path, tmp_path: Path) -> None:
    again = make_checkpoint(tmp_path / "again")
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    assert all((again / file).read_bytes() == (checkpoint / file).read_bytes() for file in files)
    assert sum((again / file).stat().st_size for file in files) < 1_200_000
