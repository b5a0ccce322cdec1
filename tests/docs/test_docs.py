"""Run every block of the docs as `pages` describes, and the programs of the cookbook.

`tests/e2e/test_readme.py` runs the README. No block may leave files in the user's home or connect to another machine.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import afterwords
from afterwords.audio.audio import decode
from afterwords.testing import Fault, FaultyTransport
from tests.docs.pages import ROOT, blocks, environment, keep_file, run_blocks
from tests.e2e.served import Served, serving
from tests.watched import Watched

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"))]
COOKBOOK = ROOT / "docs" / "cookbook.md"
WITH_A_SERVER = "\n<!-- with a server -->\n"
WITH_TONE = {"bundle.md", "cli.md", "narrate.md", "quickstart.md", "text.md"}
"""Pages without a server on which the engine makes no difference."""
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("docs") / "home") as served:
        yield served


@pytest.fixture
def account(server: Served) -> dict[str, str]:
    """Return the settings of a reader with a new account on the server."""
    return {"AFTERWORDS_BASE_URL": server.url, "AFTERWORDS_API_KEY": server.new_key(), "AFTERWORDS_BACKENDS": "tone"}


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda page: page.name)
def test_every_block_runs(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, monkeypatch)
    has_server = WITH_A_SERVER in page.read_text("utf-8")
    tone = {"AFTERWORDS_BACKENDS": "tone"} if page.name in WITH_TONE else {}
    env = environment(tmp_path, request.getfixturevalue("account") if has_server else tone)
    run_blocks(page, tmp_path, env, before=watched.before)
    assert (watched.files, watched.addresses) == ([], set())


def test_every_link_to_a_file_has_a_target() -> None:
    links = [(page, target) for page in LINKING_PAGES for target in LINK.findall(page.read_text("utf-8"))]
    assert len(links) > 50
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []


def test_pages_install_from_an_index_only_after_the_release() -> None:
    """Nothing is on PyPI yet, so a command that installs from there must say so."""
    for page in PAGES:
        for line in re.findall(r".*pip install [\"']?afterwords.*", page.read_text("utf-8")):
            assert line.endswith("# from the first release on PyPI"), f"{page.name}: {line}"


# -- the programs of the cookbook ---------------------------------------------------------------------------


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Return a folder with the programs of the cookbook."""
    for _, code in blocks(COOKBOOK):
        keep_file(code, tmp_path)
    return tmp_path


@pytest.fixture
def say(recipes: Path) -> Any:
    """Return the `say` of the cookbook that retries."""
    return runpy.run_path(str(recipes / "retrying.py"))["say"]


def test_web_app_streams_to_a_browser(
    recipes: Path, account: dict[str, str], me: afterwords.Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    afterwords.push(me)
    app = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "web:app", "--port", "0", "--no-access-log"],
        cwd=recipes,
        env=environment(recipes, account),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert app.stderr is not None
        url = next(found[0] for line in app.stderr if (found := re.search(r"http://[\d.:]+", line)))
        with httpx.stream("GET", f"{url}/speech", params={"text": "Hello."}, trust_env=False) as response:
            chunks = list(response.iter_raw())
        rejected = httpx.get(f"{url}/speech", params={"text": ""}, trust_env=False)
    finally:
        app.terminate()
        app.communicate(timeout=60)
    assert response.headers["content-type"] == "audio/mpeg"
    assert decode(b"".join(chunks)).duration_s == pytest.approx(6 * 0.06, abs=0.1)
    assert (rejected.status_code, rejected.json()) == (422, {"error": "empty_text"})


def test_retrying_say_pushes_a_missing_voice(
    say: Any, account: dict[str, str], me: afterwords.Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    with afterwords.Client() as client:
        assert say(client, "Hello.", "me").duration_s == pytest.approx(0.36)


def test_retrying_say_waits_for_a_slow_job(
    say: Any, afterwords_client: afterwords.Client, afterwords_voice: afterwords.Voice
) -> None:
    audio = say(afterwords_client, "It is a fault-slow day.", afterwords_voice.name, timeout_s=0)
    assert audio.duration_s == pytest.approx(23 * 0.06)


def test_retrying_say_survives_limits_and_invalid_responses(
    say: Any,
    afterwords_faults: FaultyTransport,
    afterwords_faulty_client: afterwords.Client,
    afterwords_voice: afterwords.Voice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(say.__globals__["time"], "sleep", waits.append)  # ten seconds is long in a test
    afterwords_faults.inject(Fault.ANSWER, path="/v1/synthesize", status=429, code="rate_limited", retry_after_s=3600)
    afterwords_faults.inject(Fault.HTML, path="/v1/synthesize")
    assert say(afterwords_faulty_client, "Hello.", afterwords_voice.name).duration_s == pytest.approx(0.36)
    assert waits == [3600, 10]


def test_retrying_say_exits_when_the_quota_is_used_up(
    say: Any,
    afterwords_faults: FaultyTransport,
    afterwords_faulty_client: afterwords.Client,
    afterwords_voice: afterwords.Voice,
) -> None:
    afterwords_faults.inject(Fault.ANSWER, path="/v1/synthesize", status=429, code="quota_exceeded")
    with pytest.raises(SystemExit, match="0 characters are used up until 01"):
        say(afterwords_faulty_client, "Hello.", afterwords_voice.name)
