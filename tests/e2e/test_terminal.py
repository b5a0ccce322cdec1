"""Test the command line at a terminal: questions, progress, Ctrl-C, microphone and loudspeaker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals that Python can open", allow_module_level=True)

import fcntl

import afterwords as aw
from afterwords.audio.audio import decode
from afterwords.audio.effects import resample
from afterwords.audio.wav import Samples
from afterwords.local import library
from afterwords.models import Voice
from tests.audio.test_devices import CARD, NO_CARD, needs_alsa
from tests.cli.program import COMMAND, environment, list_files, run
from tests.conftest import READER
from tests.e2e.terminal import CTRL_C, CTRL_U, Terminal

pytestmark = pytest.mark.usefixtures("tone")

RATE = 48_000  # Hz, the rate that a recording requests
CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"
HANGING_ENGINE = """
import threading
from afterwords.backends.tone import ToneEngine

class Engine(ToneEngine):
    name = "hanging"
    backends = ("hanging",)

    def prepare(self, reference, progress=None, *, fast=False):
        progress(0.5, "hanging")
        threading.Event().wait()
"""


@pytest.fixture
def hanging(tmp_path: Path) -> dict[str, str]:
    """Return settings with an engine that never finishes preparing."""
    info = tmp_path / "plugins" / "hanging-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[afterwords.engines]\nhanging = hanging:Engine\n")
    (tmp_path / "plugins" / "hanging.py").write_text(HANGING_ENGINE)
    return {"PYTHONPATH": str(tmp_path / "plugins"), "AFTERWORDS_BACKENDS": "hanging"}


# -- tables ---------------------------------------------------------------------------------------------------


def test_table_is_wrapped_between_words() -> None:
    facts = json.loads(run("backends", "--json", env={"AFTERWORDS_BACKENDS": "qwen3-1.7b"}).out)
    about = f"{facts[0]['reason']}; fix: {facts[0]['fix']}"
    with Terminal("backends", env={"COLUMNS": "70", "AFTERWORDS_BACKENDS": "qwen3-1.7b"}) as terminal:
        assert terminal.wait() == 0
    lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= 70
    assert len(about) > 70
    assert " ".join(terminal.text.split()).endswith(about)


# -- questions ------------------------------------------------------------------------------------------------


def test_consent_is_asked_until_valid(tmp_path: Path) -> None:
    with Terminal("clone", READER, "--name", "me", stdout=tmp_path / "out") as terminal:
        terminal.expect("public-domain  a recording in the public domain")
        terminal.expect("Whose voice is this?")
        terminal.type("whatever\n")
        terminal.expect("Whose voice is this?")
        terminal.type("granted\n")
        terminal.expect("✓ me: grade B")
        assert terminal.wait() == 0

    (voice,) = aw.voices()
    assert voice.consent is not None
    assert voice.consent.kind == "granted"
    assert (tmp_path / "out").read_text() == "me\n"


@pytest.mark.parametrize(("keys", "code"), [(CTRL_C, 130), ("\x04", 2)], ids=["ctrl-c", "ctrl-d"])
def test_unanswered_question_exits(keys: str, code: int, home: Path) -> None:
    with Terminal("clone", READER, "--name", "me") as terminal:
        terminal.expect("Whose voice is this?")
        assert terminal.type_until_end(keys) == code

    assert list_files(home) == []


def test_name_in_use_is_refused_before_questions(me: Voice) -> None:
    with Terminal("clone", READER, "--name", "me") as terminal:
        assert terminal.wait() == 5

    assert "Whose voice" not in terminal.text


@pytest.mark.usefixtures("whisper")
@pytest.mark.parametrize("is_piped", [False, True], ids=["terminal", "stdout-elsewhere"])
def test_transcript_can_be_corrected(is_piped: bool, tmp_path: Path) -> None:
    out = tmp_path / "out" if is_piped else None
    with Terminal("clone", READER, "--name", "me", "--consent", "public-domain", stdout=out) as terminal:
        terminal.expect("Transcript (? marks doubtful words):")
        terminal.expect("then press Enter:")
        if not is_piped:
            terminal.expect("amiable")  # the line that is edited
        terminal.type(f"{CTRL_U}It was corrected.\n")
        assert terminal.wait() == 0

    assert aw.voices()[0].ref_text == "It was corrected."


@pytest.mark.usefixtures("whisper")
def test_enter_accepts_transcript() -> None:
    with Terminal("clone", READER, "--name", "me", "--consent", "public-domain") as terminal:
        terminal.expect("then press Enter:")
        terminal.type("\n")
        assert terminal.wait() == 0

    assert "amiable" in str(aw.voices()[0].ref_text)


@pytest.mark.parametrize(("answer", "is_removed"), [("yes", True), ("no", False), ("", False)])
def test_removal_asks_for_confirmation(answer: str, is_removed: bool, me: Voice) -> None:
    with Terminal("voices", "rm", me.voice_id) as terminal:
        terminal.expect("This removes me with its recordings, for good.")
        terminal.type(f"{answer}\n")
        assert terminal.wait() == (0 if is_removed else 1)

    assert ("Nothing was removed." in terminal.text) is not is_removed
    assert aw.voices() == ([] if is_removed else [me])


def test_terminal_is_refused_for_audio(me: Voice) -> None:
    for args in (("say", "Hello", "-o", "-"), ("clone", "-", "--name", "you")):
        with Terminal(*args) as terminal:
            assert terminal.wait() == 2
        assert "Error (usage): " in terminal.text
        assert "Fix:" in terminal.text


# -- progress and Ctrl-C --------------------------------------------------------------------------------------


def test_ctrl_c_while_speaking_keeps_existing_file(me: Voice, tmp_path: Path) -> None:
    (tmp_path / "hello.wav").write_bytes(b"kept")
    words = "the canary meets fault-hang"
    with Terminal("say", words, "-o", "hello.wav", cwd=tmp_path, env={"AFTERWORDS_TESTING": "1"}) as terminal:
        terminal.expect("speaking")
        terminal.expect("%")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130

    assert terminal.text.rstrip().endswith("Stopped.")
    assert "canary" not in terminal.text
    assert (tmp_path / "hello.wav").read_bytes() == b"kept"
    assert not list(tmp_path.glob("*.part"))
    assert terminal.raw.rfind(CURSOR_HIDDEN) < terminal.raw.rfind(CURSOR_SHOWN)


def test_ctrl_c_while_cloning_leaves_no_files(home: Path, hanging: dict[str, str]) -> None:
    with Terminal("clone", READER, "--name", "me", "--consent", "self", env=hanging) as terminal:
        terminal.expect("hanging")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130

    assert list_files(home) == []


def test_pipe_shows_no_progress(me: Voice, tmp_path: Path) -> None:
    command = [*COMMAND, "say", "a text of some length, spoken in chunks", "-o", "a.wav"]
    coloured = environment({"FORCE_COLOR": "1"})
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=coloured)

    assert "✓" in done.stderr
    assert "speaking" not in done.stderr


# -- the sound card -------------------------------------------------------------------------------------------


PIPE_BYTES = 2**20  # the maximum without privileges on Linux: 5.46 s of float32


class Microphone:
    """A sound card that reads from a pipe and blocks when it is empty.

    Write before the card reads, or it gets half a block and counts it as a whole one.
    """

    def __init__(self, folder: Path) -> None:
        os.mkfifo(folder / "microphone.raw")
        self._pipe = os.open(folder / "microphone.raw", os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        (folder / "asoundrc").write_text(CARD)
        self.settings = {"ALSA_CONFIG_PATH": str(folder / "asoundrc")}

    def write(self, samples: Samples) -> None:
        assert os.write(self._pipe, samples.tobytes()) == samples.nbytes

    def close(self) -> None:
        os.close(self._pipe)


@pytest.fixture
def microphone(tmp_path: Path) -> Iterator[Microphone]:
    opened = Microphone(tmp_path)
    yield opened
    opened.close()


def speech(duration_s: float) -> Samples:
    reader = decode(READER)
    return resample(reader.samples, reader.sample_rate, RATE)[: round(duration_s * RATE)]


def silence(duration_s: float) -> Samples:
    return np.zeros(round(duration_s * RATE), np.float32)


RECORD = ("clone", "--record", "--name", "me", "--consent", "self")


@needs_alsa
def test_voice_is_cloned_from_the_microphone(microphone: Microphone, tmp_path: Path) -> None:
    microphone.write(speech(5.4))
    with Terminal(*RECORD, cwd=tmp_path, stdout=tmp_path / "out", env=microphone.settings) as terminal:
        terminal.expect("Read this aloud, then press Enter:")
        terminal.expect("5.4 s")
        terminal.type("\n")
        microphone.write(silence(0.1))
        terminal.expect("✓ me: grade")
        assert terminal.wait() == 0

    (voice,) = aw.voices()
    original = library().original_path(voice)
    assert original is not None
    assert decode(original).duration_s == pytest.approx(5.4, abs=0.2)
    assert (tmp_path / "out").read_text() == "me\n"
    assert not list(tmp_path.glob("*-recording*.wav"))


@needs_alsa
def test_short_recording_is_saved(home: Path, microphone: Microphone, tmp_path: Path) -> None:
    (tmp_path / "my-voice-recording.wav").write_bytes(b"of another day")
    record = ("clone", "--record", "--name", "my/voice", "--consent", "self")
    microphone.write(speech(2))
    with Terminal(*record, cwd=tmp_path, env=microphone.settings) as terminal:
        terminal.expect("press Enter:")
        terminal.expect("2.0 s")
        terminal.type("\n")
        microphone.write(silence(0.1))
        terminal.expect("Your recording is saved: ")
        terminal.expect("my-voice-recording-2.wav")
        terminal.expect("Error (too_short): the recording lasts 2.")
        assert terminal.wait() == 5

    assert decode(tmp_path / "my-voice-recording-2.wav").duration_s == pytest.approx(2, abs=0.2)
    assert (tmp_path / "my-voice-recording.wav").read_bytes() == b"of another day"
    assert list_files(home) == []


@needs_alsa
def test_ctrl_c_while_cloning_saves_recording(
    home: Path, microphone: Microphone, tmp_path: Path, hanging: dict[str, str]
) -> None:
    microphone.write(speech(5.4))
    with Terminal(*RECORD, cwd=tmp_path, env={**microphone.settings, **hanging}) as terminal:
        terminal.expect("press Enter:")
        terminal.expect("5.4 s")
        terminal.type("\n")
        microphone.write(silence(0.1))
        terminal.expect("hanging")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130

    assert decode(tmp_path / "me-recording.wav").duration_s == pytest.approx(5.4, abs=0.2)
    assert list_files(home) == []


@needs_alsa
def test_ctrl_c_while_recording_saves_nothing(home: Path, microphone: Microphone, tmp_path: Path) -> None:
    microphone.write(speech(2))
    with Terminal(*RECORD, cwd=tmp_path, env=microphone.settings) as terminal:
        terminal.expect("press Enter:")
        terminal.expect("2.0 s")
        terminal.type(CTRL_C)
        microphone.write(silence(0.1))
        assert terminal.wait() == 130

    assert list_files(home) == []
    assert not list(tmp_path.glob("*.wav"))


@needs_alsa
def test_missing_microphone_is_reported(tmp_path: Path) -> None:
    (tmp_path / "asoundrc").write_text(NO_CARD)
    with Terminal(*RECORD, env={"ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")}) as terminal:
        assert terminal.wait() == 1

    assert "Error (no_audio_device): Recording needs an audio device" in terminal.text
    assert "Fix: give a recorded file instead of --record." in terminal.text


@needs_alsa
@pytest.mark.parametrize("options", [(), ("-o", "hello.wav", "--play")], ids=["played", "played-and-written"])
def test_speech_is_played_sample_for_sample(options: tuple[str, ...], me: Voice, tmp_path: Path) -> None:
    (tmp_path / "asoundrc").write_text(CARD)
    (tmp_path / "microphone.raw").touch()
    done = run(
        "say", "Hello, this is my voice.", *options, cwd=tmp_path, env={"ALSA_CONFIG_PATH": str(tmp_path / "asoundrc")}
    )

    assert (done.code, done.out) == (0, "")
    spoken = aw.say("Hello, this is my voice.").samples
    played = np.frombuffer((tmp_path / "played.raw").read_bytes(), np.float32)
    np.testing.assert_allclose(np.trim_zeros(played), np.trim_zeros(spoken), atol=1e-6)
    assert (tmp_path / "hello.wav").exists() is bool(options)
