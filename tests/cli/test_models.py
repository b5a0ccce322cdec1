"""`afterwords models`, against a hub on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from afterwords.errors import ModelError
from afterwords.weights.catalog import verify
from afterwords.weights.download import pull
from tests.cli.program import COMMAND, environment, run
from tests.weights.loopback_hub import COMMIT, REPOSITORY, WANTED, WEIGHTS, LoopbackHub, add_pocket, safetensors

NAME = "qwen3-1.7b"


@pytest.fixture
def folder(hub: LoopbackHub) -> Path:
    return pull(NAME)


def total_bytes(hub: LoopbackHub) -> int:
    return sum(len(hub.files[name]) for name in WANTED)


def test_model_is_pulled_verified_and_removed(hub: LoopbackHub, home: Path) -> None:
    folder = home / "models" / NAME

    pulled = run("models", "pull", NAME)
    assert (pulled.code, pulled.out) == (0, f"{folder}\n")
    assert pulled.err == f"✓ {NAME} is ready. List the backends: afterwords backends\n"
    assert run("models", "verify", NAME).err == f"✓ {NAME}: all hashes match.\n"

    removed = run("models", "rm", NAME, "--yes", "--json")
    assert json.loads(removed.out) == {"removed": NAME, "path": str(folder)}
    assert not folder.exists()


def test_list_shows_the_state_of_each_model(hub: LoopbackHub, home: Path) -> None:
    hub.spoils = 2
    with pytest.raises(ModelError):
        pull(NAME)

    listed = run("models", "list")
    head, partial, absent, *mlx = listed.out.splitlines()
    assert head.split() == ["name", "state", "size", "repository", "revision", "where"]
    assert partial.split()[:2] == [NAME, "partial"]
    assert COMMIT[:12] in partial
    assert absent.split() == ["qwen3-0.6b", "absent", "-", "Qwen/Qwen3-TTS-12Hz-0.6B-Base", "-", "-"]
    assert mlx[0].split()[3] == "mlx-community/Qwen3-TTS-12Hz-1.7B-Base-bf16"
    assert "is not completely downloaded" in listed.err

    pull(NAME)
    assert run("models").out.splitlines()[1].split()[:4] == [NAME, "whole", "450", "kB"]


def test_json_has_every_fact(hub: LoopbackHub, home: Path) -> None:
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


def test_terms_are_shown_before_the_first_pull(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    add_pocket(hub, {"model.safetensors": safetensors(5_000)}, b"{}")
    refused = run("models", "pull", "pocket")
    terms = refused.err.partition("hub_refused")[0]
    for said in ("CC-BY-4.0", "credit Kyutai", "prohibits cloning a voice without", "https://huggingface.co/kyutai"):
        assert said in " ".join(terms.split())
    assert (refused.code, refused.out) == (3, "")
    assert "hub_refused" in refused.err

    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert run("models", "pull", "pocket").code == 0
    assert run("models", "pull", "pocket").err.startswith("✓ pocket is ready.")


def test_interrupted_pull_is_resumed(hub: LoopbackHub, home: Path) -> None:
    hub.files[WEIGHTS] = safetensors(25_000_000)
    hub.stall_after = 15_000_000  # the hub's client writes every 10 MiB
    process = subprocess.Popen(
        [*COMMAND, "models", "pull", NAME], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert hub.stalled.wait(60)
    partial = home / "models" / f".pulling-{NAME}"
    while not any(path.stat().st_size == 10 << 20 for path in partial.glob(f"{WEIGHTS}.*.part")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    run("models", "path", NAME).expect_error(1, "model_not_here")
    hub.stall_after = None
    hub.go.set()

    pull(NAME)
    assert hub.ranges() == [None, f"bytes={10 << 20}-"]
    verify(NAME)


def test_truncated_file_is_named(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"cut")
    assert f"{WEIGHTS} has 3 bytes instead of" in run("models", "path", NAME).expect_error(1, "model_file")


def test_altered_file_is_repaired(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"?")
    refusal = run("models", "verify", NAME).expect_error(1, "model_file")
    assert refusal.endswith(f"Fix: afterwords models pull {NAME} --repair\n")
    assert run("models", "pull", NAME, "--repair").code == 0
    verify(NAME)


def test_rm_without_a_terminal_needs_yes(folder: Path) -> None:
    run("models", "rm", NAME).expect_error(2, "usage")
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("settings", "code", "error"),
    [
        ({"HF_HUB_OFFLINE": "1"}, 1, "offline"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 8, "hub_unreachable"),
        ({"HF_ENDPOINT": "nowhere"}, 5, "invalid_input"),
        ({"AFTERWORDS_MODELS": "/dev/null/models"}, 5, "unwritable_output"),
    ],
)
def test_failed_pull_has_its_exit_code(hub: LoopbackHub, settings: dict[str, str], code: int, error: str) -> None:
    run("models", "pull", NAME, env=settings).expect_error(code, error)


def test_unknown_model_is_refused() -> None:
    assert NAME in run("models", "pull", "gpt\x1b[2J").expect_error(4, "unknown_model")


def test_absent_model_names_the_pull_command() -> None:
    assert f"afterwords models pull {NAME}" in run("models", "rm", NAME).expect_error(1, "model_not_here")
