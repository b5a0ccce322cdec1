"""Test `afterwords usage`, of a server over HTTP and of the one on this machine."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from afterwords.models import new_id, now
from tests.cli.conftest import UseServer
from tests.cli.program import run
from tests.e2e.served import Served, register, submit_text, wait_for_job

TODAY = now()
START, END = TODAY - timedelta(days=4), TODAY + timedelta(days=20, hours=1)
SPENT = {0: 120, 3: 60}
"""Characters by days since the start."""


@pytest.fixture
def account_id(home: Path) -> str:
    """Return an account of the server on this machine with a period that began four days ago, and usage."""
    key = json.loads(run("keys", "create", "--json").out)
    with closing(sqlite3.connect(home / "server" / "afterwords.db")) as database, database:
        times = [f"{moment:%Y-%m-%d %H:%M:%S.000000}" for moment in (START, END)]
        database.execute("UPDATE accounts SET period_start = ?, period_end = ?", times)
        for ago, characters in SPENT.items():
            day = START + timedelta(days=ago)
            row = (new_id(), f"{START:%Y-%m-%dT%H:%M:%SZ}", f"{day:%Y-%m-%d}", key["account_id"], characters)
            columns = "spending_id, period, day, account_id, characters"
            database.execute(f"INSERT INTO usage ({columns}) VALUES (?, ?, ?, ?, ?)", row)
    return str(key["account_id"])


def test_usage_of_a_server_has_characters_by_day(client: httpx.Client) -> None:
    empty = run("usage")
    wait_for_job(client, submit_text(client, register(client), "Twelve chars"))
    facts = json.loads(run("usage", "--json").out)

    assert empty.out.startswith("characters   0\nperiod ")
    assert (facts["characters"], facts["limit"], facts["plan"]) == (12, None, None)
    assert [day["characters"] for day in facts["days"]] == [12]
    assert 1 <= facts["days_left"] <= 31


def test_limit_is_shown_with_its_percentage(served: Served, use_server: UseServer) -> None:
    key = served.new_key(character_limit=48)
    use_server(served.url, key)
    with served.client(key) as client:
        wait_for_job(client, submit_text(client, register(client), "Twelve chars"))

    assert "\ncharacters   12 of 48 (25 %)\n" in run("usage").out


def test_piped_usage_of_an_account_is_plain(account_id: str) -> None:
    done = run("usage", "--account", account_id)

    assert (done.code, done.err) == (0, "")
    days = [f"{START + timedelta(days=ago):%Y-%m-%d}  {characters}" for ago, characters in SPENT.items()]
    assert done.out.splitlines() == [
        "day         characters",
        *days,
        "characters   180",
        f"period       {START:%Y-%m-%d} to {END:%Y-%m-%d}, 21 days left",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals that Python can open")
def test_usage_at_a_terminal_is_a_bar_for_each_day(account_id: str) -> None:
    from tests.e2e.terminal import Terminal

    with Terminal("usage", "--account", account_id, env={"COLUMNS": "40"}) as terminal:
        assert terminal.wait() == 0
    chart = terminal.text.splitlines()[:5]

    assert [line.split()[-1] for line in chart] == ["120", "0", "0", "60", "0"]
    assert {len(line) for line in chart} == {40}
    assert [line[:6] for line in chart] == [f"{START + timedelta(days=ago):%b %d}" for ago in range(5)]


def test_usage_of_an_unknown_account_is_refused(account_id: str) -> None:
    assert "afterwords accounts" in run("usage", "--account", "unknown").expect_error(5, "invalid_option")
    run("usage", "--account", account_id, "--profile", "work").expect_error(2, "usage")
