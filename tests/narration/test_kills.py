"""Test that a narration survives SIGKILL and Ctrl-C: every sentence is in the book exactly once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from afterwords.audio.audio import decode
from tests.cli.program import COMMAND, environment
from tests.narration.test_narrator import spoken_s

pytestmark = pytest.mark.usefixtures("me")

DEADLINE_S = 300
PAGE_CHARS = 1_800
MAX_GROWTH_MB = 60
"""Growth of memory allowed for ten hours of audio."""


def make_book(path: Path, n_chapters: int, n_sentences: int, *, words: str = "") -> list[str]:
    """Write a book of distinct sentences, and return them with its headings."""
    lines = []
    for chapter in range(1, n_chapters + 1):
        lines.append(f"# Chapter {chapter}")
        lines += [f"Sentence {n} of chapter {chapter} is {words}here." for n in range(1, n_sentences + 1)]
    path.write_text("\n\n".join(lines), "utf-8")
    return [line.removeprefix("# ") for line in lines]


def start(book: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "narrate", str(book), "-o", str(out), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())


def n_parts(out: Path) -> int:
    return len(list(out.with_name(f"{out.name}.sentences").glob("*.wav")))


def stop_after(process: subprocess.Popen[bytes], out: Path, n_sentences: int, sent: signal.Signals) -> tuple[int, str]:
    """Send a signal once more sentences are on the disk; return how many are, and stderr."""
    wanted = n_parts(out) + n_sentences
    deadline = time.monotonic() + DEADLINE_S
    while n_parts(out) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    _, err = process.communicate(timeout=DEADLINE_S)
    return n_parts(out), err.decode()


def finish(process: subprocess.Popen[bytes]) -> dict[str, object]:
    out, err = process.communicate(timeout=3600)
    assert process.returncode == 0, err.decode()
    done: dict[str, object] = json.loads(out)
    return done


def test_killed_narration_has_every_sentence_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    texts = make_book(tmp_path / "book.md", 2, 24, words="fault-slow ")  # many more than are spoken at once
    out = tmp_path / "book.flac"

    killed, _ = stop_after(start(tmp_path / "book.md", out), out, 2, signal.SIGKILL)
    interrupted, err = stop_after(start(tmp_path / "book.md", out), out, 2, signal.SIGINT)
    assert f"{interrupted:,} sentences are kept in " in err
    assert not out.exists()
    done = finish(start(tmp_path / "book.md", out))

    assert 2 <= killed < interrupted < len(texts)
    assert (done["sentences"], done["spoken"]) == (len(texts), len(texts) - interrupted)
    once = tmp_path / "once.flac"
    assert finish(start(tmp_path / "book.md", once))["spoken"] == len(texts)
    np.testing.assert_array_equal(decode(out).samples, decode(once).samples)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def audio_of(path: Path) -> str:
    """Return a hash of the encoded audio of a file, without its tags."""
    digest = sha256()
    with av.open(path) as file:
        for packet in file.demux(audio=0):
            digest.update(bytes(packet))
    return digest.hexdigest()


@pytest.mark.soak
def test_long_book_survives_ten_kills_in_flat_memory(tmp_path: Path) -> None:
    words = "one of many sentences that fill the pages of a long and rather dull book, and it is "
    texts = make_book(tmp_path / "book.md", 30, 155, words=words)
    assert sum(map(len, texts)) >= 300 * PAGE_CHARS
    out, once = tmp_path / "book.flac", tmp_path / "once.flac"
    chance = random.Random(18)

    kept = 0
    for _ in range(10):
        process = start(tmp_path / "book.md", out)
        now_kept, _err = stop_after(process, out, chance.randrange(1, 400), signal.SIGKILL)
        assert now_kept >= kept
        kept = now_kept
    done = finish(start(tmp_path / "book.md", out))
    assert (done["sentences"], done["spoken"]) == (len(texts), len(texts) - kept)

    process = start(tmp_path / "book.md", once)
    watched = psutil.Process(process.pid)
    sizes_mb: list[float] = []
    while process.poll() is None:
        try:
            sizes_mb.append(watched.memory_info().rss / 2**20)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            break
        time.sleep(0.2)
    finish(process)
    started_mb = sizes_mb[len(sizes_mb) // 20]
    assert max(sizes_mb) < started_mb + MAX_GROWTH_MB

    assert audio_of(out) == audio_of(once)
    with av.open(once) as file:
        assert len(file.chapters()) == len(texts) // 156
        assert (file.duration or 0) / 1e6 > sum(map(spoken_s, texts))
