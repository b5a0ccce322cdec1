"""The written words of spelled-out text, and their times in the speech of a fast enrollment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afterwords.backends.base import Chunk
from afterwords.backends.lite.engine import SENTENCE_PAUSE_S, LiteEngine
from afterwords.backends.lite.g2p import plain_words, pronounce
from afterwords.backends.lite.kokoro import FRAME, Kokoro, KokoroOutput
from afterwords.backends.lite.styles import style_space
from afterwords.backends.lite.timing import WrittenWords, match, token_times
from afterwords.models import SpeechTask, WordTiming, word_spans
from afterwords.text import split_chunks
from tests.lite_voice import Enrolment

TEXT = "He paid $5.50. Then, i.e. soon, Dr. Lee left."
RATE = LiteEngine.sample_rate


@pytest.mark.parametrize(
    ("sentence", "spoken"),
    [
        ("It cost $5.50 in 1999!", {"five dollars and fifty cents": "$5.50", "nineteen ninety nine!": "1999"}),
        ("12% of Dr. Ray's FBI team", {"twelve percent": "12%", "Doctor": "Dr", "Ray's": "Ray's", "FBI": "FBI"}),
        ("Mail me@x.org or drive 5 km/h", {"me at x dot org": "me@x.org", "kilometers per hour": "km/h"}),
        ("The café — 3 × 4", {"cafe": "café", "times": "×", "four": "4"}),
        ("THE END OF US", {"end": "END", "us": "US"}),
    ],
)
def test_spoken_words_belong_to_written_words(sentence: str, spoken: dict[str, str]) -> None:
    written, said = [sentence[start:end] for start, end in word_spans(sentence)], plain_words(sentence).split()
    owners = [written[index] for index in match(written, said)]
    found = list(zip(said, owners, strict=True))
    for words, owner in spoken.items():
        assert [pair for pair in found if pair[1] == owner] == [(word, owner) for word in words.split()]


def test_every_piece_of_a_page_has_its_words() -> None:
    """The page has addresses, code, tables and headings, so pieces end in the middle of sentences."""
    text = (Path(__file__).parents[3] / "docs" / "lite.md").read_text("utf-8")
    plain = plain_words(text)
    written, words = WrittenWords(text, plain), list[WordTiming]()
    for number, piece in enumerate(split_chunks(plain, max_chars=100)):
        phonemes = pronounce(piece)
        words += written.timed(piece, phonemes, np.full((len(phonemes), 2), float(number)))
    starts = [word.start for word in words]
    assert starts == sorted(starts)
    assert all(text.startswith(word.text, word.start) for word in words)
    spoken = {word.start for word in words}
    silent = [text[start:end] for start, end in word_spans(text) if start not in spoken]
    assert not [word for word in silent if word.isascii() and word.isalnum()]


def test_durations_add_up_to_the_samples(kokoro: Kokoro) -> None:
    ids, space = [token for token, _ in pronounce("The boy was there.")], style_space()
    output = kokoro.speak(ids, space.voices[0][len(ids) - 1])
    assert len(output.frames) == len(ids) + 2
    assert output.frames.sum() * FRAME == len(output.samples)


def test_times_follow_cuts_and_joins() -> None:
    output = KokoroOutput(np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([10, 2, 4, 9], np.float32))
    cut = (8 * FRAME, 14 * FRAME)  # of 25 frames
    first, second, *again = token_times([output, output], [cut, cut])
    assert first[1] - first[0] == pytest.approx(2 * FRAME / RATE)
    assert second[1] <= 6 * FRAME / RATE
    assert again[0] - first == pytest.approx(6 * FRAME / RATE)


@pytest.fixture(scope="module")
def chunks(enrolment: Enrolment) -> list[Chunk]:
    task = SpeechTask(text=TEXT, lang="en", backend="lite", voice_id="1", prompt=enrolment.prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERWORDS_HOME", str(enrolment.home))
        return list(LiteEngine().synthesize(task))


def test_written_words_of_the_speech_have_times(chunks: list[Chunk]) -> None:
    words = [word for chunk in chunks for word in chunk.words]
    assert [word.text for word in words] == [TEXT[start:end] for start, end in word_spans(TEXT)]
    lengths = {word.text: word.end_s - word.start_s for word in words}
    assert lengths["$5.50"] > 3 * lengths["He"]


def test_word_after_a_pause_starts_where_the_sound_starts(chunks: list[Chunk]) -> None:
    assert len(chunks) > 1
    offset_s = 0.0
    for chunk in chunks:
        loud = np.flatnonzero(np.abs(chunk.samples) > 0.02)
        assert chunk.words[0].start_s - offset_s == pytest.approx(loud[0] / RATE, abs=0.06)
        offset_s += len(chunk.samples) / RATE
        assert chunk.words[-1].end_s < offset_s
    assert chunks[-1].words[-1].end_s < offset_s - SENTENCE_PAUSE_S + 0.06
