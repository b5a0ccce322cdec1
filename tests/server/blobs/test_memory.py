"""Tests of blobs in memory, and of storage URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterwords.errors import InvalidOptionError
from afterwords.server.blobs import open_blobs
from afterwords.server.blobs.bucket import Bucket
from afterwords.server.blobs.folder import Folder
from afterwords.server.ports import Blobs
from tests.contracts.blobs_contract import BlobsContract
from tests.contracts.ownership_contract import OwnershipContract


class TestMemory(BlobsContract, OwnershipContract):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return open_blobs("memory://")


def test_memory_storages_are_separate() -> None:
    assert open_blobs("memory://") is not open_blobs("memory://")


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_path_and_file_url_open_a_folder(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "a folder" / "audio"
    assert isinstance(open_blobs(form.format(folder)), Folder)
    assert folder.is_dir()


def test_folder_url_may_be_escaped(tmp_path: Path) -> None:
    open_blobs(f"file://{tmp_path}/a%20folder")
    assert (tmp_path / "a folder").is_dir()


def test_relative_path_opens_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_blobs("audio")
    assert (tmp_path / "audio").is_dir()


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/pre/fix?endpoint=https://a.example&region=auto"])
def test_s3_url_opens_a_bucket(url: str) -> None:
    assert isinstance(open_blobs(url), Bucket)


@pytest.mark.parametrize(
    "url",
    [
        *[
            "ftp://a/b",
            "s3://",
            "s3:///prefix",
            "s3://me:secret@bucket",
            "s3://bucket?endpoint=secret",
            "s3://bucket?secret=1",
        ],
        *["file://host/path", "file://", "file:///a?secret", "memory://secret", "https://secret"],
        "",
    ],
)
def test_invalid_url_is_rejected_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidOptionError, match="AFTERWORDS_STORAGE_URL") as refused:
        open_blobs(url)
    assert "secret" not in str(refused.value)
