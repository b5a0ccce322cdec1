"""Tests that deleted texts leave no byte in the database and its log."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from afterwords.models import new_id
from afterwords.server.records import StoredConsent, VoiceChanges
from tests.contracts.store_world import World, audio
from tests.server.store.second_process import second_process

pytestmark = pytest.mark.anyio


def find_words(folder: Path, *words: str) -> set[str]:
    """Return the words that any file contains."""
    files = b"".join(path.read_bytes() for path in folder.iterdir())
    return {word for word in words if word.encode() in files}


async def test_transcript_of_a_deleted_voice_leaves_no_byte(world: World, folder: Path) -> None:
    voice = await world.add_voice(ref_text="CANARY-TRANSCRIPT")
    job = await world.add_job(voice=voice, text="CANARY-WAITING")
    assert find_words(folder, "CANARY-TRANSCRIPT", "CANARY-WAITING") == {"CANARY-TRANSCRIPT", "CANARY-WAITING"}

    await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

    assert find_words(folder, "CANARY-TRANSCRIPT", "CANARY-WAITING", job.job_id + "-") == set()


async def test_replaced_transcript_leaves_no_byte(world: World, folder: Path) -> None:
    voice = await world.add_voice(ref_text="CANARY-TRANSCRIPT")

    changes = VoiceChanges(ref_text="ANOTHER-TRANSCRIPT")
    await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id)

    assert find_words(folder, "CANARY-TRANSCRIPT", "ANOTHER-TRANSCRIPT") == {"ANOTHER-TRANSCRIPT"}


async def test_text_of_a_final_job_leaves_no_byte_after_a_sweep(world: World, folder: Path) -> None:
    job = await world.add_claimed_job(text="CANARY-TEXT")
    await world.store.finish(job.job_id, 1, audio())

    await world.store.delete_expired()

    assert find_words(folder, "CANARY-TEXT") == set()


async def test_log_in_use_by_another_process_is_truncated_later(world: World, folder: Path) -> None:
    voice = await world.add_voice(ref_text="CANARY-TRANSCRIPT")
    with second_process("read", folder) as reader:
        assert reader.line() == "reading"
        await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)
        assert find_words(folder, "CANARY-TRANSCRIPT")
        reader.go_on()
        assert reader.line() == "done"

    await world.store.reap(max_attempts=3)

    assert find_words(folder, "CANARY-TRANSCRIPT") == set()


async def test_deleted_recording_of_consent_leaves_no_byte(world: World, folder: Path) -> None:
    ann, bob = await world.caller("ann"), await world.caller("bob")
    for caller, word in ((ann, b"CANARY-ANN!"), (ann, b"CANARY-TWO!"), (bob, b"CANARY-BOB!")):
        consent = StoredConsent(new_id(), caller.account_id, "me", "en", 64 * "0", world.clock.now())
        await world.store.add_consent(consent, 20_000 * word)
        assert await world.store.read_consent(consent.consent_id, account_id=caller.account_id) == 20_000 * word
    first = (await world.store.list_consents(account_id=ann.account_id, limit=9, after=None))[-1]

    assert not await world.store.remove_consent(first.consent_id, account_id=bob.account_id)
    assert await world.store.remove_consent(first.consent_id, account_id=ann.account_id)
    await world.store.close_account(bob.account_id)
    await world.store.delete_expired()

    assert find_words(folder, "CANARY-ANN!", "CANARY-TWO!", "CANARY-BOB!") == {"CANARY-TWO!"}


@pytest.mark.parametrize("seed", range(4))
async def test_removed_texts_leave_no_byte_when_rows_move(world: World, folder: Path, seed: int) -> None:
    """Rows that move between pages leave copies that secure_delete does not zero."""
    chance = random.Random(seed)
    ann = await world.caller()
    keeper = await world.add_voice(ann, ref_text=None)
    alive: dict[str, str] = {}
    gone: set[str] = set()
    for number in range(120):
        word = f"CANARY{seed}-{number:04}!"
        words = word * chance.choice([1, 2, 10, 100, 300])
        if chance.random() < 0.5:
            alive[(await world.add_job(ann, keeper, text=words)).job_id] = word
        else:
            alive[(await world.add_voice(ann, ref_text=words)).voice_id] = word
        while len(alive) > 20:
            name = chance.choice(sorted(alive))
            if await world.store.cancel(name, account_id=ann.account_id) is None:
                await world.store.delete_voice(name, account_id=ann.account_id)
            gone.add(alive.pop(name))
    await world.store.delete_expired()

    assert find_words(folder, *gone) == set()
    assert find_words(folder, *alive.values()) == set(alive.values())


def test_secure_delete_alone_leaves_copies_of_moved_rows(tmp_path: Path) -> None:
    """If this fails, SQLite zeroes such copies, and `VanishingText` needs no margin."""
    assert any(copies_left(tmp_path / f"{seed}", random.Random(seed)) for seed in range(60))


def copies_left(folder: Path, chance: random.Random) -> set[str]:
    """Return the removed texts that the file contains after some hundred inserts and deletes."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    for setting in ("secure_delete = ON", "synchronous = OFF"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("CREATE TABLE texts (seq INTEGER PRIMARY KEY AUTOINCREMENT, status TEXT, text BLOB)")
    alive: dict[int, str] = {}
    gone: set[str] = set()
    for number in range(1, 300):
        word = f"CANARY-{number:04}!"
        text = word.encode() * chance.choice([1, 2, 10, 100, 400])
        connection.execute("INSERT INTO texts VALUES (?, 'pending', ?)", [number, text])
        alive[number] = word
        if chance.random() < 0.7:
            seq = chance.choice(sorted(alive))
            if chance.random() < 0.5:
                connection.execute("UPDATE texts SET text = NULL, status = 'ready' WHERE seq = ?", [seq])
            else:
                connection.execute("DELETE FROM texts WHERE seq = ?", [seq])
            gone.add(alive.pop(seq))
    connection.close()
    return find_words(folder, *gone)
