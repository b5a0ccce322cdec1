"""Test a program that uses afterwords, with the fixtures that afterwords brings."""

from __future__ import annotations

import wave

import pytest

import afterwords as aw
from afterwords.testing import Fault, FaultyTransport, RunningServer
from podcast import main, narrate, paragraphs_of

ARTICLE = "A first paragraph,\nin two lines.\n\n\nA second one.\n\nAnd a third.\n"


def test_empty_lines_separate_paragraphs():
    assert paragraphs_of(ARTICLE) == ["A first paragraph, in two lines.", "A second one.", "And a third."]


def test_each_paragraph_becomes_a_file(afterwords_client, afterwords_voice, tmp_path):
    paragraphs = paragraphs_of(ARTICLE)
    episodes = narrate(afterwords_client, paragraphs, voice=afterwords_voice, folder=tmp_path)
    assert [episode.name for episode in episodes] == ["001.wav", "002.wav", "003.wav"]
    for episode, paragraph in zip(episodes, paragraphs, strict=True):
        with wave.open(str(episode)) as wav:
            duration_s = wav.getnframes() / wav.getframerate()
        assert duration_s == pytest.approx(0.06 * len(paragraph))  # the test engine takes 60 ms per character


def test_failures_of_the_server_are_retried(
    afterwords_faults: FaultyTransport, afterwords_faulty_client, afterwords_voice, tmp_path
):
    afterwords_faults.inject(Fault.ANSWER, path="/v1/synthesize", status=503)
    afterwords_faults.inject(Fault.DROP_AFTER, path="/v1/synthesize")
    assert len(narrate(afterwords_faulty_client, paragraphs_of(ARTICLE), voice=afterwords_voice, folder=tmp_path)) == 3
    injected = [fault for _, fault in afterwords_faults.requests if fault]
    assert injected == [Fault.ANSWER, Fault.DROP_AFTER]


def test_used_up_quota_keeps_finished_files(
    afterwords_faults: FaultyTransport, afterwords_faulty_client, afterwords_voice, tmp_path
):
    first, *rest = paragraphs_of(ARTICLE)
    narrate(afterwords_faulty_client, [first], voice=afterwords_voice, folder=tmp_path)
    afterwords_faults.inject(Fault.ANSWER, path="/v1/synthesize", status=429, code="quota_exceeded")
    with pytest.raises(aw.errors.QuotaExceededError):
        narrate(afterwords_faulty_client, [first, *rest], voice=afterwords_voice, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["001.wav"]

    n_before = len(afterwords_faults.requests)
    assert len(narrate(afterwords_faulty_client, [first, *rest], voice=afterwords_voice, folder=tmp_path)) == 3
    paths = [request.url.path for request, _ in afterwords_faults.requests[n_before:]]
    assert paths.count("/v1/synthesize") == 2


def test_failed_paragraph_is_reported_and_leaves_no_file(
    afterwords_server: RunningServer, afterwords_api_key, afterwords_voice, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AFTERWORDS_BASE_URL", afterwords_server.url)
    monkeypatch.setenv("AFTERWORDS_API_KEY", afterwords_api_key)
    article = tmp_path / "article.txt"
    article.write_text("The test engine fails here: fault-fail.", "utf-8")
    assert main([str(article), "--voice", afterwords_voice.name, "--folder", str(tmp_path / "episodes")]) == 7
    assert "synthesis_failed" in capsys.readouterr().err
    assert not list((tmp_path / "episodes").iterdir())
