"""Run every block of the README and the docs as a reader would: in order, in one folder, with one home folder.

A block opens with its language: `sh` runs in a shell, `python` in an interpreter, `console` and `text` are not run. A
line `<!-- not run: why -->` above a block skips it and gives the reason. A page with the line `<!-- with a server -->`
finds a server in its environment, with an account of its own. A Python block that begins with `# name.py` is also
written to that file, for later blocks and tests.

A full clone with `lite` takes a minute of CPU time, so the tests clone with `--fast`. No block may leave files in the
user's home or connect to another machine.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

import afterwords
from afterwords.audio.audio import decode
from afterwords.testing import Fault, FaultyTransport
from tests.e2e.served import Served, serving
from tests.watched import Watched

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"))]
COOKBOOK = ROOT / "docs" / "cookbook.md"
WITH_A_SERVER = "\n<!-- with a server -->\n"
WITH_TONE = {"bundle.md", "cli.md", "quickstart.md"}
"""Pages without a server on which the engine makes no difference. README.md clones and speaks with `lite`."""
FULL_CLONE = re.compile(r"^afterwords clone (?![^#\n]*--fast)[^#\n]*--consent self\b", re.M)
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<lang>\w+)\n(?P<code>.*?)^```$", re.S | re.M)
FILE = re.compile(r"# (\w+\.py)\n")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(page: Path) -> list[tuple[str, str]]:
    found = [m for m in BLOCK.finditer(page.read_text("utf-8")) if not m["reason"]]
    return [(m["lang"], m["code"]) for m in found if m["lang"] in {"sh", "python"}]


def keep_file(code: str, folder: Path) -> None:
    if name := FILE.match(code):
        (folder / name[1]).write_text(code, "utf-8")


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "AFTERWORDS_HOME": str(folder / "home"),
        "AFTERWORDS_WHISPER": "",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("docs") / "home") as served:
        yield served


@pytest.fixture
def account(server: Served) -> dict[str, str]:
    """Return the settings of a reader with a new account on the server."""
    return {"AFTERWORDS_BASE_URL": server.url, "AFTERWORDS_API_KEY": server.new_key(), "AFTERWORDS_BACKENDS": "tone"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_runs(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, monkeypatch)
    shutil.copy(ROOT / "src" / "afterwords" / "data" / "reader.wav", tmp_path / "me.wav")
    has_server = WITH_A_SERVER in page.read_text("utf-8")
    tone = {"AFTERWORDS_BACKENDS": "tone"} if page.name in WITH_TONE else {}
    env = environment(tmp_path, request.getfixturevalue("account") if has_server else tone)
    for lang, written in blocks(page):
        keep_file(written, tmp_path)
        code = FULL_CLONE.sub(r"\g<0> --fast", written)
        command = ["sh", "-euc", code] if lang == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            [*watched.before, *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
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
        app.communicate(timeout=20)
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
