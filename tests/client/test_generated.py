"""The blocking client is generated from the asynchronous one."""

from __future__ import annotations

from scripts.make_client import CLIENT, generate, sources


def test_blocking_client_is_up_to_date() -> None:
    generated = {source.name: generate(source) for source in sources()}
    written = {path.name: path.read_text("utf-8") for path in (CLIENT / "_sync").glob("*.py")}
    del written["__init__.py"]
    assert written == generated, "run `make client`"
