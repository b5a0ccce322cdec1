"""`afterwords lexicon`."""

from __future__ import annotations

import json
from pathlib import Path

from afterwords.models import Voice
from tests.cli.program import run


def test_words_are_added_spoken_listed_and_removed(me: Voice, tmp_path: Path) -> None:
    def duration_s() -> float:
        done = run("say", "I use nginx daily.", "--voice", "me", "-o", str(tmp_path / "a.wav"), "--json")
        return float(json.loads(done.out)["duration_s"])

    before_s = duration_s()
    assert "1 word" in run("lexicon", "add", "nginx", "--alias", "engine x and more", "--voice", "me").err
    assert duration_s() > before_s
    assert "2 words" in run("lexicon", "add", "Siobhan", "--ipa", "\u0283\u026a\u02c8v\u0254\u02d0n").err
    exported = run("lexicon", "export", "-o", str(tmp_path / "words.pls"))
    assert exported.code == 0
    assert "1 word" in run("lexicon", "remove", "nginx").err
    assert run("lexicon", "remove", "nginx").code == 2
    assert "2 words" in run("lexicon", "import", str(tmp_path / "words.pls")).err
    assert [entry["word"] for entry in json.loads(run("lexicon", "list", "--json").out)] == ["Siobhan", "nginx"]
    assert "engine x and more" in run("lexicon", "list").out


def test_word_without_a_pronunciation_is_refused(me: Voice, tmp_path: Path) -> None:
    assert run("lexicon", "add", "nginx").code == 2
    assert run("lexicon", "add", "nginx", "--alias", "x" * 201).code == 2
    (tmp_path / "words.pls").write_text("<html/>")
    assert run("lexicon", "import", str(tmp_path / "words.pls")).code == 5
