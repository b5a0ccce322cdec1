"""The command that installs an extra, for each origin that pip records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterwords.errors import pip_install


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed copy of afterwords that hides the real one; returns where pip records its origin."""
    folder = tmp_path / "afterwords-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: afterwords\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "direct_url.json"


def test_copy_from_an_index_is_named_by_its_name(recorded: Path) -> None:
    assert pip_install("lite") == 'pip install "afterwords[lite]"'


@pytest.mark.parametrize(("editable", "option"), [(False, ""), (True, "--editable ")])
def test_copy_from_a_folder_is_named_by_the_folder(recorded: Path, tmp_path: Path, editable: bool, option: str) -> None:
    source = tmp_path / "my clone"
    source.mkdir()
    recorded.write_text(json.dumps({"url": source.as_uri(), "dir_info": {"editable": editable}}))

    assert pip_install("play") == f'pip install {option}"{source}[play]"'
    assert pip_install(options="--upgrade") == f'pip install --upgrade {option}"{source}"'


def test_folder_that_is_gone_is_not_named(recorded: Path, tmp_path: Path) -> None:
    recorded.write_text(json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}}))

    assert pip_install("play") == 'pip install ".[play]" in a clone of the repository of afterwords'


def test_copy_from_git_is_named_by_its_address(recorded: Path) -> None:
    url = "https://git.example.com/afterwords"
    recorded.write_text(json.dumps({"url": url, "vcs_info": {"vcs": "git", "commit_id": "0"}}))

    assert pip_install("cuda") == f'pip install "afterwords[cuda] @ git+{url}"'


def test_copy_from_a_wheel_is_named_by_the_wheel(recorded: Path) -> None:
    recorded.write_text(json.dumps({"url": "file:///a/afterwords-9-py3-none-any.whl", "archive_info": {}}))

    assert pip_install("mlx") == 'pip install "afterwords[mlx] @ file:///a/afterwords-9-py3-none-any.whl"'
