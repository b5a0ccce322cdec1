"""Test `afterwords voices export` and `import` between two home folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.library.bundle import BundledPrompt, pack
from afterwords.library.library import Library
from afterwords.local import library
from afterwords.models import Voice
from tests.cli.program import run

HOSTILE = "\x1b]0;owned\x07\u202e"


@pytest.fixture
def other_home(tmp_path: Path) -> dict[str, str]:
    """Return the settings of another home folder."""
    return {"AFTERWORDS_HOME": str(tmp_path / "elsewhere")}


@pytest.fixture
def exported(me: Voice, tmp_path: Path) -> Path:
    assert run("voices", "export", "me", cwd=tmp_path).code == 0
    return tmp_path / "me.afterwords"


def test_exported_voice_speaks_in_another_home(
    me: Voice, exported: Path, other_home: dict[str, str], tmp_path: Path
) -> None:
    done = run("voices", "import", exported, env=other_home)

    assert (done.code, done.out) == (0, "me\n")
    assert "Next: afterwords say" in done.err
    assert Library(tmp_path / "elsewhere").get("me") == me
    here = run("say", "Hello from here.", "-o", "-", "--format", "pcm").stdout
    there = run("say", "Hello from here.", "-o", "-", "--format", "pcm", env=other_home).stdout
    assert len(here) > 10_000
    assert here == there


def test_export_includes_prompts(me: Voice, exported: Path, other_home: dict[str, str], tmp_path: Path) -> None:
    prompt = library().prompt(me, "tone-1-fast") or library().prompt(me, "tone-1-full")
    assert prompt is not None
    run("voices", "import", exported, env=other_home)
    there = Library(tmp_path / "elsewhere")
    assert prompt in (there.prompt(me, "tone-1-fast"), there.prompt(me, "tone-1-full"))
    assert "Preparing" not in run("say", "Hello.", "-o", "-", env=other_home).err

    other = pack(me, library().reference(me), [BundledPrompt("tone", "0", is_fast=False, data=prompt)])
    (tmp_path / "other.afterwords").write_bytes(other)
    third = {"AFTERWORDS_HOME": str(tmp_path / "third")}
    message = run("voices", "import", tmp_path / "other.afterwords", env=third).err
    assert "The prompt for tone was dropped: it is from another version of the engine." in message
    assert "Preparing the voice for tone, once" in run("say", "Hello.", "-o", "-", env=third).err


def test_export_prints_path_and_warning(me: Voice, tmp_path: Path) -> None:
    done = run("voices", "export", "me", cwd=tmp_path)

    assert (done.code, done.out) == (0, "me.afterwords\n")
    assert "treat it like the recording" in done.err
    assert done.err.endswith("afterwords voices import me.afterwords\n")
    assert (tmp_path / "me.afterwords").stat().st_mode & 0o077 == 0
    facts = json.loads(run("voices", "export", me.voice_id, "-o", "-me", "--json", cwd=tmp_path).out)
    assert facts == {
        "file": "-me",
        "size_bytes": (tmp_path / "-me").stat().st_size,
        "name": "me",
        "voice_id": me.voice_id,
    }


def test_export_and_import_work_with_pipes(me: Voice, other_home: dict[str, str]) -> None:
    packed = run("voices", "export", "me", "-o", "-")

    assert packed.err == ""
    assert run("voices", "import", "-", "--json", stdin=packed.stdout, env=other_home).code == 0


def test_export_without_out_keeps_existing_file(exported: Path, tmp_path: Path) -> None:
    exported.write_bytes(b"kept")

    message = run("voices", "export", "me", cwd=tmp_path).expect_error(5, "unwritable_output")
    assert "me.afterwords can't be written: it already exists." in message
    assert "to replace it, add -o me.afterwords" in message
    assert exported.read_bytes() == b"kept"

    assert run("voices", "export", "me", "-o", "me.afterwords", cwd=tmp_path).code == 0
    assert exported.read_bytes() != b"kept"


def test_hostile_voice_name_makes_safe_file_name(home: Path, me: Voice, tmp_path: Path) -> None:
    file = home / "voices" / me.voice_id / "voice.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": f"../{HOSTILE}"}))

    done = run("voices", "export", me.voice_id, cwd=tmp_path)

    assert done.out == "0-owned.afterwords\n"
    assert not set(HOSTILE) & set("\x1b\x07\u202e") & set(done.out + done.err)
    run("voices", "import", tmp_path / "0-owned.afterwords").expect_error(5, "invalid_bundle")


@pytest.mark.parametrize("where", [60, 0.5], ids=["manifest", "recording"])
def test_altered_file_is_refused(where: float, exported: Path, other_home: dict[str, str], tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    data[int(where * len(data)) if where < 1 else int(where)] ^= 1
    exported.write_bytes(data)

    run("voices", "import", exported, env=other_home).expect_error(5, "invalid_bundle")

    assert not (tmp_path / "elsewhere" / "voices").exists()


@pytest.mark.parametrize("content", [b"PK\3\4", b"PK\3\4" * (6 * 2**20)], ids=["short", "long"])
def test_other_zip_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)

    run("voices", "import", tmp_path / "x").expect_error(5, "invalid_bundle")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    run("voices", "import", tmp_path / "x").expect_error(5, "unreadable_file")
    run("voices", "import", tmp_path).expect_error(5, "unreadable_file")


def test_unknown_voice_is_not_exported(me: Voice, tmp_path: Path) -> None:
    run("voices", "export", "mee", cwd=tmp_path).expect_error(4, "voice_not_found")
    run("voices", "export", "me", "-o", tmp_path / "no" / "x").expect_error(5, "unwritable_output")
    assert not list(tmp_path.glob("*.afterwords"))


def test_import_replaces_name_in_use_only_with_replace(
    me: Voice, exported: Path, other_home: dict[str, str], tmp_path: Path
) -> None:
    other = aw.clone(library().reference(me), name="me2", consent="synthetic")
    assert run("voices", "export", "me2", "-o", tmp_path / "other", cwd=tmp_path).code == 0

    message = run("voices", "import", tmp_path / "other", "--name", "me", "--replace").expect_error(5, "voice_exists")
    assert "under another name" in message
    run("voices", "rm", "me2", "--yes")
    message = run("voices", "import", tmp_path / "other", "--name", "me").expect_error(5, "voice_exists")
    assert "--replace" in message
    assert run("voices", "import", tmp_path / "other", "--name", "me", "--replace").out == "me\n"

    (voice,) = library().list()
    assert (voice.name, voice.voice_id) == ("me", other.voice_id)


def test_import_of_same_voice_keeps_its_original(me: Voice, exported: Path) -> None:
    before = library().original_path(me)
    assert before is not None
    content = before.read_bytes()

    assert run("voices", "import", exported).out == "me\n"
    assert run("voices", "import", exported, "--name", "mine", "--replace").out == "mine\n"

    (voice,) = library().list()
    after = library().original_path(voice)
    assert after is not None
    assert (voice.name, after.read_bytes()) == ("mine", content)


def test_import_renames_voice(exported: Path, other_home: dict[str, str]) -> None:
    assert run("voices", "import", exported, "--name", " you ", env=other_home).out == "you\n"
    run("voices", "import", exported, "--name", "a\x07", env=other_home).expect_error(5, "invalid_name")
