"""Test `afterwords say --remote` with a real server and a fake of the hosted service."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from afterwords.audio.audio import decode
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.client.profiles import Profiles
from afterwords.errors import pip_install
from afterwords.provenance import verify
from tests.audio.test_devices import CARD, needs_alsa
from tests.cli.conftest import UseServer
from tests.cli.program import COMMAND, environment, list_files, run
from tests.e2e.served import Served, register, submit_text, wait_for_job
from tests.hosted.service import HostedService

TEXT = "Hello, this is my voice."
HEAVY = "numpy av soundfile soxr fastapi sqlalchemy asyncio"


@pytest.fixture(scope="module")
def key(served: Served) -> str:
    """Return the key of an account whose only voice is named me."""
    key = served.new_key()
    with served.client(key) as client:
        register(client)
    return key


@pytest.fixture
def server(served: Served, key: str, use_server: UseServer) -> Served:
    """Use the server with that account."""
    use_server(served.url, key)
    return served


@pytest.fixture
def hosted(hosted: HostedService) -> HostedService:
    """Give it one voice named me; its jobs are ready at once."""
    hosted.pending_looks = 0
    _register(hosted)
    return hosted


def _register(service: HostedService, name: str = "me") -> None:
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.api_key}"}) as client:
        register(client, name=name)


# -- into a file ----------------------------------------------------------------------------------------------


def test_subtitles_and_times_come_from_the_server(server: Served, tmp_path: Path) -> None:
    files = ("--srt", "a.srt", "--vtt", "a.vtt", "--timing", "a.json")
    done = run("say", TEXT, "--remote", "-o", "a.mp3", *files, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["srt"] == "a.srt"
    times = json.loads((tmp_path / "a.json").read_text())
    assert "".join(times["characters"]) == TEXT
    assert times["words"][-1]["start_s"] == pytest.approx(SECONDS_PER_CHARACTER * TEXT.index("voice"), abs=0.02)
    assert TEXT in (tmp_path / "a.srt").read_text()
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT")
    run("say", TEXT, "--remote", "--no-play", *files, cwd=tmp_path).expect_error(2, "usage")


@pytest.mark.parametrize("ending", ["wav", "mp3", "flac"])
@pytest.mark.usefixtures("server")
def test_file_extension_sets_format(ending: str, tmp_path: Path) -> None:
    done = run("say", TEXT, "--remote", "-o", f"hello.{ending}", cwd=tmp_path)

    assert (done.code, done.out) == (0, "")
    assert f"✓ hello.{ending}: " in done.err
    assert done.err.endswith(f"Next: afterwords verify hello.{ending}\n")
    assert decode(tmp_path / f"hello.{ending}").duration_s == pytest.approx(1.44, abs=0.1)
    mark = verify(tmp_path / f"hello.{ending}")
    assert mark is not None
    assert (mark.is_synthetic, mark.voice_name) == (True, "me")
    assert not [name for name in list_files(tmp_path) if name.endswith(".part")]


@pytest.mark.usefixtures("server")
def test_json_describes_job_and_cache_hit(tmp_path: Path) -> None:
    words = ("say", "This is said twice.", "--remote", "--voice", "me", "-o", "a.wav", "--json")
    first, again = (json.loads(run(*words, cwd=tmp_path).out) for _ in range(2))

    assert (first["file"], first["voice"], first["backend"], first["cached"]) == ("a.wav", "me", "tone", False)
    assert first["job_id"]
    assert (again["job_id"], again["cached"]) == (None, True)
    length = len("This is said twice.") * SECONDS_PER_CHARACTER
    assert first["duration_s"] == again["duration_s"] == pytest.approx(length)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_left_out_words_are_printed(options: tuple[str, ...], tmp_path: Path) -> None:
    done = run("say", "Hello fault-unspoken-Иван, so.", "--remote", "-o", "hello.wav", *options, cwd=tmp_path)

    assert done.code == 0
    assert "tone can't speak a word of the text and leaves out: fault-unspoken-Иван," in done.err
    assert "Warning" not in done.err
    assert not options or json.loads(done.out)["left_out"] == ["fault-unspoken-Иван,"]


@pytest.mark.usefixtures("server")
def test_text_and_speech_can_be_piped(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())

    piped = run("say", "-", "--remote", "-o", "-", stdin=TEXT.encode())
    raw = run("say", "--file", tmp_path / "words.txt", "--remote", "-o", "-", "--format", "pcm")

    assert decode(piped.stdout).duration_s == pytest.approx(1.44)
    assert len(raw.stdout) == 2 * round(len(TEXT) * SECONDS_PER_CHARACTER * SAMPLE_RATE)


@pytest.mark.usefixtures("server")
def test_every_option_reaches_the_server(tmp_path: Path) -> None:
    options = ("--speed", "2", "--seed", "7", "--lang", "fr", "--backend", "tone", "--timeout", "30")

    assert run("say", TEXT, "--remote", *options, "-o", "fast.wav", cwd=tmp_path).code == 0

    assert decode(tmp_path / "fast.wav").duration_s == pytest.approx(0.72, abs=0.01)


def test_profile_implies_remote(served: Served, key: str, home: Path) -> None:
    Profiles(home).save("work", served.url, key)
    Profiles(home).save("other", "http://127.0.0.1:1", "aw_other")

    assert run("say", TEXT, "-p", "work", "-o", "-").code == 0
    assert run("say", TEXT, "--remote", "-o", "-", env={"AFTERWORDS_PROFILE": "work"}).code == 0


@pytest.mark.usefixtures("server")
def test_saving_unchanged_audio_loads_no_decoder(tmp_path: Path) -> None:
    message = "print('loaded', *sorted(set(sys.argv[0].split()) & set(sys.modules)), file=sys.stderr)"
    program = f"import atexit, runpy, sys; atexit.register(lambda: {message.replace('sys.argv[0]', repr(HEAVY))}); "

    done = run(
        "say",
        TEXT,
        "--remote",
        "-o",
        "hello.wav",
        cwd=tmp_path,
        python=program + "runpy.run_module('afterwords', run_name='__main__')",
    )

    assert done.code == 0
    assert done.err.splitlines()[-1] == "loaded"


@pytest.mark.parametrize(
    ("options", "code", "error", "message"),
    [
        (("--voice", "mee"), 4, "voice_not_found", "did you mean 'me'?"),
        (("--voice", "\x1b[2J"), 4, "voice_not_found", r"\x1b[2J"),
        (("--lang", "tlh"), 5, "unsupported_lang", ""),
        (("--speed", "9"), 5, "invalid_option", "speed is 9.0"),
        (("--speed", "nan"), 5, "invalid_option", "speed is nan"),
        (("--json",), 2, "usage", "can't carry both audio and JSON"),
        (("--profile", "unknown"), 5, "invalid_option", "unknown"),
    ],
)
@pytest.mark.usefixtures("server")
def test_invalid_option_is_refused(options: tuple[str, ...], code: int, error: str, message: str) -> None:
    done = run("say", "the canary sings", "--remote", "-o", "-", *options)

    assert message in done.expect_error(code, error)
    assert "canary" not in done.err


@pytest.mark.parametrize(
    ("text", "error"),
    [(b"canary\x1b[2J", "control_character"), (b"canary " * 800, "text_too_long")],
    ids=["escape", "long"],
)
def test_invalid_text_is_not_sent(text: bytes, error: str) -> None:
    unreachable = {"AFTERWORDS_BASE_URL": "http://127.0.0.1:1", "AFTERWORDS_API_KEY": "aw_key"}
    done = run("say", "-", "--remote", "-o", "-", stdin=text, env=unreachable)

    assert "canary" not in done.expect_error(5, error)


def test_timeout_needs_remote() -> None:
    assert "--remote" in run("say", TEXT, "-o", "-", "--timeout", "1").expect_error(2, "usage")


@pytest.mark.parametrize(
    ("limits", "code", "error"),
    [
        ({"character_limit": 3}, 6, "quota_exceeded"),
        ({"scopes": ["voices:read", "voices:write"]}, 3, "insufficient_scope"),
    ],
    ids=["quota", "scope"],
)
def test_key_without_permission_exits_3_or_6(
    limits: dict[str, object], code: int, error: str, server: Served, tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(b"kept")
    key = server.new_key(**limits)
    with server.client(key) as client:
        register(client)

    run("say", TEXT, "--remote", "-o", "a.wav", cwd=tmp_path, env={"AFTERWORDS_API_KEY": key}).expect_error(code, error)

    assert (tmp_path / "a.wav").read_bytes() == b"kept"


def test_server_without_one_voice_needs_a_name(server: Served, hosted: HostedService) -> None:
    empty = {"AFTERWORDS_BASE_URL": server.url, "AFTERWORDS_API_KEY": server.new_key()}
    assert "afterwords push" in run("say", TEXT, "--remote", "-o", "-", env=empty).expect_error(2, "usage")
    _register(hosted, name="you\u202e")

    message = run("say", TEXT, "--remote", "-o", "-").expect_error(2, "usage")

    assert r"--voice NAME (me, you\u202e)" in message


# -- dry runs -------------------------------------------------------------------------------------------------


def test_dry_run_prints_what_the_server_would_charge(server: Served) -> None:
    key = server.new_key(character_limit=30)
    with server.client(key) as client:
        voice_id = register(client)
        wait_for_job(client, submit_text(client, voice_id, TEXT))
        settings = {"AFTERWORDS_API_KEY": key}
        cached = run("say", TEXT, "--remote", "--dry-run", env=settings)
        over = run("say", "Too long by one", "--remote", "--dry-run", env=settings)
        facts = json.loads(run("say", "Seven..", "--remote", "--dry-run", "--json", env=settings).out)
        used = client.get("/v1/usage").json()["characters"]

    assert (cached.code, cached.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in cached.out.splitlines())
    assert (lines["charged"], lines["left"]) == ("0, the audio is cached", "6 in this period")
    assert (over.code, "would refuse this text" in over.err) == (0, True)
    assert (facts["voice"], facts["charged_characters"], facts["is_within_limit"]) == ("me", 7, False)
    assert used == len(TEXT)


def test_dry_run_of_the_hosted_service_is_refused(hosted: HostedService) -> None:
    run("say", TEXT, "--remote", "--dry-run").expect_error(5, "unsupported_by_server")


# -- the hosted service ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "mp3"])
def test_unmarked_audio_is_marked(ending: str, hosted: HostedService, tmp_path: Path) -> None:
    done = run("say", TEXT, "--remote", "--voice", "me", "-o", f"a.{ending}", "--json", cwd=tmp_path)

    assert done.code == 0, done.err
    assert json.loads(done.out)["duration_s"] == pytest.approx(1.44, abs=0.1)
    mark = verify(tmp_path / f"a.{ending}")
    assert mark is not None
    assert (mark.voice_name, mark.backend) == ("me", "qwen3-1.7b")


def test_unsupported_option_is_refused(hosted: HostedService) -> None:
    run("say", TEXT, "--remote", "-o", "-", "--speed", "2").expect_error(5, "unsupported_by_server")


def test_failed_job_exits_7(hosted: HostedService, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"kept")

    message = run("say", "canary words that fail", "--remote", "-o", "a.wav", cwd=tmp_path).expect_error(
        7, "job_failed"
    )

    assert "canary" not in message
    assert (tmp_path / "a.wav").read_bytes() == b"kept"


def test_timeout_prints_how_to_download(hosted: HostedService, home: Path, tmp_path: Path) -> None:
    hosted.pending_s = 1.5
    Profiles(home).save("work", hosted.url, hosted.api_key)
    out = tmp_path / "it's here.wav"

    message = run("say", TEXT, "-p", "work", "--timeout", "0.1", "-o", out).expect_error(9, "job_timeout")

    program, *again = shlex.split(message.partition("resume with: ")[2])
    assert (program, again[:2]) == ("afterwords", ["jobs", "download"])
    assert run(*again, env=_unreachable()).code == 0
    assert decode(out).duration_s == pytest.approx(1.44, abs=0.01)


def _unreachable() -> Mapping[str, str]:
    """Return settings with an unreachable server, which only a profile overrides."""
    return {"AFTERWORDS_BASE_URL": "http://127.0.0.1:1"}


# -- aloud ----------------------------------------------------------------------------------------------------


@needs_alsa
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("options", [(), ("-o", "hello.mp3", "--play")], ids=["played", "played-and-written"])
def test_speech_is_played_while_streamed(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "asoundrc").write_text(CARD)
    (tmp_path / "microphone.raw").touch()

    done = run(
        "say", TEXT, "--remote", *options, "--json", cwd=tmp_path, env={"ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")}
    )

    assert done.code == 0, done.err
    assert json.loads(done.out)["duration_s"] == pytest.approx(1.44)
    assert (tmp_path / "played.raw").stat().st_size >= 4 * 1.4 * SAMPLE_RATE
    assert not options or verify(tmp_path / "hello.mp3") is not None


@pytest.mark.usefixtures("server")
def test_missing_extra_prints_pip_command() -> None:
    absent = "import sys, runpy; sys.modules['sounddevice'] = None; runpy.run_module('afterwords', run_name='__main__')"

    message = run("say", TEXT, "--remote", python=absent).expect_error(1, "missing_extra")

    assert pip_install("play") in message


# -- text that is still being written ---------------------------------------------------------------------------


def _begin_live(*options: str) -> subprocess.Popen[bytes]:
    """Start a program that speaks into stdout, and write a sentence and a half to it."""
    command = [*COMMAND, "say", "-", "--live", "--remote", "-o", "-", "--format", "pcm", *options]
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"Good morning to you. It is l")
    process.stdin.flush()
    return process


@pytest.mark.usefixtures("server")
def test_live_text_is_spoken_while_stdin_is_open() -> None:
    with _begin_live() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sound = process.stdout.read(2 * round(20 * SECONDS_PER_CHARACTER * SAMPLE_RATE))
        process.stdin.write(b"ate.")
        process.stdin.close()
        sound += process.stdout.read()

    assert process.returncode == 0
    duration_s = len(sound) / 2 / SAMPLE_RATE
    assert duration_s == pytest.approx(32 * SECONDS_PER_CHARACTER + 0.16, abs=0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT to send")
@pytest.mark.usefixtures("server")
def test_interrupt_stops_a_live_text() -> None:
    with _begin_live() as process:
        assert process.stdout is not None
        assert process.stdout.read(8000)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130  # though stdin is open


@pytest.mark.usefixtures("server")
def test_error_ends_a_live_text_while_stdin_is_open() -> None:
    with _begin_live("--voice", "absent") as process:
        assert process.wait(120) == 4
        assert process.stderr is not None
        assert process.stderr.read().startswith(b"Error (voice_not_found): ")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("ending", ["wav", "mp3", "opus"])
def test_live_text_is_written_to_a_file(ending: str, tmp_path: Path) -> None:
    words = ("say", "-", "--live", "--remote", "-o", f"a.{ending}", "--json")
    done = run(*words, stdin=b"Good morning to you. It is late.", cwd=tmp_path)

    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["voice"], facts["backend"], facts["job_id"]) == ("me", "tone", None)
    assert decode(tmp_path / f"a.{ending}").duration_s == pytest.approx(facts["duration_s"], abs=0.1)
    mark = verify(tmp_path / f"a.{ending}")
    assert mark is not None
    assert mark.voice_name == "me"


@needs_alsa
@pytest.mark.usefixtures("server")
def test_live_text_is_played(tmp_path: Path) -> None:
    (tmp_path / "asoundrc").write_text(CARD)
    env = {"ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")}
    done = run("say", "-", "--live", "--remote", stdin=b"Good morning to you. It is late.", cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert (tmp_path / "played.raw").stat().st_size >= 4 * 2.0 * SAMPLE_RATE


def test_live_text_has_no_job_to_wait_for() -> None:
    message = run("say", "-", "--live", "--remote", "--timeout", "5").expect_error(2, "usage")
    assert "--timeout" in message
