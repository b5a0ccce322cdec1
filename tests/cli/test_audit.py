"""Tests of `afterwords audit`: actions of the command line and over HTTP, as a server recorded them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.program import run
from tests.e2e.served import register, serving


def test_audit_names_who_did_what(tmp_path: Path) -> None:
    home = {"AFTERWORDS_HOME": str(tmp_path / "home")}
    assert run("audit", "list", env=home).err.splitlines()[-1] == "The audit log is empty."
    made = json.loads(run("keys", "create", "--label", "a label", "--json", env=home).out)
    with serving(tmp_path / "home", {"AFTERWORDS_WORKERS": "0"}) as served, served.client(made["api_key"]) as client:
        voice_id = register(client)
        deleted = client.delete(f"/v1/voices/{voice_id}")
        with served.admin as admin:
            revoked = admin.delete(f"/v1/keys/{made['key_id']}")
        assert (deleted.status_code, revoked.status_code) == (204, 204)

    done = run("audit", "list", "--json", env=home)

    entries = [
        (entry["action"], entry["target_id"], entry["by"], entry["request_id"]) for entry in json.loads(done.out)
    ]
    assert entries == [
        ("key_revoked", made["key_id"], "admin", revoked.headers["x-request-id"]),
        ("voice_deleted", voice_id, made["key_id"], deleted.headers["x-request-id"]),
        ("key_created", made["key_id"], "cli", None),
    ]
    assert "a label" not in done.out
    table = run("audit", "list", "--limit", "1", env=home).out
    assert ("key_revoked" in table, "key_created" in table) == (True, False)
