"""The library: what it guarantees under concurrency, crashes and damage."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import wave
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest

from afterwords import disk
from afterwords.config import load_config
from afterwords.errors import (
    CorruptVoiceError,
    FileError,
    InvalidInputError,
    InvalidOptionError,
    LibraryError,
    VoiceExistsError,
    VoiceNotFoundError,
)
from afterwords.library.library import Library
from afterwords.library.links import Links
from afterwords.models import Consent, ConsentKind, ReferenceInfo, Voice, new_id, now
from afterwords.provenance import seal
from tests.error_codes import has_code

T = TypeVar("T")
WAV = b"RIFF canary-of-a-recording"  # the library keeps bytes; what a WAV is, riff judges


def voice_of(name: str, wav: bytes = WAV, **fields: object) -> Voice:
    info = ReferenceInfo(sha256=sha256(wav).hexdigest(), duration_s=12.5, sample_rate=24_000, grade="A")
    return Voice.model_validate(
        {"name": name, "backend": "lite", "ref_text": "canary text", "reference": info, **fields}
    )


def saved(library: Library, name: str, **options: bool) -> Voice:
    return library.save(
        voice_of(name), reference_wav=WAV, original=b"canary-original", original_suffix=".m4a", **options
    )


def names(library: Library) -> list[str]:
    return [voice.name for voice in library.list()]


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


# -- saving and finding --------------------------------------------------------------------------------------


def test_saved_voice_is_found_by_name_and_by_id(library: Library) -> None:
    voice = saved(library, "me")
    assert library.get("me") == library.get(voice.voice_id) == library.get(voice.voice_id.upper()) == voice
    assert library.reference(voice) == WAV
    assert library.list() == [voice]


def test_voice_is_a_folder_of_plain_files(library: Library) -> None:
    voice = saved(library, "me")
    library.save_prompt(voice, "lite-1-best", b"prompt")
    assert files_under(library.home) == {
        ".lock",
        "library.json",
        *(
            f"voices/{voice.voice_id}/{name}"
            for name in ("voice.json", "reference.wav", "original.m4a", "prompts/lite-1-best.bin")
        ),
    }
    assert json.loads((library.home / "library.json").read_text()) == {"schema": 2, "default": None}
    assert Voice.model_validate_json((library.home / "voices" / voice.voice_id / "voice.json").read_text()) == voice


def test_original_is_stored_byte_for_byte(library: Library, tmp_path: Path) -> None:
    recording = tmp_path / "me.M4A"
    recording.write_bytes(os.urandom(3_000_000))
    voice = library.save(voice_of("me"), reference_wav=WAV, original=recording, original_suffix=recording.suffix)
    kept = library.original_path(voice)
    assert kept is not None
    assert (kept.name, kept.read_bytes()) == ("original.m4a", recording.read_bytes())


def test_voice_without_an_original_has_none(library: Library) -> None:
    voice = library.save(voice_of("me"), reference_wav=WAV)
    assert library.original_path(voice) is None


@pytest.mark.parametrize("suffix", ["/../../x", ".a/b", "..", ".x" * 40, "\0"])
def test_invalid_suffix_is_ignored(library: Library, suffix: str) -> None:
    voice = library.save(voice_of("me"), reference_wav=WAV, original=b"o", original_suffix=suffix)
    kept = library.original_path(voice)
    assert kept == library.home / "voices" / voice.voice_id / "original"


def test_reading_creates_no_folder(library: Library) -> None:
    assert (library.list(), library.default()) == ([], None)
    with pytest.raises(VoiceNotFoundError):
        library.get("me")
    with pytest.raises(InvalidInputError, check=has_code("voice_required")):
        library.choose(None)
    assert not library.home.exists()


def test_name_is_unique_in_any_unicode_form(library: Library) -> None:
    saved(library, "Rene\u0301")
    with pytest.raises(VoiceExistsError):
        saved(library, "René")
    saved(library, "rené")
    assert names(library) == ["René", "rené"]
    assert library.get("Rene\u0301").name == "René"


@pytest.mark.parametrize("name", ["\x1b[2Jme", "me\u202e", "a\nb", ""])
def test_name_with_terminal_escapes_is_refused(library: Library, name: str) -> None:
    with pytest.raises(InvalidInputError, check=has_code("invalid_name")):
        library.save(voice_of("x").model_copy(update={"name": name}), reference_wav=WAV)
    saved(library, "me")
    with pytest.raises(InvalidInputError, check=has_code("invalid_name")):
        library.rename("me", name)
    assert names(library) == ["me"]


def test_unknown_name_error_is_printable_and_suggests(library: Library) -> None:
    for name in ("anna", "Anne", "otto"):
        saved(library, name)
    with pytest.raises(VoiceNotFoundError) as missing:
        library.get("ANN\x1b[2J"[:3])
    assert "'anna'" in missing.value.hint
    assert "'Anne'" in missing.value.hint
    assert "otto" not in missing.value.hint
    with pytest.raises(VoiceNotFoundError) as missing:
        library.get("\x1b[2J" + "x" * 60_000)
    assert missing.value.message.isprintable()
    assert len(missing.value.message) < 500


@pytest.mark.parametrize("voice_id", ["../../evil", "..", "", "A" * 36, "x/y", "x" * 60_000])
def test_id_that_is_not_a_uuid_never_becomes_a_path(library: Library, voice_id: str) -> None:
    with pytest.raises(InvalidOptionError):
        library.save(voice_of("me", voice_id=voice_id), reference_wav=WAV)
    with pytest.raises(VoiceNotFoundError):
        library.reference(voice_of("me", voice_id=voice_id))


def test_mismatched_recording_is_refused(library: Library) -> None:
    with pytest.raises(CorruptVoiceError):
        library.save(voice_of("me", b"another"), reference_wav=WAV)
    assert library.list() == []


def test_original_changed_after_sealing_is_refused(library: Library, tmp_path: Path) -> None:
    consent = Consent(kind=ConsentKind.SELF, stated_at=now())
    voice = voice_of("me", consent=consent)
    assert voice.ref_sha256
    sealed = seal(reference_sha256=voice.ref_sha256, original_sha256="0" * 64, window_start_s=0, consent=consent)
    (tmp_path / "me.wav").write_bytes(b"not what was sealed")
    with pytest.raises(FileError, match="changed"):
        library.save(voice.model_copy(update={"provenance": sealed}), reference_wav=WAV, original=tmp_path / "me.wav")
    assert library.list() == []


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_original_that_is_not_a_file_is_refused(library: Library, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "folder":
        source.mkdir()
    elif kind == "fifo":
        os.mkfifo(source)
    with pytest.raises(FileError):
        library.save(voice_of("me"), reference_wav=WAV, original=source)
    assert not list((library.home / "voices").iterdir())


# -- replacing, renaming, removing ---------------------------------------------------------------------------


def test_replacement_of_the_default_becomes_the_default(library: Library) -> None:
    old = saved(library, "me")
    library.set_default("me")
    new = saved(library, "me", replace=True)
    assert library.list() == [new]
    assert library.default() == new
    assert not (library.home / "voices" / old.voice_id).exists()


def test_replacement_may_have_the_same_id(library: Library) -> None:
    voice = saved(library, "me")
    library.set_default("me")
    again = voice_of("renamed", b"better", voice_id=voice.voice_id)
    with pytest.raises(VoiceExistsError):
        library.save(again, reference_wav=b"better")
    library.save(again, reference_wav=b"better", replace=True)
    assert library.default() == library.get("renamed")
    assert library.reference(again) == b"better"


def test_failed_replacement_keeps_the_old_voice(library: Library, tmp_path: Path) -> None:
    old = saved(library, "me")
    before = files_under(library.home)
    with pytest.raises(FileError):
        library.save(voice_of("me"), reference_wav=WAV, original=tmp_path / "missing.wav", replace=True)
    assert library.list() == [old]
    assert library.reference(old) == WAV
    assert files_under(library.home) == before


def test_replacing_a_missing_voice_saves_it(library: Library) -> None:
    voice = saved(library, "me", replace=True)
    assert library.list() == [voice]


def test_renamed_voice_keeps_everything_else(library: Library) -> None:
    voice = saved(library, "me")
    library.set_default("me")
    saved(library, "other")
    with pytest.raises(VoiceExistsError):
        library.rename("me", "other")
    assert library.rename("me", " myself ") == voice.model_copy(update={"name": "myself"})
    assert library.default() == library.get("myself") == library.get(voice.voice_id)
    assert library.rename("myself", "myself").name == "myself"


def test_removed_voice_leaves_no_files(library: Library) -> None:
    voice = saved(library, "me")
    library.set_default("me")
    library.save_prompt(voice, "lite-1-best", b"canary-prompt")
    library.remove("me")
    assert library.default() is None
    assert all(b"canary" not in path.read_bytes() for path in library.home.rglob("*") if path.is_file())
    for gone in (library.reference, library.original_path):
        with pytest.raises(VoiceNotFoundError):
            gone(voice)
    with pytest.raises(VoiceNotFoundError):
        library.remove("me")


# -- choosing ------------------------------------------------------------------------------------------------


def test_voice_is_chosen_by_name_then_default_then_alone(library: Library) -> None:
    first = saved(library, "a")
    assert library.choose(None) == first
    second = saved(library, "b")
    assert library.choose("b") == second
    library.set_default("b")
    assert library.choose(None) == second
    with pytest.raises(VoiceNotFoundError):
        library.choose("c")


def test_two_voices_without_default_need_a_name(library: Library) -> None:
    saved(library, "a")
    saved(library, "b")
    with pytest.raises(InvalidInputError, match="2 voices", check=has_code("voice_required")) as unclear:
        library.choose(None)
    assert "a, b" in unclear.value.hint


# -- prompts -------------------------------------------------------------------------------------------------


def test_prompt_is_read_by_its_key_only(library: Library) -> None:
    voice = saved(library, "me")
    library.save_prompt(voice, "lite-1-best", b"prompt")
    assert library.prompt(voice, "lite-1-best") == b"prompt"
    assert library.prompt(voice, "lite-2-best") is None
    assert library.prompt(voice_of("unknown"), "lite-1-best") is None


@pytest.mark.parametrize("position", [0, 31, 32, 37])
def test_prompt_with_a_flipped_byte_is_not_returned(library: Library, position: int) -> None:
    voice = saved(library, "me")
    library.save_prompt(voice, "k", b"prompt")
    path = library.home / "voices" / voice.voice_id / "prompts" / "k.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert library.prompt(voice, "k") is None
    library.save_prompt(voice, "k", b"prompt")
    assert library.prompt(voice, "k") == b"prompt"


@pytest.mark.parametrize("content", [b"", b"short"])
def test_truncated_prompt_is_not_returned(library: Library, content: bytes) -> None:
    voice = saved(library, "me")
    library.save_prompt(voice, "k", b"prompt")
    (library.home / "voices" / voice.voice_id / "prompts" / "k.bin").write_bytes(content)
    assert library.prompt(voice, "k") is None


@pytest.mark.parametrize("key", ["../../x", "/etc/x", ".", "", "a\0b", "x" * 300, "声"])
def test_unsafe_prompt_key_stays_in_its_folder(library: Library, key: str) -> None:
    voice = saved(library, "me")
    library.save_prompt(voice, key, b"prompt")
    assert library.prompt(voice, key) == b"prompt"
    assert len(list((library.home / "voices" / voice.voice_id / "prompts").iterdir())) == 1


# -- what is damaged -----------------------------------------------------------------------------------------


def break_voice(folder: Path, how: str) -> None:
    record = folder / "voice.json"
    match how:
        case "not JSON":
            record.write_bytes(b"\xff{")
        case "cut":
            record.write_bytes(record.read_bytes()[:40])
        case "nested":
            record.write_bytes(b"[" * 100_000)
        case "unknown field":
            record.write_text(json.dumps({**json.loads(record.read_text()), "owner": "x"}))
        case "of another voice":
            record.write_text(voice_of("thief").model_dump_json())
        case "a year too late":
            changed = {"created_at": "9999-12-31T23:59:59-23:59"}
            record.write_text(json.dumps({**json.loads(record.read_text()), **changed}))
        case "endless":
            record.write_text(record.read_text().replace("12.5", "Infinity"))
        case "no record":
            record.unlink()
        case "no recording":
            (folder / "reference.wav").unlink()
        case "a file":
            folder.rename(folder.with_name("away"))
            folder.write_bytes(b"")


@pytest.mark.parametrize(
    "how",
    [
        "not JSON",
        "cut",
        "nested",
        "unknown field",
        "a year too late",
        "endless",
        "of another voice",
        "no record",
        "no recording",
        "a file",
    ],
)
def test_damaged_voice_is_reported_and_hides_no_other(library: Library, how: str) -> None:
    broken, whole = saved(library, "broken"), saved(library, "whole")
    break_voice(library.home / "voices" / broken.voice_id, how)
    voices, damaged = library.scan()
    assert voices == [whole]
    assert [error.code for error in damaged] == ["corrupt_voice"]
    assert broken.voice_id in damaged[0].message
    assert library.choose(None) == whole
    with pytest.raises(CorruptVoiceError):
        library.get(broken.voice_id)


def in_time(work: Callable[[], T]) -> T:
    """Run work that might block on a special file, with a deadline."""
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is raised below
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return ended.result(30)


def make_special(path: Path, kind: str) -> None:
    if path.is_file():
        path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            here = Path.cwd()
            os.chdir(path.parent)  # the whole path is too long for a socket
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path.name)
            os.chdir(here)
        case "loop":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()


@pytest.mark.skipif(os.name == "nt", reason="Windows has none of these")
@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "loop", "folder"])
def test_special_files_are_damage_and_never_block(library: Library, kind: str) -> None:
    whole, record, recording = saved(library, "whole"), saved(library, "record"), saved(library, "recording")
    library.save_prompt(whole, "key", b"a prompt")
    voices = library.home / "voices"
    make_special(voices / record.voice_id / "voice.json", kind)
    make_special(voices / recording.voice_id / "reference.wav", kind)
    make_special(voices / whole.voice_id / "prompts" / "key.bin", kind)
    make_special(voices / new_id(), kind)

    listed, damaged = in_time(library.scan)
    assert listed == [whole]
    assert len(damaged) == 3
    assert in_time(lambda: library.prompt(whole, "key")) is None
    for name in ("library.json", "links.json", "config.toml"):
        make_special(library.home / name, kind)
    for work in (
        library.list,
        lambda: Links(library.home).voice_id("http://server", "id"),
        lambda: load_config({"AFTERWORDS_HOME": str(library.home)}),
    ):
        with pytest.raises(FileError):
            in_time(work)


def test_damaged_voice_is_removed_by_its_id(library: Library) -> None:
    voice = saved(library, "me")
    break_voice(library.home / "voices" / voice.voice_id, "cut")
    library.remove(voice.voice_id)
    assert library.scan() == ([], [])


def test_damaged_default_raises(library: Library) -> None:
    voice = saved(library, "me")
    saved(library, "other")
    library.set_default("me")
    break_voice(library.home / "voices" / voice.voice_id, "cut")
    with pytest.raises(CorruptVoiceError):
        library.choose(None)


def test_changed_recording_is_never_returned(library: Library) -> None:
    voice = saved(library, "me")
    (library.home / "voices" / voice.voice_id / "reference.wav").write_bytes(WAV + b"x")
    with pytest.raises(CorruptVoiceError, match="changed"):
        library.reference(voice)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"schema": "2", "default": null}', b'{"schema": 2, "default": 5}']
)
def test_damaged_library_json_loses_only_the_default(library: Library, content: bytes) -> None:
    voice = saved(library, "me")
    (library.home / "library.json").write_bytes(content)
    voices, damaged = library.scan()
    assert voices == [voice]
    assert "library.json" in damaged[0].message
    library.set_default("me")
    assert library.scan() == ([voice], [])


def test_newer_library_is_refused_and_unchanged(library: Library) -> None:
    voice = saved(library, "me")
    (library.home / "library.json").write_text('{"schema": 3, "default": null, "folders": []}')
    before = {path: path.stat().st_mtime_ns for path in library.home.rglob("*")}
    for attempt in (
        library.list,
        lambda: library.get("me"),
        lambda: library.remove("me"),
        lambda: library.reference(voice),
    ):
        with pytest.raises(LibraryError, match="schema 3", check=has_code("newer_library")):
            attempt()
    assert {path: path.stat().st_mtime_ns for path in library.home.rglob("*")} == before


def test_home_that_is_a_file_raises_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(FileError):
        Library(tmp_path / "home").list()
    with pytest.raises(FileError):
        saved(Library(tmp_path / "home"), "me")


def test_foreign_files_are_left_unchanged(library: Library) -> None:
    saved(library, "me")
    (library.home / "voices" / ".DS_Store").write_bytes(b"x")
    (library.home / "voices" / "notes").mkdir()
    assert library.scan()[1] == []
    saved(library, "other")
    assert (library.home / "voices" / ".DS_Store").exists()
    assert (library.home / "voices" / "notes").exists()


# -- permissions, locks, other processes ---------------------------------------------------------------------


def test_folders_and_files_are_private(library: Library) -> None:
    previous = os.umask(0)
    try:
        voice = saved(library, "me")
        library.save_prompt(voice, "k", b"prompt")
        library.rename("me", "myself")
        library.set_default("myself")
    finally:
        os.umask(previous)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [library.home, *library.home.rglob("*")]}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def test_locked_library_can_be_read_but_not_changed(library: Library) -> None:
    from filelock import FileLock

    voice = saved(library, "me")
    with FileLock(library.home / ".lock"):
        impatient = Library(library.home, lock_timeout_s=0)
        assert impatient.get("me") == voice
        with pytest.raises(LibraryError, check=has_code("library_busy")):
            impatient.rename("me", "other")
    assert names(library) == ["me"]


def child(code: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run code in another process, with the helpers of this file and a library."""
    setup = (
        "import importlib.util, os, signal, sys\n"
        "from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('helpers', {__file__!r})\n"
        "helpers = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(helpers)\n"
        "library = helpers.Library(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", setup + code, str(home), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> int:
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode in (0, -9), stderr
    return process.returncode


def test_concurrent_saves_and_renames_lose_nothing(library: Library) -> None:
    code = (
        "for n in range(12):\n"
        "    helpers.saved(library, f'{sys.argv[2]}{n}')\n"
        "    library.rename(f'{sys.argv[2]}{n}', f'{sys.argv[2]}{n} renamed')\n"
        "    helpers.saved(library, 'shared', replace=True)\n"
        "    library.set_default('shared')\n"
    )
    both = [child(code, library.home, "a"), child(code, library.home, "b")]
    assert [finished(process) for process in both] == [0, 0]
    assert names(library) == sorted([*(f"{who}{n} renamed" for who in "ab" for n in range(12)), "shared"])
    assert library.default() == library.get("shared")
    assert library.scan()[1] == []


def test_one_of_many_threads_gets_a_name(library: Library) -> None:
    taken: list[VoiceExistsError] = []

    def save() -> None:
        try:
            saved(library, "me")
        except VoiceExistsError as error:
            taken.append(error)

    threads = [threading.Thread(target=save) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 5
    assert names(library) == ["me"]


def test_reader_always_sees_a_voice_being_replaced(library: Library) -> None:
    voice = saved(library, "me")
    library.set_default("me")
    code = (
        "voice = library.get('me')\n"
        "for n in range(40):\n"
        "    library.save(voice, reference_wav=helpers.WAV, replace=True)\n"
        "    helpers.saved(library, 'me', replace=True)\n"
        "    library.save(voice, reference_wav=helpers.WAV, replace=True)\n"
    )
    replacing = child(code, library.home)
    while replacing.poll() is None:
        assert library.get("me").name == "me"
        assert library.scan()[1] == []
        assert library.default() is not None
    assert finished(replacing) == 0
    assert library.list() == [voice]


# A process kills itself right before its nth rename, removal or sync. A patch, because a kill from outside can't be
# aimed at each of these moments.
DIE_AT = (
    "import shutil\n"
    "moment, n_calls = int(sys.argv[2]), 0\n"
    "def dying(call):\n"
    "    def counted(*args, **options):\n"
    "        global n_calls\n"
    "        if n_calls == moment:\n"
    "            os.kill(os.getpid(), signal.SIGKILL)\n"
    "        n_calls += 1\n"
    "        return call(*args, **options)\n"
    "    return counted\n"
    "Path.rename, Path.replace = dying(Path.rename), dying(Path.replace)\n"
    "shutil.rmtree, os.fsync = dying(shutil.rmtree), dying(os.fsync)\n"
)


def killed_at_each_moment(folder: Path, setup: str, change: str, *, step: int = 1) -> list[Library]:
    """Set up and change one library without a kill and one for each moment; return all.

    The killed processes are forks of the first, which has imported everything.

    Args:
        step: How far the moments are apart before the last ten.
    """
    code = (
        f"{DIE_AT}folder = library.home\n"
        "def set_up_and_change(at):\n"
        "    global moment, n_calls\n"
        "    library = helpers.Library(folder / f'killed at {at}')\n"
        f"    {setup}\n"
        "    moment, n_calls = at, 0\n"
        f"    {change}\n"
        "    return n_calls\n"
        "end = set_up_and_change(-1)\n"
        f"for at in sorted({{*range(0, end, {step}), *range(max(0, end - 10), end)}}):\n"
        "    if not (forked := os.fork()):\n"
        "        set_up_and_change(at)\n"
        "        os._exit(1)\n"
        "    assert os.waitpid(forked, 0)[1] == signal.SIGKILL\n"
    )
    assert finished(child(code, folder, "-1")) == 0
    return [Library(home) for home in folder.iterdir()]


STEPS = [4, pytest.param(1, marks=pytest.mark.soak)]


@pytest.mark.parametrize("step", STEPS)
def test_kill_during_a_save_leaves_a_whole_voice_or_none(tmp_path: Path, step: int) -> None:
    seen: set[tuple[str, ...]] = set()
    for library in killed_at_each_moment(tmp_path, "pass", "helpers.saved(library, 'me')", step=step):
        voices, damaged = library.scan()
        assert damaged == []
        assert all(library.reference(voice) == WAV for voice in voices)
        assert not list(library.home.glob("voices/.*"))
        seen.add(tuple(voice.name for voice in voices))
    assert seen == {(), ("me",)}


@pytest.mark.parametrize("fields", ["", "voice_id=library.get('me').voice_id"], ids=["new ID", "same ID"])
@pytest.mark.parametrize("step", STEPS)
def test_kill_during_a_replacement_leaves_old_or_new(tmp_path: Path, fields: str, step: int) -> None:
    seen: set[bytes] = set()
    setup = f"helpers.saved(library, 'me'); library.set_default('me'); voice = helpers.voice_of('me', b'new', {fields})"
    change = "library.save(voice, reference_wav=b'new', replace=True)"
    for library in killed_at_each_moment(tmp_path, setup, change, step=step):
        voices, damaged = library.scan()
        assert (len(voices), damaged) == (1, [])
        assert library.default() == voices[0]
        assert [path.name for path in (library.home / "voices").iterdir()] == [voices[0].voice_id]
        seen.add(library.reference(voices[0]))
    assert seen == {WAV, b"new"}


def test_killed_removal_is_completed_at_the_next_open(library: Library) -> None:
    saved(library, "me")
    other = saved(library, "other")
    # 3 calls are spared: the rename to the trash and its two syncs come first, then the removal of its files.
    assert finished(child(DIE_AT + "library.remove('me')\n", library.home, "2")) == -9
    assert list(library.home.glob("voices/.trash-*"))
    assert library.list() == [other]
    assert [path.name for path in (library.home / "voices").iterdir()] == [other.voice_id]


def test_full_disk_raises_and_changes_nothing(library: Library) -> None:
    voice = saved(library, "me")
    before = files_under(library.home)
    code = (
        "import resource\n"
        "from afterwords.errors import StorageFullError\n"
        "wav = b'x' * 100_000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "for name, options in (('new', {}), ('me', {'replace': True})):\n"
        "    try:\n"
        "        library.save(helpers.voice_of(name, wav), reference_wav=wav, **options)\n"
        "    except StorageFullError:\n"
        "        continue\n"
        "    raise SystemExit('saved on a full disk')\n"
    )
    assert finished(child(code, library.home)) == 0
    assert library.list() == [voice]
    assert files_under(library.home) == before


# -- older libraries -----------------------------------------------------------------------------------------


def write_recording(path: Path, *, seconds: int = 6, rate: int = 24_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(i * 37 % 251 for i in range(2 * rate * seconds)))


def older_library(home: Path) -> None:
    """Create a home folder of afterwords 1.x: two valid profiles and three damaged ones."""
    voices = home / "voices"
    write_recording(voices / "me.wav")
    write_recording(voices / "audio" / "other.wav")
    whole = {"name": "me", "source_url": "https://example.com/v", "reference_audio": "me.wav", "segment_start_s": 12.5}
    profiles = {
        "me": {**whole, "reference_text": "I said this."},
        "other": {"name": "other", "reference_audio": "voices/audio/other.wav", "reference_text": ""},
        "second": {**whole, "reference_text": None},
        "lost": {**whole, "name": "lost", "reference_audio": "gone.wav"},
        "escape": {**whole, "name": "\x1b[2J"},
    }
    for stem, profile in profiles.items():
        (voices / f"{stem}.json").write_text(json.dumps(profile))
    (voices / "broken.json").write_bytes(b"{")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_under(folder)}


def test_old_library_is_migrated_and_a_copy_kept(library: Library) -> None:
    older_library(library.home)
    before = contents(library.home / "voices")
    voices, damaged = library.scan()
    assert [voice.name for voice in voices] == ["me", "me 2", "other"]
    assert len(damaged) == 3
    (copy,) = library.home.glob("voices-schema1-*")
    assert contents(copy) == before
    assert json.loads((library.home / "library.json").read_text())["schema"] == 2
    assert {path.name for path in library.home.iterdir()} == {".lock", "library.json", "voices", copy.name}


def test_old_profile_becomes_a_voice_of_known_facts(library: Library) -> None:
    from afterwords.audio.wav import read_wav

    older_library(library.home)
    recording = (library.home / "voices" / "me.wav").read_bytes()
    voice = library.get("me")
    assert (voice.backend, voice.lang, voice.ref_text) == ("lite", "en", "I said this.")
    assert voice.reference
    assert (voice.consent, voice.provenance, voice.reference.grade) == (None, None, None)
    assert (voice.reference.duration_s, voice.reference.sample_rate) == (6.0, 24_000)
    assert voice.metadata == {"source_url": "https://example.com/v", "segment_start_s": "12.5"}
    samples, rate = read_wav(library.reference(voice))
    assert (len(samples), rate) == (6 * 24_000, 24_000)
    original = library.original_path(voice)
    assert original is not None
    assert (original.name, original.read_bytes()) == ("original.wav", recording)


def test_old_profile_without_recording_is_reported(library: Library) -> None:
    older_library(library.home)
    assert len(library.scan()[1]) == len(library.scan()[1]) == 3
    kept = [
        json.loads(path.read_bytes() or b"0")
        for path in library.home.glob("voices/*/profile.json")
        if path.stat().st_size > 1
    ]
    assert "lost" in [profile["name"] for profile in kept]


def test_copy_of_an_old_library_is_private(library: Library) -> None:
    older_library(library.home)
    (library.home / "voices").chmod(0o755)
    (library.home / "voices" / "me.wav").chmod(0o644)
    library.list()
    tree = [path for path in library.home.rglob("*") if "voices" in path.relative_to(library.home).parts[0]]
    assert len(tree) > 10
    assert all(stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600) for path in tree)


