"""`pip_install` for each origin that pip records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterwords.errors import pip_install


@pytest.fixture
def origin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a fake afterwords over the real one; return the file where pip records its origin."""
    folder = tmp_path / "afterwords-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: afterwords\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "direct_url.json"


def test_index_install_uses_the_package_name(origin_file: Path) -> None:
    assert pip_install("lite") == 'pip install "afterwords[lite]"'


@pytest.mark.parametrize(("editable", "option"), [(False, ""), (True, "--editable ")])
def test_folder_install_uses_the_folder(origin_file: Path, tmp_path: Path, editable: bool, option: str) -> None:
    source = tmp_path / "my clone"
    source.mkdir()
    origin_file.write_text(json.dumps({"url": source.as_uri(), "dir_info": {"editable": editable}}))

    assert pip_install("play") == f'pip install {option}"{source}[play]"'
    assert pip_install(options="--upgrade") == f'pip install --upgrade {option}"{source}"'


def test_missing_folder_is_not_named(origin_file: Path, tmp_path: Path) -> None:
    origin_file.write_text(json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}}))

    assert pip_install("play") == 'pip install ".[play]" in a clone of the afterwords repository'


def test_git_install_uses_the_url(origin_file: Path) -> None:
    url = "https://git.example.com/afterwords"
    origin_file.write_text(json.dumps({"url": url, "vcs_info": {"vcs": "git", "commit_id": "0"}}))

    assert pip_install("cuda") == f'pip install "afterwords[cuda] @ git+{url}"'


def test_wheel_install_uses_the_wheel(origin_file: Path) -> None:
    origin_file.write_text(json.dumps({"url": "file:///a/afterwords-9-py3-none-any.whl", "archive_info": {}}))

    assert pip_install("mlx") == 'pip install "afterwords[mlx] @ file:///a/afterwords-9-py3-none-any.whl"'
