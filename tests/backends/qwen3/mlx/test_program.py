"""The MLX engine end to end: clone, say and push as processes, and a server.

The weights are tiny and random, so speech ends by chance; the seeds here are such that it does.
"""

from __future__ import annotations

import io
import json
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlx.core", reason="mlx is not installed: pip install 'afterwords[mlx]'")

from scripts.make_qwen3_tiny import make_checkpoint
from tests.cli.program import environment, run, run_and_interrupt
from tests.e2e.served import READER, Served, serving, submit_text, wait_for_job

pytestmark = pytest.mark.soak  # the same commands are tested with the tiny checkpoint on torch

TEXT, SEED = "In the sun.", 3
WORDS = READER.parent / "reader.txt"
SERVER_DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def settings(models: Path) -> dict[str, str]:
    """Return the settings for MLX weights of the user's own."""
    return {"AFTERWORDS_MODELS": str(models), "AFTERWORDS_BACKENDS": "qwen3-0.6b", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def me(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the settings of a home folder with a cloned voice."""
    settings = settings | {"AFTERWORDS_HOME": str(tmp_path_factory.mktemp("me") / "home")}
    options = ("--name", "me", "--consent", "public-domain", "--text-file", WORDS)
    done = run("clone", READER, *options, env=environment(settings))
    assert done.code == 0, done.err
    assert "qwen3-0.6b" in done.err
    return settings


@pytest.fixture(scope="module")
def served(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server") / "home", settings) as served:
        yield served


def sound_of(wav: bytes) -> bytes:
    with wave.open(io.BytesIO(wav)) as sound:
        assert sound.getframerate() == 24_000
        return bytes(sound.readframes(sound.getnframes()))


def test_cloned_voice_is_reproducible_with_a_seed(me: dict[str, str]) -> None:
    one, two = (run("say", TEXT, "--seed", str(SEED), "-o", "-", env=environment(me)) for _ in range(2))
    assert (one.code, two.code) == (0, 0), one.err
    assert len(sound_of(one.stdout)) > 10_000
    assert sound_of(one.stdout) == sound_of(two.stdout)


def test_pushed_voice_works_on_a_server(me: dict[str, str], served: Served) -> None:
    login = {"AFTERWORDS_BASE_URL": served.url, "AFTERWORDS_API_KEY": served.key}
    pushed = run("push", "me", "--json", env=environment(me | login))
    assert pushed.code == 0, pushed.err
    voice_id = json.loads(pushed.stdout)["voice"]["voice_id"]
    with served.client() as client:
        jobs = [submit_text(client, voice_id, TEXT, seed=seed) for seed in (SEED, 4, 5)]
        ready = [job_id for job_id in jobs if wait_for_job(client, job_id)["status"] == "ready"]
        assert ready  # random weights don't always find an end
        assert all(len(sound_of(client.get(f"/v1/jobs/{job_id}/audio").content)) > 10_000 for job_id in ready)


def test_voice_of_another_engine_works(me: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_checkpoint(tmp_path / "models" / "qwen3-0.6b")
    home = tmp_path / "home"
    torch = me | {"AFTERWORDS_MODELS": str(tmp_path / "models"), "AFTERWORDS_HOME": str(home)}
    options = ("--name", "me", "--consent", "public-domain", "--text-file", WORDS)
    listed = json.loads(run("backends", "--json", env=environment(torch)).stdout)
    assert [backend["engine"] for backend in listed] == ["cuda"]
    assert run("clone", READER, *options, env=environment(torch)).code == 0
    here = me | {"AFTERWORDS_HOME": str(home)}
    assert [row["engine"] for row in json.loads(run("backends", "--json", env=environment(here)).stdout)] == ["mlx"]
    said = run("say", TEXT, "--seed", str(SEED), "-o", "-", env=environment(here))
    assert said.code in (0, 7), said.err  # random weights don't always find an end
    assert len(said.stdout) > 10_000
    assert len(list(home.rglob("prompts/*"))) == 2


def test_backends_lists_the_weights(settings: dict[str, str]) -> None:
    listed = run("backends", env=environment(settings | {"COLUMNS": "200"}))
    assert "MLX on the CPU, slowly; weights qwen3-0.6b-8bit" in listed.out


def test_unsupported_language_is_refused(me: dict[str, str]) -> None:
    run("say", TEXT, "--voice", "me", "--lang", "sv", env=environment(me)).expect_error(5, "unsupported_lang")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send there")
def test_ctrl_c_exits_cleanly(me: dict[str, str]) -> None:
    long = "The quick brown fox jumps over the lazy dog. " * 60
    command = ("say", long, "--seed", "1", "-o", "-", "--format", "pcm")
    code, stderr = run_and_interrupt(*command, env=environment(me))
    assert (code, stderr.splitlines()[-1]) == (130, b"Stopped.")
