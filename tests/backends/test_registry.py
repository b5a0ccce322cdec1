"""The registry, with plug-ins that are really installed: a distribution in a folder on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afterwords.backends import registry
from afterwords.backends.base import Unavailable, not_installed
from afterwords.config import Config
from afterwords.errors import BackendUnavailableError, InvalidInputError, UnsupportedLangError, pip_install
from tests.error_codes import has_code

GOOD = """
from afterwords.backends.tone import ToneEngine
class Parrot(ToneEngine):
    name = "parrot"
    backends = ("parrot-large", "parrot-small")
    def languages(self, backend):
        return frozenset({"fr"})
"""


def config(home: Path, *names: str) -> Config:
    return Config(home=home, backends=names or None)


def install(folder: Path, name: str, code: str, entry: str) -> None:
    """Lay a distribution with one engine into a folder."""
    (folder / f"{name}.py").write_text(code, "utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[afterwords.engines]\n{name} = {entry}\n", "utf-8")


def listed(folder: Path) -> dict[str, dict[str, object]]:
    """Return the output of `afterwords backends --json` in a process that has the folder on its path."""
    env = {**os.environ, "PYTHONPATH": str(folder), "AFTERWORDS_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "afterwords", "backends", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    return {row["backend"]: row for row in json.loads(done.stdout)}


def test_plug_in_is_listed_with_all_backends(tmp_path: Path) -> None:
    install(tmp_path, "parrot", GOOD, "parrot:Parrot")
    rows = listed(tmp_path)
    assert rows["parrot-large"]["is_available"]
    assert rows["parrot-small"]["languages"] == ["fr"]
    assert rows["lite"]["is_auto"]


@pytest.mark.parametrize(
    "code", ["import nonsense_that_is_nowhere", "class Parrot:\n  def __init__(self): 1/0", "x = 1"]
)
def test_broken_plug_in_is_listed_with_reason(tmp_path: Path, code: str) -> None:
    install(tmp_path, "parrot", code, "parrot:Parrot")
    rows = listed(tmp_path)
    assert not rows["parrot"]["is_available"]
    assert "could not be loaded" in str(rows["parrot"]["reason"])
    assert rows["lite"]["is_available"]


KIND = """
from afterwords.backends.base import Available, Unavailable
from afterwords.backends.tone import ToneEngine
class Parrot(ToneEngine):
    name = "{name}"
    backends = ("parrot",)
    def availability(self):
        return {state}
"""


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("Available(is_slow=True)", "Available()", "second"),
        ("Available()", "Available()", "first"),
        ("Unavailable('a', 'b')", "Available(is_slow=True)", "second"),
        ("Unavailable('a', 'b', is_foreign=True)", "Unavailable('c', 'd')", "second"),
        ("Unavailable('a', 'b')", "Unavailable('c', 'd', is_foreign=True)", "first"),
    ],
)
def test_fitter_of_two_engines_has_the_backend(tmp_path: Path, first: str, second: str, taken: str) -> None:
    for name, state in (("first", first), ("second", second)):
        install(tmp_path, name, KIND.format(name=name, state=state), f"{name}:Parrot")
    assert listed(tmp_path)["parrot"]["engine"] == taken


def test_tone_is_listed_only_by_name(tmp_path: Path) -> None:
    assert "tone" not in [backend.name for backend in registry.backends(config(tmp_path))]
    assert [backend.name for backend in registry.backends(config(tmp_path, "tone"))] == ["tone"]


def test_auto_prefers_any_other_backend_to_tone(tmp_path: Path) -> None:
    assert registry.choose("auto", lang="en", config=config(tmp_path, "tone", "lite")).name == "lite"


def test_unknown_backend_error_lists_the_others(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="available: lite", check=has_code("invalid_backend")):
        registry.choose("gpt-9", config=config(tmp_path, "lite"))


def test_unsupported_lang_error_names_other_backend(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLangError) as refused:
        registry.choose("lite", lang="de", config=config(tmp_path, "lite", "tone"))
    assert "tone" in refused.value.hint


def test_lang_hint_names_only_available_backends(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLangError) as refused:
        registry.choose("auto", lang="fr", config=config(tmp_path, "lite", "qwen3-1.7b"))
    assert "--backend" not in refused.value.hint
    assert "qwen3-1.7b" in refused.value.hint
    assert "`afterwords backends`" in refused.value.hint


def test_missing_packages_are_in_one_sentence() -> None:
    state = not_installed(["torch", "safetensors", "mlx_audio"], extra="mlx")
    assert state == Unavailable("torch, safetensors and mlx-audio are not installed", pip_install("mlx"))
    assert not_installed(["torch"], extra="cuda").reason == "torch is not installed"


def test_missing_engines_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError) as refused:
        registry.choose("auto", config=config(tmp_path, "nothing-of-the-kind"))
    assert pip_install("lite") in refused.value.hint


def test_engine_is_created_once_per_process(tmp_path: Path) -> None:
    first, second = (registry.choose("tone", config=config(tmp_path, "tone")) for _ in range(2))
    assert registry.engine_for(first) is registry.engine_for(second)
