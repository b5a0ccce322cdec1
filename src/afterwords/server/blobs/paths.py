"""Which paths a blob may have: the one rule that every storage holds before it touches anything."""

from __future__ import annotations

import re
from hashlib import sha256

_PATH = re.compile(r"[a-z0-9.-]+(?:/[a-z0-9.-]+)*")

INLINE_MAX_BYTES = 1 << 20
"""What is larger takes time: reading and hashing that much blocks for about a millisecond."""


def is_path(path: str) -> bool:
    """Whether this may be the path of a blob: parts of `[a-z0-9.-]`, none of them empty, `.` or holding `..`."""
    return bool(_PATH.fullmatch(path)) and ".." not in path and "." not in path.split("/")


def check_path(path: str) -> str:
    """Return the path of a blob.

    Raises:
        ValueError: no blob can have it. Paths are made of UUIDs and hex, so whoever made this one has a bug.
    """
    if not is_path(path):
        raise ValueError(f"not the path of a blob: {path[:200]!a}")
    return path


def check_prefix(prefix: str) -> str:
    """Return the path of a folder, without the slash that it may end in.

    Raises:
        ValueError: no folder can have it.
    """
    return check_path(prefix.removesuffix("/"))


def is_what_it_was(data: bytes, digest: str | None) -> bool:
    """Whether these are the bytes with this SHA-256; without one they are."""
    return digest is None or sha256(data).hexdigest() == digest
