"""Tests of a program that speaks through afterwords. The fixtures come with it: there is nothing to set up."""

from __future__ import annotations

import wave

import pytest

import afterwords as aw
from afterwords.testing import Fault, FaultyServer, RunningServer
from podcast import main, narrate, paragraphs_of

ARTICLE = "A first paragraph,\nin two lines.\n\n\nA second one.\n\nAnd a third.\n"


def test_paragraphs_stand_between_empty_lines():
    assert paragraphs_of(ARTICLE) == ["A first paragraph, in two lines.", "A second one.", "And a third."]


def test_each_paragraph_becomes_a_file_as_long_as_its_text(afterwords_client, afterwords_voice, tmp_path):
    paragraphs = paragraphs_of(ARTICLE)
    episodes = narrate(afterwords_client, paragraphs, voice=afterwords_voice, folder=tmp_path)
    assert [episode.name for episode in episodes] == ["001.wav", "002.wav", "003.wav"]
    for episode, paragraph in zip(episodes, paragraphs, strict=True):
        with wave.open(str(episode)) as wav:
            duration_s = wav.getnframes() / wav.getframerate()
        assert duration_s == pytest.approx(0.06 * len(paragraph))  # the voice of the tests takes 60 ms a character


def test_a_server_that_stumbles_is_not_noticed(
    afterwords_faults: FaultyServer, afterwords_faulty_client, afterwords_voice, tmp_path
):
    afterwords_faults.inject(Fault.ANSWER, path="/v1/synthesize", status=503)
    afterwords_faults.inject(Fault.DROP_AFTER, path="/v1/synthesize")
    assert len(narrate(afterwords_faulty_client, paragraphs_of(ARTICLE), voice=afterwords_voice, folder=tmp_path)) == 3
    befallen = [seen.fault for seen in afterwords_faults.seen if seen.fault]
    assert befallen == [Fault.ANSWER, Fault.DROP_AFTER]


def test_when_the_quota_ends_what_was_read_is_kept_and_the_rest_follows_later(
    afterwords_faults: FaultyServer, afterwords_faulty_client, afterwords_voice, tmp_path
):
    one, *more = paragraphs_of(ARTICLE)
    narrate(afterwords_faulty_client, [one], voice=afterwords_voice, folder=tmp_path)
    afterwords_faults.inject(Fault.ANSWER, path="/v1/synthesize", status=429, code="quota_exceeded")
    with pytest.raises(aw.errors.QuotaExceededError):
        narrate(afterwords_faulty_client, [one, *more], voice=afterwords_voice, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["001.wav"]

    asked_before = len(afterwords_faults.seen)
    assert len(narrate(afterwords_faulty_client, [one, *more], voice=afterwords_voice, folder=tmp_path)) == 3
    spoken = [seen for seen in afterwords_faults.seen[asked_before:] if seen.path == "/v1/synthesize"]
    assert len(spoken) == 2


def test_a_paragraph_that_can_not_be_spoken_is_told_and_leaves_no_file(
    afterwords_server: RunningServer, afterwords_api_key, afterwords_voice, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AFTERWORDS_BASE_URL", afterwords_server.url)
    monkeypatch.setenv("AFTERWORDS_API_KEY", afterwords_api_key)
    article = tmp_path / "article.txt"
    article.write_text("Here the engine of the tests fails: fault-fail.", "utf-8")
    assert main([str(article), "--voice", afterwords_voice.name, "--folder", str(tmp_path / "episodes")]) == 7
    assert "synthesis_failed" in capsys.readouterr().err
    assert not list((tmp_path / "episodes").iterdir())
