"""Test the program as a whole: help, version, completion, and how errors are printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.cli.app import COMMANDS, load_command
from afterwords.cli.options import complete_voice
from afterwords.models import Voice
from tests.cli.program import COMMAND, environment, run
from tests.conftest import READER
from tests.e2e.terminal import Terminal


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(option: str) -> None:
    done = run(option)

    assert (done.code, done.err) == (0, "")
    assert all(f"│ {command} " in done.out for command in COMMANDS)
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("╭─ ")] == [
        *("Options", "Voices", "Speak", "Server", "Remote", "Setup")
    ]


def test_listed_help_is_the_first_paragraph_of_the_command() -> None:
    helps = {name: str(load_command(name).help).split("\n\n")[0].replace("\n", " ") for name in COMMANDS}

    assert helps == {name: entry.help for name, entry in COMMANDS.items()}


def test_help_imports_no_command() -> None:
    program = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    done = run("--help", python=program + "from afterwords.cli import main; main()")

    loaded = {name for name in done.err.split() if name.startswith("afterwords")}
    assert loaded == {"afterwords", "afterwords.cli", "afterwords.cli.app", "afterwords.cli.help"}


def test_help_shows_examples_and_flags_without_types() -> None:
    shown = [run("say", "--help").out, run("voices", "list", "--help").out]

    assert not any("bool" in text for text in shown)
    assert "\n   afterwords say --file story.txt --voice me -o story.mp3" in shown[0]


def test_no_command_shows_help_and_exits_2() -> None:
    done = run()

    assert (done.code, done.err) == (2, "")
    assert "╭─ Voices" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")

    assert (done.code, done.err) == (0, "")
    assert f"Usage: afterwords {command}" in done.out


def test_installed_program_prints_its_version() -> None:
    program = Path(sys.executable).with_name("afterwords")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, env=environment())

    assert (done.stdout, done.stderr) == (f"afterwords {aw.__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nope",), "No such command 'nope'"),
        (("\x1b[2J",), r"\x1b[2J"),
        (("--nope",), "No such option: --nope"),
        (("verify",), "Missing argument"),
        (("voices", "nope"), "No such command 'nope'"),
        (("backends", "\x1b[2J"), "Too many arguments"),
    ],
)
def test_usage_error_is_one_line_and_names_help(args: tuple[str, ...], message: str) -> None:
    done = run(*args)

    assert message in done.expect_error(2, "usage")
    assert "see afterwords" in done.err


PLANTED = "import runpy, afterwords.local as s; s.library = lambda: {}['canary']; "
UNFORESEEN = PLANTED + "runpy.run_module('afterwords', run_name='__main__')"


def test_unexpected_error_is_one_line() -> None:
    done = run("voices", python=UNFORESEEN)

    assert "Unexpected exception (KeyError)" in done.expect_error(1, "unexpected_error")
    assert "afterwords --debug" in done.err
    assert "canary" not in done.err


def test_debug_shows_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNFORESEEN, "--debug", "voices"]
    foreign = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    command = [*COMMAND, "--debug", "verify", str(tmp_path / "missing.wav")]
    typed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())

    assert (foreign.returncode, typed.returncode) == (1, 5)
    assert "Traceback" in foreign.stderr
    assert "KeyError: 'canary'" in foreign.stderr
    assert "Traceback" in typed.stderr
    assert "FileNotFoundError" in typed.stderr
    assert "Error (unreadable_file): " in typed.stderr.splitlines()[-2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full: Linux's")
@pytest.mark.parametrize("args", [("--help",), ("--version",), ("doctor", str(READER))], ids=lambda args: args[0])
def test_full_stdout_is_one_line_error(args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, check=False, env=environment())

    line, fix = done.stderr.decode().splitlines()
    assert done.returncode in {1, 5}
    assert "no space left on device" in line
    assert fix.startswith("  Fix: ")


@pytest.mark.skipif(sys.platform == "win32", reason="sh")
@pytest.mark.parametrize("shell", ["{} --help | true", "{} voices | true", "{} --version >&-", "{} voices <&-"])
def test_closed_stream_prints_nothing(shell: str, me: Voice) -> None:
    command = shell.format(" ".join(COMMAND))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=environment())

    assert done.stderr == ""


def test_ascii_encoding_escapes_result(me: Voice) -> None:
    done = run("doctor", READER, env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})

    assert done.code == 0
    assert r"\u2501 clone uses:" in done.out


def test_invalid_toml_settings_are_refused(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("backends = [")

    assert "config.toml" in run("voices").expect_error(5, "invalid_config")


# -- completion -----------------------------------------------------------------------------------------------


def complete(line: str) -> list[str]:
    """Return what the shell suggests at the end of a line."""
    place = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = run(env={"_AFTERWORDS_COMPLETE": "complete_bash", **place})
    assert done.err == ""
    return done.out.split()


def test_shell_completes_commands_options_and_voices(me: Voice) -> None:
    assert complete("afterwords voi") == ["voices"]
    assert complete("afterwords jobs c") == ["cancel"]
    assert complete("afterwords say --spe") == ["--speed"]
    assert complete("afterwords say --voice m") == ["me"]
    assert complete("afterwords voices rename ") == ["me"]


def test_completion_offers_no_escape_sequences(home: Path, me: Voice) -> None:
    file = home / "voices" / me.voice_id / "voice.json"
    file.write_text(file.read_text().replace('"me"', r'"\u001b[2J"'))

    assert complete("afterwords say --voice ") == [me.voice_id]


@pytest.mark.parametrize(
    "name",
    [
        "$(>canary)",
        "`>canary`",
        "x;>canary",
        "x&>canary",
        "x|>canary",
        ">canary",
        "*",
        "~",
        "!!",
        "-o",
        "a'b",
        'a"b',
        "a b",
    ],
)
def test_completion_offers_id_of_name_with_shell_syntax(home: Path, me: Voice, name: str) -> None:
    file = home / "voices" / me.voice_id / "voice.json"
    file.write_text(file.read_text().replace('"me"', json.dumps(name)))

    assert complete_voice("") == complete_voice(name) == complete_voice(me.voice_id[:4]) == [me.voice_id]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completed_name_runs_nothing_in_a_shell(home: Path, me: Voice, tmp_path: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    file = home / "voices" / me.voice_id / "voice.json"
    file.write_text(file.read_text().replace('"me"', '"$(>canary)"'))
    script = run(env={"_AFTERWORDS_COMPLETE": f"source_{shell}"}).out
    (tmp_path / "completion").write_text(script)
    start = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}[shell]
    env = {"AFTERWORDS_HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with Terminal(command=[program, *start], cwd=tmp_path, env=env) as terminal:
        if shell == "zsh":
            terminal.type("autoload -U compinit && compinit -D\n")
        terminal.type("source ./completion; echo so''urced\n")
        terminal.expect("sourced")
        terminal.type("afterwords voices show \t")
        terminal.expect(me.voice_id)
        terminal.type("\nexit\n")
        terminal.wait()
    assert not (tmp_path / "canary").exists()


def test_completion_is_empty_if_library_is_unreadable(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("backends = [")

    assert complete("afterwords say --voice ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_exists_for_every_shell(shell: str) -> None:
    assert "_AFTERWORDS_COMPLETE=complete_" in run(env={"_AFTERWORDS_COMPLETE": f"source_{shell}"}).out