def test_two_processes_migrate_an_old_library_once(library: Library) -> None:
    older_library(library.home)
    both = [child("library.list()\n", library.home) for _ in range(2)]
    assert [finished(process) for process in both] == [0, 0]
    assert names(library) == ["me", "me 2", "other"]
    assert len(list(library.home.glob("voices-schema1-*"))) == 1


@pytest.mark.parametrize("step", [24, pytest.param(6, marks=pytest.mark.soak)])
def test_kill_during_a_migration_loses_no_voice(tmp_path: Path, step: int) -> None:
    older_library(tmp_path / "before")
    before = contents(tmp_path / "before" / "voices")
    (tmp_path / "killed").mkdir()
    setup = "shutil.copytree(library.home.parents[1] / 'before', library.home)"
    # The copy and the new voices have many equal moments; the exchange at the end has few.
    for library in killed_at_each_moment(tmp_path / "killed", setup, "library.list()", step=step):
        assert names(library) == ["me", "me 2", "other"]
        assert before in [contents(copy) for copy in library.home.glob("voices-schema1-*")]
        assert not list(library.home.glob(".[!l]*"))


def test_library_with_unusable_lock_can_be_read(library: Library) -> None:
    voice = saved(library, "me")
    (library.home / "voices" / ".new-left-over").mkdir()
    (library.home / ".lock").unlink()
    (library.home / ".lock").mkdir()
    assert library.list() == [voice]
    with pytest.raises(FileError, check=has_code("unwritable_output")):
        library.remove("me")
    assert library.list() == [voice]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_created_parent_folders_are_private(tmp_path: Path) -> None:
    disk.make_folder(tmp_path / "a" / "b" / "models")
    for folder in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "models"):
        assert folder.stat().st_mode & 0o777 == 0o700
