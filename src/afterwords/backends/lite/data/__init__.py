"""Data files of the lite engine, with their SHA-256 in `hashes.json`.

Created by `scripts/make_lite_data.py`; NOTICE lists their sources.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

from afterwords.errors import ModelError, pip_install


def read_data(name: str) -> bytes:
    """Read a data file.

    Raises:
        ModelError: The file is missing or changed.
    """
    reinstall = pip_install(options="--force-reinstall --no-deps")
    try:
        content = (files(__package__) / name).read_bytes()
    except OSError as error:
        raise ModelError.for_file(name, why="is missing", hint=reinstall) from error
    hashes = json.loads((files(__package__) / "hashes.json").read_text("utf-8"))
    if hashlib.sha256(content).hexdigest() != hashes.get(name):
        raise ModelError.for_file(name, why="does not have the expected SHA-256", hint=reinstall)
    return content
