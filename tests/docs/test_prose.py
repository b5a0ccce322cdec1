"""The check of banned words finds them in prose and in names, and accepts plain English."""

from __future__ import annotations

from scripts.check_prose import find

BANNED = (
    "What a key shall be.",
    "Whoever waits is told.",
    "There are none left; this is no voice.",
    "def test_what_came_is_heard() -> None:",
    "class JobDesk:",
    "The file lies beside the other one.",
    "Normalise the colour.",
    "It takes that one.",
)
ALLOWED = (
    "There is no voice, so it is no longer offered, and it is no-op.",
    "assert voice is None",
    "Limit each key so that one account can't block others.",
    "A round trip to the server, and a round_trip_ms.",
    "Return the desktop path. Besides, synthesise is quoted.  # quoted",
    "Turn it off, recommend a fix, and renew the lease.",
)


def test_banned_words_are_found() -> None:
    assert [line for line in BANNED if not list(find(line))] == []


def test_plain_lines_are_accepted() -> None:
    assert {line: list(find(line)) for line in ALLOWED if list(find(line))} == {}
