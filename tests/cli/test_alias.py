"""Test `afterwords alias` with a real server."""

from __future__ import annotations

import json

import httpx

from tests.cli.program import run
from tests.e2e.served import register


def test_alias_is_added_listed_and_removed(client: httpx.Client) -> None:
    voice_id = register(client, name="me")

    empty = run("alias")
    added = run("alias", "alloy", "me")
    listed = run("alias", "--json")
    table = run("alias")
    removed = run("alias", "alloy", "--remove")

    assert (empty.code, empty.out) == (0, "")
    assert "afterwords alias alloy me" in empty.err
    assert "alloy is spoken by me" in added.err
    assert json.loads(listed.out) == [{"alias": "alloy", "voice_id": voice_id, "voice": "me"}]
    assert table.out.split()[-3:] == ["alloy", "me", voice_id]
    assert "Removed" in removed.err
    assert run("alias", "--json").out == "[]\n"


def test_alias_errors_name_the_fix(client: httpx.Client) -> None:
    register(client, name="me")

    assert run("alias", "alloy").code == 2
    assert run("alias", "--remove").code == 2
    assert run("alias", "alloy", "mum").code == 4
    assert run("alias", "alloy", "--remove").code == 4
    taken = run("alias", "me", "me")
    assert (taken.code, "voice of this account has this name" in taken.err) == (5, True)
