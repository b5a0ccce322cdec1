"""Valid paths of blobs. Every storage checks a path before it does anything."""

from __future__ import annotations

import re
from hashlib import sha256

_PATH = re.compile(r"[a-z0-9.-]+(?:/[a-z0-9.-]+)*")

INLINE_MAX_BYTES = 1 << 20
"""Larger blobs are read in threads: reading and hashing this much blocks for about 1 ms."""


def is_path(path: str) -> bool:
    """Return whether a path is valid: parts of `[a-z0-9.-]`, none of which is empty, is `.`, or contains `..`."""
    return bool(_PATH.fullmatch(path)) and ".." not in path and "." not in path.split("/")


def check_path(path: str) -> str:
    """Return the path.

    Raises:
        ValueError: It is invalid. Paths consist of UUIDs and hex digits, so this is a bug in the caller.
    """
    if not is_path(path):
        raise ValueError(f"not the path of a blob: {path[:200]!a}")
    return path


def check_prefix(prefix: str) -> str:
    """Return the path of a folder without a trailing slash.

    Raises:
        ValueError: It is invalid.
    """
    return check_path(prefix.removesuffix("/"))


def has_digest(data: bytes, digest: str | None) -> bool:
    """Return whether the data has this SHA-256. None matches any data."""
    return digest is None or sha256(data).hexdigest() == digest
