"""The data that the lite engine ships, each file named in `hashes.json` with its SHA-256.

Made by `scripts/make_lite_data.py`; where each comes from stands in NOTICE.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files

from afterwords.errors import ModelError, pip_install


def read_data(name: str) -> bytes:
    """Read one shipped file.

    Raises:
        ModelError: it is missing, or a byte of it has changed.
    """
    reinstall = pip_install(options="--force-reinstall --no-deps")
    try:
        content = (files(__package__) / name).read_bytes()
    except OSError as error:
        raise ModelError.for_file(name, why="is missing", hint=reinstall) from error
    if hashlib.sha256(content).hexdigest() != _hashes().get(name):
        raise ModelError.for_file(name, why="does not have the expected SHA-256", hint=reinstall)
    return content


@cache
def _hashes() -> dict[str, str]:
    hashes: dict[str, str] = json.loads((files(__package__) / "hashes.json").read_text("utf-8"))
    return hashes
