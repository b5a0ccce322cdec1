"""Times of words and characters while speech is sent, for the APIs of other services."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.requests import HTTPConnection

from afterwords.errors import UnavailableError
from afterwords.models import Alignment, CharacterTimes, WordTiming
from afterwords.server.records import StoredVoice
from afterwords.server.routes.responses import caller_of, state_of
from afterwords.server.services.synthesis import AcceptedJob, SynthesisRequest
from afterwords.speech import in_given_text
from afterwords.text import check_text


def check_timing(connection: HTTPConnection, voice: StoredVoice, request: SynthesisRequest) -> None:
    """Raise unless the words of a request have times while they are spoken.

    Raises:
        UnavailableError: The engine reports no times.
        InvalidInputError, UnsupportedLangError: The server does not offer its backend or language.
    """
    if not state_of(connection).synthesis.has_timing(voice, request):
        why = "The backend reports no times of its words while it speaks."
        hint = "use POST /v1/synthesize with timestamps, which waits for the end, or a voice of another backend."
        raise UnavailableError(why, code="timestamps_unavailable", hint=hint)


def word_times(words: Iterable[WordTiming], *, start_s: float = 0.0) -> list[dict[str, Any]]:
    """Return the times of words as vLLM-Omni shows them.

    Args:
        start_s: Where the speech starts, in seconds.
    """
    return [
        {
            "word": word.text,
            "start_ms": round(1000 * (start_s + word.start_s)),
            "end_ms": round(1000 * (start_s + word.end_s)),
        }
        for word in words
    ]


class SpokenText:
    """A text whose characters get their times while it is spoken.

    Args:
        connection: That of the client.
        text: The text as the client sent it.
        result: Its job, which was submitted with timestamps.
    """

    def __init__(self, connection: HTTPConnection, text: str, result: AcceptedJob) -> None:
        self._connection, self._text, self._result = connection, text, result
        self._validated = check_text(text)
        self._times = CharacterTimes()
        self._words: list[WordTiming] = []
        self._n_taken = 0
        self._n_words = 0
        self._is_whole = False

    async def update(self, *, is_over: bool = False) -> None:
        """Add the words that were spoken meanwhile; once the audio is over, also the characters after the last word.

        Raises:
            NotFoundError, UnavailableError: The stream reports no words, and the job is not ready or has none.
        """
        if self._is_whole:
            return
        listener = self._result.listener
        if listener is not None and (words := listener.words) is not None:
            self._add(words)
            duration_s = listener.duration_s
        else:
            synthesis = state_of(self._connection).synthesis
            job = await synthesis.get_job(caller_of(self._connection), self._result.job.job_id)
            alignment = await synthesis.get_alignment(job)
            self._n_words, is_over = 0, True
            self._add(alignment.words)
            duration_s = alignment.end_s[-1]
        if is_over:
            self._times.advance(len(self._text), duration_s)
            self._is_whole = True

    def _add(self, words: Sequence[WordTiming]) -> None:
        for word in in_given_text([*words[self._n_words :]], self._validated, self._text):
            if word.start >= len(self._times.start_s):
                self._words.append(word)
            self._times.advance(word.start, word.start_s)
            self._times.advance(word.start + len(word.text), word.end_s)
        self._n_words = len(words)

    def take_words(self) -> list[WordTiming]:
        """Remove the words that are known, and return them."""
        words, self._words = self._words, []
        return words

    def take(self, until_s: float = math.inf) -> Alignment:
        """Remove the characters that start before a moment, as far as they are known, and return them."""
        first, times = self._n_taken, self._times
        self._n_taken = end = bisect_left(times.start_s, until_s, lo=first)
        return Alignment(
            characters=tuple(self._text[first:end]),
            start_s=tuple(times.start_s[first:end]),
            end_s=tuple(times.end_s[first:end]),
        )
