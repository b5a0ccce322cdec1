"""Test the command line at a terminal with a server: hidden questions, and Ctrl-C during every wait.

A proxy in front of a real server delays the request during which a test presses Ctrl-C.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals that Python can open", allow_module_level=True)

import afterwords as aw
from afterwords.audio.audio import decode
from afterwords.client.profiles import Profiles
from afterwords.local import library
from afterwords.models import Voice
from afterwords.testing import Fault
from tests.audio.test_devices import CARD, needs_alsa
from tests.cli.program import list_files, run
from tests.client.faulty_proxy import FaultyServer
from tests.e2e.served import ADMIN_SECRET, Served, register, serving, submit_text, wait_for_job, wait_until
from tests.e2e.terminal import CTRL_C, Terminal

TEXT = "Hello, this is my voice."
LONG_S = 600.0  # longer than any test; the proxy ends it
CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("terminal") / "server") as server:
        with server.client() as client:
            register(client)
        yield server


@pytest.fixture
def slow(served: Served, home: Path) -> Iterator[FaultyServer]:
    """Store a proxy to the server, which can delay requests, as the profile `work`."""
    with FaultyServer(served.url) as proxy:
        Profiles(home).save("work", proxy.url, served.key)
        yield proxy


def suggested_command(terminal: Terminal) -> list[str]:
    """Return the arguments of the last suggested command."""
    (*_, line) = [line for line in terminal.text.splitlines() if line.startswith("  afterwords ")]
    return shlex.split(line)[1:]


def wait_for_delay(slow: FaultyServer) -> None:
    """Wait until the proxy delays a request."""
    wait_until(lambda: [seen for seen in slow.seen if seen.fault], what="the request")


def press_ctrl_c(terminal: Terminal) -> None:
    """Press Ctrl-C; check the exit code, the message and that the cursor is visible."""
    terminal.type(CTRL_C)
    assert terminal.wait() == 130
    assert terminal.text.rstrip().endswith("Stopped.")
    assert terminal.raw.rfind(CURSOR_HIDDEN) <= terminal.raw.rfind(CURSOR_SHOWN)


# -- Ctrl-C ---------------------------------------------------------------------------------------------------


def test_ctrl_c_while_waiting_leaves_job_running(slow: FaultyServer, served: Served, tmp_path: Path) -> None:
    (tmp_path / "my hello.wav").write_bytes(b"kept")
    slow.inject(Fault.SLOW, path="/v1/jobs/", delay_s=LONG_S)
    with Terminal("say", TEXT, "-p", "work", "--voice", "me", "-o", "my hello.wav", cwd=tmp_path) as terminal:
        terminal.expect("waiting for the speech; Ctrl-C leaves the job running")
        wait_for_delay(slow)
        press_ctrl_c(terminal)

    assert "The job goes on." in terminal.text
    assert (tmp_path / "my hello.wav").read_bytes() == b"kept"
    words = suggested_command(terminal)
    assert (words[:2], words[3:]) == (["jobs", "download"], ["-o", "my hello.wav", "--profile", "work"])
    with served.client() as client:
        assert wait_for_job(client, words[2])["status"] == "ready"
    assert run(*words, cwd=tmp_path).code == 0
    assert decode(tmp_path / "my hello.wav").duration_s == pytest.approx(1.44)
    assert not list(tmp_path.glob("*.part"))


def test_ctrl_c_while_downloading_keeps_existing_file(slow: FaultyServer, served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"kept")
    with served.client() as client:
        job_id = submit_text(client, client.get("/v1/voices").json()[0]["voice_id"], "The canary is fetched.")
        wait_for_job(client, job_id)
    slow.inject(Fault.SLOW, path=f"/v1/jobs/{job_id}/audio", delay_s=LONG_S)
    with Terminal("jobs", "download", job_id, "-o", "a.wav", "-p", "work", cwd=tmp_path) as terminal:
        terminal.expect("downloading")
        wait_for_delay(slow)
        press_ctrl_c(terminal)

    assert (tmp_path / "a.wav").read_bytes() == b"kept"
    assert not list(tmp_path.glob("*.part"))
    assert run(*suggested_command(terminal), cwd=tmp_path).code == 0
    assert decode(tmp_path / "a.wav").duration_s > 1


def test_ctrl_c_while_submitting_names_jobs_list(slow: FaultyServer, tmp_path: Path) -> None:
    slow.inject(Fault.SLOW, path="/v1/synthesize", delay_s=LONG_S)
    words = "The canary is not awaited."
    with Terminal("say", words, "--remote", "--voice", "me", "-o", "a.wav", cwd=tmp_path) as terminal:
        terminal.expect("asking the server")
        wait_for_delay(slow)
        press_ctrl_c(terminal)

    assert "may have accepted the job already" in terminal.text
    assert "afterwords jobs list" in terminal.text
    assert "canary" not in terminal.text
    assert list_files(tmp_path) == ["profiles.json"]


def test_ctrl_c_while_importing_names_voices_list(me: Voice, slow: FaultyServer, tmp_path: Path) -> None:
    run("voices", "export", "me", "-o", "it", cwd=tmp_path)
    slow.inject(Fault.SLOW, path="/v1/voices/import", delay_s=LONG_S)
    with Terminal("voices", "import", "it", "--name", "sent", "--remote", cwd=tmp_path) as terminal:
        terminal.expect("sending the voice")
        wait_for_delay(slow)
        press_ctrl_c(terminal)

    assert "afterwords voices list --remote" in terminal.text


def test_ctrl_c_at_key_prompt_stores_nothing(served: Served, home: Path) -> None:
    with Terminal("login", served.url) as terminal:
        terminal.expect("API key for http://127.0.0.1")
        terminal.type("aw_half-of-a-ke")
        assert terminal.type_until_end(CTRL_C) == 130
        assert terminal.is_echoing

    assert list_files(home) == []
    assert "half-of" not in terminal.text


@pytest.mark.parametrize("keys", [CTRL_C, "no\n"], ids=["ctrl-c", "no"])
def test_voice_is_kept_without_confirmation(keys: str, me: Voice, tmp_path: Path) -> None:
    aw.clone(library().reference(me), name="you", consent="synthetic")
    run("voices", "export", "you", "-o", "it", cwd=tmp_path)
    run("voices", "rm", "you", "--yes")
    before = aw.voices()
    with Terminal("voices", "import", "it", "--name", "me", cwd=tmp_path) as terminal:
        terminal.expect("There is already a voice named me here.")
        terminal.expect("Type yes to replace it for good")
        assert terminal.type_until_end(keys) == (130 if keys == CTRL_C else 1)

    assert aw.voices() == before


@needs_alsa
def test_ctrl_c_while_playing_cancels_job(served: Served, tmp_path: Path) -> None:
    (tmp_path / "asoundrc").write_text(CARD)
    account = {"AFTERWORDS_BASE_URL": served.url, "AFTERWORDS_API_KEY": served.key}
    env = {**account, "ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")}
    words = "This plays at once. " * 3 + "Then it will fault-hang for a long while."
    with Terminal("say", words, "--remote", "--voice", "me", cwd=tmp_path, env=env) as terminal:
        terminal.expect("playing; Ctrl-C stops it, and the job")
        press_ctrl_c(terminal)

    with served.client() as client:
        newest = client.get("/v1/jobs", params={"limit": 1}).json()[0]
        assert wait_for_job(client, newest["job_id"])["status"] == "cancelled"


# -- questions ------------------------------------------------------------------------------------------------


def test_login_asks_for_address_and_hidden_key(served: Served, home: Path) -> None:
    with Terminal("login") as terminal:
        terminal.expect("Address of the server")
        terminal.type(f"{served.url}\n")
        terminal.expect("(it is not shown):")
        terminal.type(f"{served.key}\n")
        terminal.expect("Logged in to")
        assert terminal.wait() == 0

    assert served.key not in terminal.text
    assert [profile.url for profile in Profiles(home).all()] == [served.url]


def test_replacing_asks_for_confirmation(me: Voice, tmp_path: Path) -> None:
    other = aw.clone(library().reference(me), name="you", consent="synthetic")
    run("voices", "export", "you", "-o", "it", cwd=tmp_path)
    run("voices", "rm", "you", "--yes")
    with Terminal("voices", "import", "it", "--name", "me", cwd=tmp_path) as terminal:
        terminal.expect("Type yes to replace it for good")
        terminal.type("yes\n")
        assert terminal.wait() == 0

    assert [voice.voice_id for voice in aw.voices()] == [other.voice_id]


def test_admin_secret_is_asked_for_hidden(slow: FaultyServer, served: Served, tmp_path: Path) -> None:
    with Terminal("keys", "create", "--remote", stdout=tmp_path / "out") as terminal:
        terminal.expect("Admin secret of http://127.0.0.1")
        terminal.type(f"{ADMIN_SECRET}\n")
        terminal.expect("shown this once")
        assert terminal.wait() == 0

    assert ADMIN_SECRET not in terminal.text
    with served.client((tmp_path / "out").read_text().strip()) as client:
        assert client.get("/v1/usage").status_code == 200


def test_removal_from_server_asks_for_confirmation(slow: FaultyServer, served: Served) -> None:
    env = {"AFTERWORDS_BASE_URL": served.url, "AFTERWORDS_API_KEY": served.new_key()}
    with served.client(env["AFTERWORDS_API_KEY"]) as client:
        register(client, name="gone")
        for answer, code, n_left in (("no", 1, 1), ("yes", 0, 0)):
            with Terminal("voices", "rm", "gone", "--remote", env=env) as terminal:
                terminal.expect("all speech made with it")
                terminal.type(f"{answer}\n")
                assert terminal.wait() == code
            assert len(client.get("/v1/voices").json()) == n_left
