"""The site of `make docs` builds without a warning, has every public name, and loads nothing from another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import afterwords
from afterwords import errors
from afterwords.client import Client, Jobs, Keys, LiveSpeech, RemoteBytes, RemoteJob, RemoteSpeech, Voices

ROOT = Path(__file__).parents[2]
CLASSES = {
    "afterwords.Audio": afterwords.Audio,
    "afterwords.Client": Client,
    "afterwords.client.LiveSpeech": LiveSpeech,
    "afterwords.client.RemoteBytes": RemoteBytes,
    "afterwords.client.RemoteJob": RemoteJob,
    "afterwords.client.RemoteSpeech": RemoteSpeech,
    "afterwords.client.Keys": Keys,
    "afterwords.client.Voices": Voices,
    "afterwords.client.Jobs": Jobs,
}
LOADING_RELS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "manifest", "modulepreload"}
OTHER_HOST = re.compile(r"\s*(?:https?:|wss?:)?//")


class Page(HTMLParser):
    """The element ids of a page, its text, and the URLs that a browser loads to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.ids.add(attributes.get("id", ""))
        self.loaded += [attributes[name] for name in ("src", "srcset", "poster", "data") if name in attributes]
        self.loaded += re.findall(r"url\([\"']?([^)]+)", attributes.get("style", ""))
        if tag == "link" and LOADING_RELS & set(attributes.get("rel", "").split()):
            self.loaded.append(attributes["href"])

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Build the site; return its folder and the output of mkdocs."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def reference(built: tuple[Path, str]) -> Page:
    return Page(built[0] / "reference.html")


def test_site_builds_without_a_warning(built: tuple[Path, str]) -> None:
    assert "WARNING" not in built[1]
    assert "ERROR" not in built[1]


def test_every_public_name_is_in_the_reference(reference: Page) -> None:
    missing = {name for name in afterwords.__all__ if f"afterwords.{name}" not in reference.ids}
    assert missing == {"__version__"}
    assert "__version__" in reference.text


def test_every_public_method_of_the_client_is_in_the_reference(reference: Page) -> None:
    names = {f"{path}.{name}" for path, cls in CLASSES.items() for name in vars(cls) if is_documented(cls, name)}
    assert {"afterwords.Client.say", "afterwords.client.Voices.import_", "afterwords.Audio.play"} <= names
    assert names <= reference.ids


def is_documented(cls: type, name: str) -> bool:
    member = getattr(cls, name, None)
    return not name.startswith(("_", "model_")) and (callable(member) or isinstance(member, property))


def test_every_error_is_in_the_reference(reference: Page) -> None:
    assert {
        f"afterwords.errors.{name}" for name in vars(errors) if name.endswith(("Error", "Warning"))
    } <= reference.ids


def test_search_works_from_the_disk(built: tuple[Path, str]) -> None:
    """A page that is opened from the disk can't fetch files or start workers, so the index must be a script."""
    assert (built[0] / "search" / "search_index.js").read_text("utf-8").startswith("var __index = {")
    assert "javascripts/iframe-worker.js" in Page(built[0] / "index.html").loaded


def test_pages_load_nothing_from_another_host(built: tuple[Path, str]) -> None:
    pages = {path: Page(path).loaded for path in built[0].rglob("*.html")}
    for path in [*built[0].rglob("*.css"), *built[0].rglob("media/*.svg")]:
        pages[path] = re.findall(r"(?:url\(|@import|href=)\s*[\"']?([^)\"']+)", path.read_text("utf-8"))
    assert sum(map(len, pages.values())) > 50, "the site loads its own scripts and styles"
    assert [(path.name, url) for path, urls in pages.items() for url in urls if OTHER_HOST.match(url)] == []
