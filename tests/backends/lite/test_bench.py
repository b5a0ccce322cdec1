"""`afterwords bench` with the engine `lite` and a prepared voice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterwords import local
from afterwords.backends.lite import PROMPT_VERSION
from tests.cli.program import run
from tests.conftest import READER
from tests.lite_voice import Enrolment
from tests.watched import Watched


def test_similarity_names_its_encoder_and_its_bias(
    enrolment: Enrolment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")
    voice = local.clone(READER, name="me", consent="public-domain")
    local.library().save_prompt(voice, f"lite-{PROMPT_VERSION}-fast", enrolment.prompt)

    watched = Watched(tmp_path, monkeypatch)

    done = run("bench", "--text", "It is here.", "--json", env={"AFTERWORDS_BACKENDS": "lite"}, before=watched.before)

    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    assert (row["backend"], row["prepare_s"], row["similarity_by"]) == ("lite", 0, "GE2E")
    assert row["similarity"] > 0.6
    assert row["memory_mib"] > 100
    assert "which flatters it" in row["similarity_note"]
    assert (watched.files, watched.addresses) == ([], set())
