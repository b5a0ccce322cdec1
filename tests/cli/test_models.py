"""`afterwords models`, as a process, against a hub on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from afterwords.errors import ModelFileError
from afterwords.weights.catalog import verify
from afterwords.weights.download import pull
from tests.cli.program import COMMAND, environment, run
from tests.weights.loopback_hub import COMMIT, REPOSITORY, WANTED, WEIGHTS, LoopbackHub

NAME = "qwen3-1.7b"


@pytest.fixture
def folder(hub: LoopbackHub) -> Path:
    """The model is here."""
    return pull(NAME)


def total_bytes(hub: LoopbackHub) -> int:
    return sum(len(hub.files[name]) for name in WANTED)


def test_model_is_pulled_found_verified_and_removed(hub: LoopbackHub, home: Path) -> None:
    folder = home / "models" / NAME

    pulled = run("models", "pull", NAME)
    assert (pulled.code, pulled.out) == (0, f"{folder}\n")
    assert pulled.err == f"✓ {NAME} is here. See what can speak: afterwords backends\n"
    assert run("models", "verify", NAME).err == f"✓ {NAME}: every file has its hash.\n"

    removed = run("models", "rm", NAME, "--yes", "--json")
    assert json.loads(removed.out) == {"removed": NAME, "path": str(folder)}
    assert not folder.exists()


def test_list_shows_what_is_whole_what_is_partial_and_what_is_absent(hub: LoopbackHub, home: Path) -> None:
    hub.spoils = 2
    with pytest.raises(ModelFileError):
        pull(NAME)

    listed = run("models", "list")
    head, partial, absent, *mlx = listed.out.splitlines()
    assert head.split() == ["name", "state", "size", "repository", "revision", "where"]
    assert partial.split()[:2] == [NAME, "partial"]
    assert COMMIT[:12] in partial
    assert absent.split() == ["qwen3-0.6b", "absent", "-", "Qwen/Qwen3-TTS-12Hz-0.6B-Base", "-", "-"]
    assert mlx[0].split()[3] == "mlx-community/Qwen3-TTS-12Hz-1.7B-Base-bf16"
    assert "was not pulled to the end" in listed.err

    pull(NAME)
    assert run("models").out.splitlines()[1].split()[:4] == [NAME, "whole", "450", "kB"]


def test_json_tells_all_that_is_known(hub: LoopbackHub, home: Path) -> None:
    facts = {
        "name": NAME,
        "repository": REPOSITORY,
        "state": "whole",
        "path": str(home / "models" / NAME),
        "revision": COMMIT,
        "size_bytes": total_bytes(hub),
        "present_bytes": total_bytes(hub),
        "is_pulled": True,
        "problem": None,
        "fix": None,
    }
    assert json.loads(run("models", "pull", NAME, "--json").out) == facts
    assert json.loads(run("models", "list", "--json").out)[0] == facts
    assert json.loads(run("models", "path", NAME, "--json").out) == {"name": NAME, "path": facts["path"]}


def test_ctrl_c_leaves_what_came_and_the_next_pull_goes_on(hub: LoopbackHub, home: Path) -> None:
    hub.stall_after = 100_000
    process = subprocess.Popen(
        [*COMMAND, "models", "pull", NAME], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert hub.stalled.wait(30)
    part = home / "models" / f".pulling-{NAME}"
    while not any(path.stat().st_size == 100_000 for path in part.glob(f"{WEIGHTS}.*.part")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    run("models", "path", NAME).refused(1, "ModelNotHereError")
    hub.go.set()

    pull(NAME)
    assert hub.ranges() == [None, "bytes=100000-"]
    verify(NAME)


def test_cut_file_is_named_with_its_fix(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"cut")
    assert f"{WEIGHTS} has 3 bytes where" in run("models", "path", NAME).refused(1, "ModelFileError")


def test_altered_file_is_mended(folder: Path) -> None:
    altered = (folder / WEIGHTS).read_bytes()[:-1] + b"?"
    (folder / WEIGHTS).write_bytes(altered)
    told = run("models", "verify", NAME).refused(1, "ModelFileError")
    assert told.endswith(f"Fix: afterwords models pull {NAME} --repair\n")
    assert run("models", "pull", NAME, "--repair").code == 0
    verify(NAME)


def test_removing_needs_a_yes_where_nobody_can_be_asked(folder: Path) -> None:
    run("models", "rm", NAME).refused(2, "UsageError")
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("settings", "code", "error"),
    [
        ({"HF_HUB_OFFLINE": "1"}, 1, "OfflineError"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 8, "HubUnreachableError"),
        ({"HF_ENDPOINT": "nowhere"}, 5, "InvalidInputError"),
        ({"AFTERWORDS_MODELS": "/dev/null/models"}, 5, "UnwritableOutputError"),
    ],
)
def test_what_stands_in_the_way_is_told(hub: LoopbackHub, settings: dict[str, str], code: int, error: str) -> None:
    run("models", "pull", NAME, env=settings).refused(code, error)


def test_model_that_nobody_knows_is_not_found() -> None:
    assert NAME in run("models", "pull", "gpt\x1b[2J").refused(4, "UnknownModelError")


def test_model_that_is_not_here_says_how_to_pull_it() -> None:
    assert f"afterwords models pull {NAME}" in run("models", "rm", NAME).refused(1, "ModelNotHereError")
