"""Qwen3-TTS end to end: `afterwords clone` and `say` as processes, and a server.

The weights are tiny and random, so speech ends by chance; the seeds here are such that it does.
"""

from __future__ import annotations

import io
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterwords.errors import pip_install
from tests.cli.program import environment, run, run_and_interrupt
from tests.e2e.served import READER, Served, register, serving, submit_text, wait_for_job

TEXT, SEED = "In the sun.", 3
WORDS = (READER.parent / "reader.txt").read_text("utf-8").strip()


@pytest.fixture(scope="module")
def settings(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the settings for weights of the user's own."""
    models = tmp_path_factory.mktemp("models")
    for name in ("qwen3-1.7b", "qwen3-0.6b"):
        (models / name).symlink_to(checkpoint)
    return {"AFTERWORDS_MODELS": str(models), "AFTERWORDS_BACKENDS": "qwen3-1.7b", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def me(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the settings of a home folder with a cloned voice."""
    settings = settings | {"AFTERWORDS_HOME": str(tmp_path_factory.mktemp("me") / "home")}
    done = run("clone", READER, "--name", "me", "--consent", "public-domain", env=environment(settings))
    assert done.code == 0, done.err
    assert "by its speaker embedding alone" in done.err  # no words were given, and none could be written down
    return settings


def frames_of(wav: bytes) -> tuple[int, bytes]:
    with wave.open(io.BytesIO(wav)) as sound:
        return sound.getframerate(), sound.readframes(sound.getnframes())


def test_cloned_voice_is_reproducible_with_a_seed(me: dict[str, str]) -> None:
    one, two = (
        run("say", TEXT, "--backend", "qwen3-1.7b", "--seed", str(SEED), "-o", "-", env=environment(me))
        for _ in range(2)
    )
    assert (one.code, two.code) == (0, 0), one.err
    rate, sound = frames_of(one.stdout)
    assert rate == 24_000
    assert len(sound) > 24_000
    assert frames_of(two.stdout) == (rate, sound)


def test_each_size_makes_its_own_prompt(me: dict[str, str]) -> None:
    both = me | {"AFTERWORDS_BACKENDS": "qwen3-1.7b,qwen3-0.6b"}
    done = run("say", TEXT, "--backend", "qwen3-0.6b", "--seed", str(SEED), "-o", "-", env=environment(both))
    assert done.code in (0, 7), done.err  # random weights don't always find an end
    prompts = {path.name.split("-1-")[0] for path in Path(me["AFTERWORDS_HOME"]).rglob("prompts/*")}
    assert prompts == {"qwen3-1.7b", "qwen3-0.6b"}


def test_auto_does_not_choose_the_slow_engine(me: dict[str, str]) -> None:
    done = run("backends", "--json", env=environment(me | {"AFTERWORDS_BACKENDS": "", "CUDA_VISIBLE_DEVICES": ""}))
    assert '"backend": "lite"' in done.out
    auto = [part for part in done.out.split("{") if '"is_auto": true' in part]
    assert len(auto) == 1
    assert '"backend": "lite"' in auto[0]


def test_backends_lists_what_is_missing(settings: dict[str, str], tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['mlx'] = None; "  # as if neither were installed
    code += "from afterwords.cli import main; main()"
    both = settings | {"AFTERWORDS_BACKENDS": "qwen3-1.7b,qwen3-0.6b", "COLUMNS": "200"}
    without_torch = run("backends", python=code, env=environment(both))
    assert without_torch.out.count(f"torch is not installed; fix: {pip_install('cuda')}") == 2
    without_weights = run("backends", env=environment(both | {"AFTERWORDS_MODELS": str(tmp_path)}))
    for name in ("qwen3-1.7b", "qwen3-0.6b"):
        assert f"fix: afterwords models pull {name}" in without_weights.out


def test_lite_does_not_import_torch(settings: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from afterwords.backends import registry\n"
        "states = [backend.state for backend in registry.backends()]\n"
        "engine = registry.engine_for(registry.choose('lite'))\n"
        "engine.load('lite')\n"
        "assert not {'torch', 'mlx', 'mlx_audio'} & sys.modules.keys()"
    )
    done = run(python=code, env=environment(settings | {"AFTERWORDS_BACKENDS": ""}))
    assert done.code == 0, done.err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send there")
def test_ctrl_c_exits_cleanly(me: dict[str, str]) -> None:
    long = "The quick brown fox jumps over the lazy dog. " * 60
    command = ("say", long, "--seed", "1", "-o", "-", "--format", "pcm")
    code, stderr = run_and_interrupt(*command, env=environment(me))
    assert (code, stderr.splitlines()[-1]) == (130, b"Stopped.")


@pytest.fixture(scope="module")
def served(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server") / "home", settings) as served:
        yield served


def test_server_streams_and_serves_concurrent_requests(served: Served) -> None:
    with served.client() as client:
        voice_id = register(client, consent="public-domain", ref_text=WORDS)
        body = {"voice_id": voice_id, "text": TEXT, "seed": 0, "stream": True, "response_format": "pcm"}
        with client.stream("POST", "/v1/synthesize", json=body) as answer:
            assert answer.status_code == 200
            streamed = b"".join(answer.iter_bytes())
        assert len(streamed) > 24_000
        jobs = [submit_text(client, voice_id, TEXT, seed=seed) for seed in range(1, 6)]
        ready = [job["job_id"] for job in (wait_for_job(client, job_id) for job_id in jobs) if job["status"] == "ready"]
        assert len(ready) > 1  # random weights don't always find an end, and some at once
        assert all(len(frames_of(client.get(f"/v1/jobs/{job_id}/audio").content)[1]) >= 3_840 for job_id in ready)
