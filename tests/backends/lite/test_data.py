"""The data files: hashes, damage, and contents from generated voices only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from afterwords.backends.lite import data
from afterwords.backends.lite.data import read_data
from afterwords.backends.lite.search import voice_table
from afterwords.backends.lite.styles import LIMIT, SIZE, style_space
from afterwords.errors import ModelError

FOLDER = Path(data.__file__).parent
HASHES: dict[str, str] = json.loads((FOLDER / "hashes.json").read_text("utf-8"))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the data files to a folder where a test may damage them."""
    for path in FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    # Patched, because the installed files must stay whole.
    monkeypatch.setattr(data, "files", lambda _: tmp_path)
    return tmp_path


def test_data_files_and_hash_list_agree() -> None:
    shipped = {path.name for path in FOLDER.iterdir() if path.suffix in {".json", ".xz", ".npz", ".bin"}}
    assert shipped - {"hashes.json"} == set(HASHES)


@pytest.mark.parametrize("name", sorted(HASHES))
def test_data_file_has_its_listed_hash(name: str) -> None:
    assert hashlib.sha256(read_data(name)).hexdigest() == HASHES[name]


@pytest.mark.parametrize("name", sorted(HASHES))
def test_changed_byte_is_detected(name: str, copied: Path) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 3] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256") as caught:
        read_data(name)
    assert "pip install" in caught.value.hint


def test_missing_file_error_names_it(copied: Path) -> None:
    (copied / "table.npz").unlink()
    with pytest.raises(ModelError, match=r"table\.npz is missing"):
        read_data("table.npz")


def test_unlisted_file_is_not_read(copied: Path) -> None:
    (copied / "more.bin").write_bytes(b"more")
    with pytest.raises(ModelError):
        read_data("more.bin")


def test_table_starts_with_the_stock_voices() -> None:
    table, space = voice_table(), style_space()
    np.testing.assert_allclose(table.points[:54], space.coordinates, atol=2e-3)  # kept as half floats
    assert np.abs(table.points[54:]).max() <= LIMIT + 2e-3


def test_table_has_measurements_of_each_voice() -> None:
    table = voice_table()
    count = len(table.points)
    assert count >= 500
    assert table.points.shape == (count, SIZE)
    assert table.embeddings.shape == (count, 256)
    np.testing.assert_allclose(np.linalg.norm(table.embeddings, axis=1), 1, atol=5e-3)
    assert table.log_pitch.shape == table.quality.shape == (count,)
    assert ((np.exp(table.log_pitch) > 50) & (np.exp(table.log_pitch) < 500)).all()
    assert ((table.quality > 1) & (table.quality < 5)).all()
