"""`afterwords bench` as a process: real backends, one that dies, and a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import afterwords as aw
from afterwords.client.profiles import Profiles
from afterwords.models import Voice
from tests.cli.program import COMMAND, environment, list_files, run
from tests.e2e.served import Served, serving, wait_until
from tests.hosted.service import HostedService

TEXT = "Hello there, canary."
KEYS = (
    *("backend", "server", "first_audio_ms", "real_time_factor", "audio_s"),
    *("similarity", "similarity_by", "similarity_note", "memory_mib", "device_memory_mib", "load_s", "prepare_s"),
    *("error", "reason", "fix", "exit_code", "voice", "voice_id", "lang"),
)
TESTING = {"AFTERWORDS_TESTING": "1"}
PLUGIN = """
import os
from afterwords.backends.base import Available
from afterwords.backends.tone import ToneEngine

class Dying(ToneEngine):
    name, backends = "dying", ("dies",)
    def synthesize(self, task):
        print(task.text, flush=True)
        os._exit(3)

class Slow(ToneEngine):
    name, backends = "slow", ("slow",)
    def availability(self):
        return Available("slowly", is_slow=True)
"""


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """Return settings with two more backends: `dies` and `slow`."""
    info = tmp_path / "plugins" / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[afterwords.engines]\ndies = odd:Dying\nslow = odd:Slow\n")
    (info.parent / "odd.py").write_text(PLUGIN)
    return {"PYTHONPATH": str(info.parent), "AFTERWORDS_BACKENDS": "dies,tone,slow"}


def test_json_has_the_same_keys_with_and_without_figures(me: Voice, home: Path) -> None:
    prompts = [name for name in list_files(home) if name.startswith("tone")]
    for path in (home / "voices" / me.voice_id / "prompts").iterdir():
        path.unlink()

    measured, failed = (
        json.loads(run("bench", "me", "--text", text, "--json", env=TESTING).out)[0]
        for text in (TEXT, "fault-fail in a text")
    )

    assert tuple(measured) == tuple(failed) == KEYS
    assert (measured["backend"], measured["voice_id"], measured["lang"]) == ("tone", me.voice_id, "en")
    assert measured["audio_s"] == pytest.approx(len(TEXT) * 0.06)
    assert -1 <= measured["similarity"] <= 1
    assert measured["memory_mib"] > 10
    assert [name for name in list_files(home) if name.startswith("tone")] == prompts, "the prompt is stored"


@pytest.mark.usefixtures("me")
def test_backend_that_dies_is_a_row_and_stops_no_other(plugins: dict[str, str]) -> None:
    done = run("bench", "--text", TEXT, "--skip-slow", env=plugins)

    assert done.code == 0
    head, dead, alive = done.out.splitlines()
    assert (head.split("  ")[:2], head.split()[-1]) == (["backend", "first audio ms"], "error")
    assert dead.split() == ["dies", *"-------", "synthesis_failed"]
    assert (len(alive.split()), alive.split()[0]) == (8, "tone")
    assert "below 1 is faster than speech" in done.err
    assert "cosine of GE2E" in done.err
    assert "✗ dies: The backend dies could not speak: its process died." in done.err
    assert "Skipped: slow, which is slow here." in done.err
    assert "canary" not in done.out + done.err


@pytest.mark.usefixtures("me")
def test_backend_named_twice_is_measured_once(plugins: dict[str, str]) -> None:
    options = ("--backend", "slow", "--backend", "slow", "--timeout", "0.01")

    done = run("bench", *options, "--json", env=plugins)

    assert [(row["backend"], row["exit_code"]) for row in json.loads(done.out)] == [("slow", 9)]
    assert "slow is slow here" in done.err
    run("bench", "--backend", "slow", "--skip-slow", env=plugins).expect_error(2, "usage")


@pytest.mark.usefixtures("me")
@pytest.mark.parametrize(
    ("fault", "code", "error"),
    [("fail", 7, "synthesis_failed"), ("hang", 9, "measurement_timeout")],
)
def test_exit_code_is_the_backend_s_if_none_was_measured(fault: str, code: int, error: str) -> None:
    limit = ("--timeout", "1") if fault == "hang" else ()

    done = run("bench", "--text", f"the canary says fault-{fault} aloud", "--json", *limit, env=TESTING)

    (row,) = json.loads(done.out)
    assert (done.code, row["exit_code"], row["error"], row["audio_s"]) == (code, code, error, None)
    assert row["fix"] in done.err
    assert "canary" not in done.err


def leads_a_session(pid: int) -> bool:
    """Return whether a child has its own session, as the measuring process does once it runs."""
    return any(os.getsid(child.pid) == child.pid for child in psutil.Process(pid).children())


@pytest.mark.usefixtures("me")
@pytest.mark.skipif(os.name != "posix", reason="only POSIX sends SIGINT to one process")
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_no_process_outlives_the_command(sig: signal.Signals) -> None:
    command = [*COMMAND, "bench", "--text", "this will fault-hang half-way"]
    with subprocess.Popen(
        command, env=environment(TESTING), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: leads_a_session(process.pid), what="the measuring process")
        children = psutil.Process(process.pid).children()
        process.send_signal(sig)
        out, err = process.communicate(timeout=120)

    assert psutil.wait_procs(children, timeout=120)[1] == []
    assert (process.returncode, out) == (130 if sig is signal.SIGINT else -sig, "")
    assert "Traceback" not in err


@pytest.mark.usefixtures("me")
@pytest.mark.parametrize(
    ("args", "env", "code", "error", "message"),
    [
        (("mee",), {}, 4, "voice_not_found", "did you mean 'me'?"),
        ((), {"AFTERWORDS_HOME": "empty"}, 2, "voice_required", "afterwords clone"),
        (("--backend", "nope"), {}, 5, "invalid_backend", "available: tone"),
        ((), {"AFTERWORDS_BACKENDS": "nope"}, 1, "backend_unavailable", "AFTERWORDS_BACKENDS"),
        (("--lang", "tlh"), {}, 5, "unsupported_lang", "'tlh'"),
        (("--text", "?!"), {}, 5, "empty_text", "nothing that can be spoken"),
        (("--timeout", "nan"), {}, 5, "invalid_option", "timeout is nan"),
        (("--remote",), {"AFTERWORDS_BASE_URL": "http://127.0.0.1:1"}, 3, "not_logged_in", "afterwords login"),
        (("-p", "nope"), {}, 5, "invalid_option", "the profile"),
    ],
)
def test_invalid_options_are_refused_before_any_work(
    args: tuple[str, ...], env: dict[str, str], code: int, error: str, message: str, tmp_path: Path
) -> None:
    assert message in run("bench", *args, env=env, cwd=tmp_path).expect_error(code, error)


# -- a server -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("bench") / "server") as server:
        yield server


@pytest.mark.usefixtures("me")
def test_server_is_measured_only_on_request_and_uncached(served: Served, home: Path) -> None:
    Profiles(home).save("work", served.url, served.new_key())

    alone = run("bench", "--timeout", "0.01")
    missing = run("bench", "--text", TEXT, "--remote", "--json", env={"AFTERWORDS_BACKENDS": "nope"})
    with aw.Client() as client:
        assert (list(client.voices.list()), list(client.jobs.list())) == ([], [])
        aw.push("me", client=client)
        done = run("bench", "--text", TEXT, "-p", "work", "--json")
        assert len(list(client.jobs.list())) == 4

    assert f"{served.url} is not measured. To include it: afterwords bench me --remote" in alone.err
    assert (missing.code, json.loads(missing.out)[0]["error"]) == (4, "voice_not_found")
    assert "push it there: afterwords push me" in missing.err
    here, there = json.loads(done.out)
    assert (here["server"], there["server"], there["backend"]) == (None, served.url, "tone")
    assert there["audio_s"] == here["audio_s"]
    assert there["similarity"] == pytest.approx(here["similarity"], abs=0.01)
    assert (there["memory_mib"], there["load_s"], there["prepare_s"]) == (None, None, None)


def test_hosted_service_without_seeds_is_measured(me: Voice, home: Path) -> None:
    with HostedService(pending_looks=0) as service:
        Profiles(home).save("hosted", service.url, service.api_key)
        with aw.Client() as client:
            aw.push(me, client=client)

        done = run("bench", "--text", TEXT, "--remote", "--json", env={"AFTERWORDS_BACKENDS": "nope"})

    (row,) = json.loads(done.out)
    assert (done.code, row["server"], row["error"]) == (0, service.url, None), done.err
    assert row["audio_s"] >= len(TEXT) * 0.06
