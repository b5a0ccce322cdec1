"""Test `afterwords say`: files, pipes, and what is left after a failure."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import afterwords as aw
from afterwords.audio.audio import decode
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.cli import output
from afterwords.errors import pip_install
from afterwords.local import library
from afterwords.models import Voice
from afterwords.provenance import verify
from tests.cli.program import COMMAND, environment, list_files, run

pytestmark = pytest.mark.usefixtures("me")

TEXT = "Hello, this is my voice."


@pytest.mark.parametrize("ending", ["wav", "mp3", "opus", "flac"])
def test_file_extension_sets_format(ending: str, tmp_path: Path) -> None:
    done = run("say", TEXT, "-o", f"hello.{ending}", cwd=tmp_path)

    assert (done.code, done.out) == (0, "")
    assert f"✓ hello.{ending}: 1.4 s in the voice me (tone" in done.err
    assert done.err.endswith(f"Next: afterwords verify hello.{ending}\n")
    assert re.search(r"\(tone, took \d+(\.\d)? (s|min)", done.err)
    assert decode(tmp_path / f"hello.{ending}").duration_s == pytest.approx(1.44, abs=0.1)
    assert list_files(tmp_path).count(f"hello.{ending}") == 1
    assert not [name for name in list_files(tmp_path) if name.endswith(".part")]
    mark = verify(tmp_path / f"hello.{ending}")
    assert mark is not None
    assert mark.voice_name == "me"


def test_text_and_speech_can_be_piped() -> None:
    done = run("say", "-", "-o", "-", stdin=TEXT.encode())

    assert done.code == 0
    np.testing.assert_array_equal(decode(done.stdout).samples, decode(aw.say(TEXT).to_bytes()).samples)


def test_text_file_is_spoken_as_raw_samples(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())

    done = run("say", "--file", tmp_path / "words.txt", "-o", "-", "--format", "pcm")

    assert done.code == 0
    assert len(done.stdout) == 2 * round(len(TEXT) * SECONDS_PER_CHARACTER * SAMPLE_RATE)


def test_speed_shortens_speech(tmp_path: Path) -> None:
    assert run("say", TEXT, "-o", "fast.wav", "--speed", "2", "--seed", "7", "--lang", "fr", cwd=tmp_path).code == 0
    assert decode(tmp_path / "fast.wav").duration_s == pytest.approx(0.72, abs=0.01)


def test_json_describes_the_speech(tmp_path: Path, me: Voice) -> None:
    done = run("say", TEXT, "-o", "hello.wav", "--json", cwd=tmp_path)

    facts = json.loads(done.out)
    assert (facts["voice"], facts["voice_id"], facts["file"]) == ("me", me.voice_id, "hello.wav")
    assert facts["duration_s"] == pytest.approx(1.44)


def test_left_out_words_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    done = run("say", "Hello fault-unspoken-Иван and all.", "-o", "hello.wav", "--json", cwd=tmp_path)
    nothing = run("say", "fault-unspoken-Иван", "-o", "nothing.wav", cwd=tmp_path)

    assert json.loads(done.out)["left_out"] == ["fault-unspoken-Иван"]
    assert "tone can't speak a word of the text and leaves out: fault-unspoken-Иван" in done.err
    assert "Warning" not in done.err
    assert (nothing.code, "can't read the script" in nothing.err, "Иван" in nothing.err) == (5, True, False)


def test_closed_pipe_prints_no_traceback() -> None:
    with subprocess.Popen(
        [*COMMAND, "say", "word " * 4_000, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"RIFF"
        process.stdout.close()
        err = process.stderr.read()

    assert (process.returncode, err) == (1, b"")


# -- subtitles and times -------------------------------------------------------------------------------------


def test_subtitles_and_times_follow_the_speed(tmp_path: Path) -> None:
    files = ("--srt", "a.srt", "--vtt", "a.vtt", "--timing", "a.json")
    done = run("say", TEXT, "--speed", "0.5", "-o", "a.wav", "--json", *files, cwd=tmp_path)

    assert done.code == 0
    facts = json.loads(done.out)
    assert (facts["srt"], facts["vtt"], facts["timing"]) == ("a.srt", "a.vtt", "a.json")
    end = f"{(len(TEXT) - 1) * 2 * SECONDS_PER_CHARACTER:.3f}"  # without the period
    assert (tmp_path / "a.srt").read_text() == f"1\n00:00:00,000 --> 00:00:0{end.replace('.', ',')}\n{TEXT}\n"
    assert (tmp_path / "a.vtt").read_text() == f"WEBVTT\n\n00:00:00.000 --> 00:00:0{end}\n{TEXT}\n"
    times = json.loads((tmp_path / "a.json").read_text())
    assert "".join(times["characters"]) == TEXT
    assert times["end_s"][-1] == pytest.approx(decode(tmp_path / "a.wav").duration_s)
    assert times["words"][1] == {
        "text": "this",
        "start": 7,
        "start_s": pytest.approx(7 * 2 * SECONDS_PER_CHARACTER),
        "end_s": pytest.approx(11 * 2 * SECONDS_PER_CHARACTER),
    }
    assert not [name for name in list_files(tmp_path) if name.endswith(".part")]


def test_subtitles_have_no_markup(tmp_path: Path) -> None:
    text = "Hello there. [pause 2s] And\r\nnow [pause 500ms] the [end]."
    assert run("say", text, "-o", "a.wav", "--srt", "a.srt", cwd=tmp_path).code == 0
    lines = (tmp_path / "a.srt").read_text().splitlines()
    assert [line for line in lines if line[:1].isalpha()] == ["Hello there. And now the [end]."]


def test_subtitles_need_no_audio_file(tmp_path: Path) -> None:
    assert run("say", TEXT, "--no-play", "--srt", "a.srt", cwd=tmp_path).code == 0
    assert "a.srt" in list_files(tmp_path)


@pytest.mark.usefixtures("whisper")
def test_faulty_speech_is_kept_and_named(tmp_path: Path) -> None:
    done = run("say", TEXT, "-o", "a.wav", "--verify", "--report", "report.json", "--json", cwd=tmp_path)
    assert done.code == 1, "a tone says nothing"
    assert "Sentence 1, at 0.0 s, has faults in its only attempt: words" in done.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert json.loads(done.out)["verification"] == report
    assert [sentence["text"] for sentence in report["sentences"]] == [TEXT]
    assert (tmp_path / "a.wav").exists()


def test_unwritable_subtitles_are_refused_before_speaking(tmp_path: Path) -> None:
    run("say", TEXT, "-o", "a.wav", "--srt", "nowhere/a.srt", cwd=tmp_path).expect_error(5, "unwritable_output")
    assert "a.wav" not in list_files(tmp_path)


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full: Linux's")
def test_full_stdout_is_one_line_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "say", TEXT, "-o", "-"], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False
        )

    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "Error (storage_full): The disk that holds <stdout> is full.",
        "  Fix: free some space; nothing was changed or lost.",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_full_disk_keeps_existing_file(tmp_path: Path) -> None:
    (tmp_path / "hello.wav").write_bytes(b"kept")
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    program = f"{limited}; runpy.run_module('afterwords', run_name='__main__')"

    run("say", TEXT * 9, "-o", "hello.wav", cwd=tmp_path, python=program).expect_error(1, "storage_full")

    assert (tmp_path / "hello.wav").read_bytes() == b"kept"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("fault", ["fail", "error", "memory"])
def test_failing_engine_keeps_existing_file(fault: str, tmp_path: Path) -> None:
    (tmp_path / "hello.wav").write_bytes(b"kept")

    done = run(
        "say", f"the canary says fault-{fault} aloud", "-o", "hello.wav", cwd=tmp_path, env={"AFTERWORDS_TESTING": "1"}
    )

    assert "canary" not in done.expect_error(7, "synthesis_failed")
    assert (tmp_path / "hello.wav").read_bytes() == b"kept"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_crashing_engine_keeps_existing_file(tmp_path: Path) -> None:
    (tmp_path / "hello.wav").write_bytes(b"kept")

    settings = {"AFTERWORDS_TESTING": "1"}
    done = run("say", "a fault-crash in a text", "-o", "hello.wav", cwd=tmp_path, env=settings, is_process=True)

    assert done.code == -signal.SIGKILL
    assert (tmp_path / "hello.wav").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ("missing/hello.wav", "unwritable_output", "there is no folder missing"),
        ("file.txt/hello.wav", "unwritable_output", "there is no folder file.txt"),
        ("folder.wav", "unwritable_output", "it is a folder"),
        ("hello.xyz", "invalid_format", "'.xyz' is not a supported"),
        ("hello", "invalid_format", "--format wav"),
        ("\x1b[2J/\x07.wav", "unwritable_output", r"\x1b[2J/\x07.wav can't be written"),
    ],
)
def test_unwritable_output_is_refused_first(out: str, error: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.wav").mkdir()

    done = run("say", "fault-crash, were it spoken", "-o", out, cwd=tmp_path, env={"AFTERWORDS_TESTING": "1"})

    assert message in done.expect_error(5, error)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions don't bind root")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)

    assert "not allowed" in run("say", TEXT, "-o", tmp_path / "shut" / "a.wav").expect_error(5, "unwritable_output")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b"", "empty_text", "nothing that can be spoken"),
        ("\u200b \n\u200b".encode(), "empty_text", "nothing that can be spoken"),
        (b"?!...", "empty_text", "nothing that can be spoken"),
        (b"canary\0", "control_character", "U+0000 at position 6"),
        (b"canary\x1b[31m", "control_character", "U+001B at position 6"),
        (b"canary\xff", "invalid_unicode", "position 6"),
        (b"canary\xed\xa0\x80", "invalid_unicode", "position 6"),
        (b"canary " * 15_000, "text_too_long", "105,000 characters; the limit is 100,000"),
        (b"canary " * 1_000_000, "text_too_long", "the limit is 100,000"),
    ],
    ids=["empty", "blank", "marks", "nul", "escape", "not-utf8", "surrogate", "long", "huge"],
)
def test_invalid_text_is_refused_and_not_repeated(text: bytes, error: str, message: str) -> None:
    done = run("say", "-", "-o", "-", stdin=text)

    assert message in done.expect_error(5, error)
    assert "canary" not in done.err


@pytest.mark.parametrize("text", ["<speak>Hi</speak>", "{{ 7 * 7 }} $(id) `id`", "🙂" * 50, "a" + "\u0301" * 9_000])
def test_markup_and_code_are_spoken_as_text(text: str) -> None:
    assert len(run("say", "-", "-o", "-", stdin=text.encode()).stdout) > 44


@pytest.mark.parametrize(
    ("options", "code", "error", "message"),
    [
        (("--voice", "mee"), 4, "voice_not_found", "did you mean 'me'?"),
        (("--voice", "\x1b[2J"), 4, "voice_not_found", r"\x1b[2J"),
        (("--lang", "tlh"), 5, "unsupported_lang", "'tlh'"),
        (("--backend", "nope"), 5, "invalid_backend", "available: tone"),
        (("--speed", "9"), 5, "invalid_option", "speed is 9.0, but must be a number from 0.25 to 4"),
        (("--speed", "nan"), 5, "invalid_option", "speed is nan"),
        (("--seed", "-1"), 5, "invalid_option", "seed is -1"),
        (("--format", "aiff"), 5, "invalid_format", "supported: wav, mp3, opus, flac, pcm"),
        (("--speed", "fast"), 2, "usage", "--speed"),
        (("--nope",), 2, "usage", "No such option: --nope"),
        (("and more words",), 2, "usage", "put a text in quotes"),
        (("--file", "words.txt"), 2, "usage", "give it once: in quotes, as - for stdin, or with --file FILE."),
        (("--json",), 2, "usage", "can't carry both audio and JSON"),
    ],
)
def test_invalid_option_is_refused(options: tuple[str, ...], code: int, error: str, message: str) -> None:
    assert message in run("say", "the canary sings", "-o", "-", *options).expect_error(code, error)


@pytest.mark.parametrize("args", [(), (TEXT, "--no-play")], ids=["no-text", "nowhere-to-go"])
def test_invalid_arguments_are_a_usage_error(args: tuple[str, ...]) -> None:
    run("say", *args).expect_error(2, "usage")


def test_missing_text_file_is_refused(tmp_path: Path) -> None:
    assert "it is a folder" in run("say", "--file", tmp_path, "-o", "-").expect_error(5, "unreadable_file")
    assert "no such file" in run("say", "--file", tmp_path / "x", "-o", "-").expect_error(5, "unreadable_file")


# -- dry runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_dry_run_speaks_and_writes_nothing(source: str, me: Voice, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("fault-crash " * 1_000)
    before = list_files(tmp_path)
    options = ("--dry-run", "--speed", "2")

    if source == "file":
        done = run("say", "-f", "long.txt", *options, cwd=tmp_path, env={"AFTERWORDS_TESTING": "1"})
    else:
        done = run("say", "-", *options, stdin=(tmp_path / "long.txt").read_bytes(), cwd=tmp_path)

    assert (done.code, done.err, list_files(tmp_path)) == (0, "", before)
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines == {
        "voice": "me",
        "backend": "tone",
        "characters": "12,000",
        "audio": "about 6 min 48 s",
        "prepared": "yes",
    }


def test_dry_run_prints_json(me: Voice) -> None:
    facts = json.loads(run("say", TEXT, "--dry-run", "--lang", "de", "--json").out)

    assert (facts["voice"], facts["characters"], facts["charged_characters"]) == ("me", len(TEXT), 0)
    assert (facts["backend"], facts["lang"], facts["is_prepared"]) == ("tone", "de", True)
    assert facts["duration_s"] == pytest.approx(1.63)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("-o", "a.wav"), "--out"),
        (("--format", "mp3"), "--format"),
        (("--no-play",), "--play"),
        (("--remote", "--timeout", "9"), "--timeout"),
    ],
)
def test_dry_run_refuses_options_of_audio(options: tuple[str, ...], named: str) -> None:
    assert f"combined with {named}" in run("say", TEXT, "--dry-run", *options).expect_error(2, "usage")


def test_dry_run_refuses_what_say_refuses() -> None:
    run("say", "?!", "--dry-run").expect_error(5, "empty_text")
    run("say", TEXT, "--dry-run", "--voice", "missing").expect_error(4, "voice_not_found")
    run("say", "fault-unspoken", "--dry-run", env={"AFTERWORDS_TESTING": "1"}).expect_error(5, "unspeakable_text")


def test_several_voices_need_a_name_or_a_default(me: Voice) -> None:
    aw.clone(library().reference(me), name="you", consent="self")
    assert "--voice NAME (me, you)" in run("say", TEXT, "-o", "-").expect_error(2, "voice_required")

    assert run("voices", "default", "you").out == "you\n"

    assert "in the voice you" in run("say", TEXT, "-o", "-").err


def test_empty_library_names_clone(tmp_path: Path) -> None:
    done = run("say", TEXT, "-o", "-", env={"AFTERWORDS_HOME": str(tmp_path / "empty")})

    assert "afterwords clone me.wav --name me" in done.expect_error(2, "voice_required")
    assert not (tmp_path / "empty").exists()


def test_missing_extra_prints_pip_command(tmp_path: Path) -> None:
    absent = "import sys, runpy; sys.modules['sounddevice'] = None; runpy.run_module('afterwords', run_name='__main__')"

    done = run("say", TEXT, python=absent)

    assert f"Fix: {pip_install('play')}" in done.expect_error(1, "missing_extra")


@pytest.mark.skipif(sys.platform != "linux", reason="ALSA is Linux's")
def test_missing_sound_device_suggests_out(tmp_path: Path) -> None:
    pytest.importorskip("sounddevice")
    (tmp_path / "asoundrc").write_text("pcm.!default { type hw card 31 }\n")

    done = run("say", TEXT, env={"ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")})

    assert "-o hello.wav" in done.expect_error(1, "no_audio_device")


def test_voice_with_altered_recording_is_refused(home: Path, me: Voice) -> None:
    folder = home / "voices" / me.voice_id
    (folder / "reference.wav").write_bytes(b"RIFF")
    for prompt in (folder / "prompts").iterdir():
        prompt.unlink()

    run("say", TEXT, "-o", "-").expect_error(1, "corrupt_voice")


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is POSIX's")
def test_sigterm_keeps_existing_file(me: Voice, tmp_path: Path) -> None:
    out = tmp_path / "hello.wav"
    out.write_bytes(b"old")
    command = [*COMMAND, "say", "this will fault-hang half-way", "-v", me.name, "-o", str(out)]
    with subprocess.Popen(command, env=environment({"AFTERWORDS_TESTING": "1"}), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)  # poll until the deadline: the part file shows that it speaks
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert out.read_bytes() == b"old"
    assert list_files(tmp_path).count("hello.wav") == 1
    assert not list(tmp_path.glob("*.part"))


def test_progress_without_terminal_prints_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.01)  # instead of 10 s
    monkeypatch.setattr(output, "note", printed.put)

    with output.progress_bar("loading") as bar:
        first = printed.get(timeout=60)
        bar(0.5, "speaking")
        while not (later := printed.get(timeout=60)).startswith("speaking"):
            pass

    assert re.fullmatch(r"loading after \d+ s", first)
    assert re.fullmatch(r"speaking, 50% after \d+ s(, about .+ left)?", later)


# -- text that is still being written ---------------------------------------------------------------------------


def test_live_text_is_spoken_while_stdin_is_open() -> None:
    command = [*COMMAND, "say", "-", "--live", "-o", "-", "--format", "pcm"]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Good morning to you. It is l")
        process.stdin.flush()
        sound = process.stdout.read(2 * round(20 * SECONDS_PER_CHARACTER * SAMPLE_RATE))
        process.stdin.write(b"ate.")
        process.stdin.close()
        sound += process.stdout.read()

    assert process.returncode == 0
    assert len(sound) == 2 * len(aw.say(["Good morning to you. ", "It is late."]).samples)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT to send")
def test_interrupt_stops_a_live_text(tmp_path: Path) -> None:
    command = [*COMMAND, "say", "-", "--live", "-o", "-", "--format", "pcm"]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Good morning to you. It is l")
        process.stdin.flush()
        assert process.stdout.read(8000)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130  # though stdin is open


@pytest.mark.parametrize(
    "arguments",
    [["Hello.", "--live"], ["--file", "hello.txt", "--live"], ["-", "--live", "--dry-run"]],
)
def test_live_needs_stdin(arguments: list[str]) -> None:
    assert "--live" in run("say", *arguments).expect_error(2, "usage")


def test_live_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    run("say", "-", "--live", "-o", "hello.wav", stdin=b"\xff", cwd=tmp_path).expect_error(5, "invalid_unicode")
    assert "hello.wav" not in list_files(tmp_path)
