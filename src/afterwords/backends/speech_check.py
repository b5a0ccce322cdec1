"""Verified speech: each sentence is recognized, compared with its text, and spoken again if it has a fault.

`speech.speak` has a SpeechChecker synthesize instead of the engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final

from afterwords.audio.audio import Audio
from afterwords.audio.effects import fade_from
from afterwords.backends.base import Chunk, Engine, Progress, Reference, ignore_progress, unspoken
from afterwords.errors import SynthesisError, TextError, UnavailableError, pip_install
from afterwords.models import SentenceVerification, SpeechAttempt, SpeechFault, SpeechTask, Verification, WordTiming
from afterwords.normalization import normalize
from afterwords.reference.transcription import Recognition, load_model, recognize
from afterwords.text import LiveSplitter, expected_speech_s, is_speakable, pause_after_s

if TYPE_CHECKING:
    from afterwords.audio.wav import Samples

ATTEMPTS: Final = 3
"""The first one, and two with other seeds."""
SILENCE_S: Final = 1.4
"""Limit of silences, for which the speech mask allows an error of 0.1 s: 1.5 s are found."""
MARGIN, MARGIN_PER_WORD, MARGIN_OF_WORDS = 10.0, 0.6, 4.0
"""Limits of `Recognition.margin`: for any words, per word of a long sentence, and if most words differ.
whisper-tiny had up to 10 for a word of `lite` that it misunderstood; see benchmarks/verification.py."""
LEAST_LETTERS, FEW_WORDS = 4, 3
"""Letters that are not left out by mistake at the start or end, and the words of a sentence in which no word is."""
EXTRA_WORDS: Final = 3
"""Words that are too many: fewer may be another spelling."""
PACE_MIN, PACE_MAX = 0.45, 2.2
"""Limits of the duration without silences, relative to what the text should take."""
SLACK_S: Final = 0.4
"""What short speech may take beyond that: a single slow word is longer than its letters explain."""
SPEAKER_S: Final = 2.0
"""Least speech for a speaker score; the encoder reads windows of 1.6 s."""
SPEAKER_MIN: Final = 0.55
"""Limit of the similarity: `lite` has 0.74 and more with the shipped recording, and other people 0.48 to 0.58."""
EXCESS_S, EXCESS_PACE = 0.3, 0.075
"""Limit of the time that a word takes longer than its characters, in seconds, and the time for each of these.
Of fifty sentences without a fault, none had more than 0.22 s; of repetitions that Whisper left out, half had 0.58 s."""
DIGIT_CHARS: Final = 5
"""Characters of a digit or symbol that is read aloud."""
_WIDENED_S: Final = 0.12  # by which the speech mask reaches into a silence


class SpeechChecker:
    """Synthesizes sentence by sentence, and checks each one.

    Args:
        reference: The recording of the voice. None: the speaker is not compared.
    """

    def __init__(self, reference: Reference | None) -> None:
        self._reference = reference
        self._sentences: list[SentenceVerification] = []

    def load(self, lang: str, progress: Progress = ignore_progress) -> None:
        """Load the model that recognizes speech, which may have to be downloaded.

        Raises:
            UnavailableError: It can't be loaded, or does not know the language; or faster-whisper is not installed.
        """
        fail = partial(UnavailableError, code="verification_unavailable")
        if find_spec("faster_whisper") is None:
            why = "The speech can't be verified: faster-whisper is not installed."
            raise fail(why, hint=pip_install("transcribe"))
        try:
            whisper = load_model(progress=progress)
        except UnavailableError as error:
            raise fail(error.message.replace("recording can't be transcribed", "speech can't be verified")) from error
        if lang != "en" and not whisper.model.is_multilingual:
            why = f"The speech can't be verified: the Whisper model supports only English, not '{lang}'."
            raise fail(why, hint="set AFTERWORDS_WHISPER to the folder of a multilingual model.")

    @property
    def verification(self) -> Verification:
        """The result for the sentences so far."""
        return Verification.of(self._sentences)

    def synthesize(
        self, engine: Engine, task: SpeechTask, *, start_s: float, speed: float
    ) -> Generator[Chunk, None, None]:
        """Yield the best attempt at each sentence, and empty chunks while it is looked for.

        Args:
            engine: The engine that speaks.
            task: What it speaks.
            start_s: Where the speech starts in the whole audio, in seconds.
            speed: The speed to which it is changed.
        """
        import numpy as np

        rate, n_samples, position, pause_s = engine.sample_rate, 0, 0, 0.0
        splitter = LiveSplitter()
        for unit in (*splitter.feed(task.text), *splitter.flush()):
            sentence = unit.strip()
            offset = position + unit.index(sentence)
            position += len(unit)
            text = _spoken_words(engine, sentence)
            if not text:
                continue
            if n_samples:
                silence = np.zeros(round(pause_s * rate), np.float32)
                n_samples += len(silence)
                yield Chunk(silence)
            began_s = start_s + n_samples / rate / speed
            chunks, attempts, kept = yield from self._attempt(engine, task.model_copy(update={"text": sentence}), text)
            shift_s = n_samples / rate
            for chunk in chunks:
                n_samples += len(chunk.samples)
                yield Chunk(chunk.samples, tuple(_moved(word, offset, shift_s) for word in chunk.words))
            last = next((chunk.samples[-1] for chunk in reversed(chunks) if len(chunk.samples)), 0.0)
            fade = fade_from(float(last), rate)
            n_samples += len(fade)
            yield Chunk(fade)
            for word, ipa in task.pronunciations.items():
                sentence = f"/{ipa}/".join(re.split(word, sentence, flags=re.IGNORECASE))
            self._sentences.append(
                SentenceVerification(
                    text=sentence,
                    start_s=round(began_s, 3),
                    end_s=round(start_s + n_samples / rate / speed, 3),
                    attempts=tuple(attempts),
                    kept=kept,
                )
            )
            pause_s = pause_after_s(unit)

    def _attempt(
        self, engine: Engine, task: SpeechTask, text: str
    ) -> Generator[Chunk, None, tuple[list[Chunk], list[SpeechAttempt], int]]:
        """Speak a sentence until it has no fault, at most ATTEMPTS times.

        Returns:
            The chunks of the best attempt, all attempts, and the index of the best one.
        """
        import numpy as np

        nothing = np.zeros(0, np.float32)
        spoken: list[tuple[list[Chunk], Samples]] = []
        attempts: list[SpeechAttempt] = []
        while len(attempts) < ATTEMPTS and (not attempts or attempts[-1].faults):
            seed = task.seed if task.seed is None else (task.seed + len(attempts)) % 2**63
            chunks: list[Chunk] = []
            try:
                with closing(engine.synthesize(task.model_copy(update={"seed": seed}))) as synthesized:
                    for chunk in synthesized:
                        chunks.append(chunk)
                        yield Chunk(nothing)
            except SynthesisError:
                if not attempts:
                    raise
                break
            samples = np.concatenate([nothing, *(chunk.samples for chunk in chunks)])
            if spoken and np.array_equal(samples, spoken[-1][1]):
                break  # the engine does not sample
            spoken.append((chunks, samples))
            is_spelled = not any(word in text.lower() for word in task.pronunciations)
            audio = Audio(samples, engine.sample_rate)
            attempts.append(self.check(audio, text, lang=task.lang, seed=seed, is_spelled=is_spelled))
            yield Chunk(nothing)
        kept = min(range(len(attempts)), key=lambda at: (len(attempts[at].faults), attempts[at].margin))
        return spoken[kept][0], attempts, kept

    def check(
        self, audio: Audio, text: str, *, lang: str, seed: int | None = None, is_spelled: bool = True
    ) -> SpeechAttempt:
        """Compare the speech of a sentence with its text; its words only if none stands for sounds in IPA."""
        from afterwords.audio.analysis import HOP_S, speech_mask

        found = recognize(audio, text, lang=lang)
        is_speech = speech_mask(audio.samples, audio.sample_rate).tolist() if audio.duration_s > HOP_S else []
        speech_s = sum(is_speech) * HOP_S
        silences = [sum(1 for _ in run) * HOP_S + _WIDENED_S for spoken, run in groupby(is_speech) if not spoken]
        expected_s = expected_speech_s(_read_aloud(text, lang))
        excess_s = _excess_s(found, is_speech, HOP_S, lang)
        score = self._speaker_score(audio) if speech_s >= SPEAKER_S else None
        faults = _word_faults(found) if is_spelled else []
        if max(silences, default=0.0) >= SILENCE_S:
            faults.append(SpeechFault.SILENCE)
        if not PACE_MIN * expected_s <= speech_s <= PACE_MAX * expected_s + SLACK_S or excess_s > EXCESS_S:
            faults.append(SpeechFault.DURATION)
        if score is not None and score < SPEAKER_MIN:
            faults.append(SpeechFault.SPEAKER)
        errors = [max(last - first, end - start) for first, last, start, end in found.differences]
        return SpeechAttempt(
            seed=seed,
            faults=tuple(faults),
            recognized=found.text,
            word_error_rate=round(sum(errors) / max(1, len(found.given)), 3),
            longest_error=max(errors, default=0),
            margin=round(found.margin, 2),
            longest_silence_s=round(max(silences, default=0.0), 2),
            excess_s=round(excess_s, 2),
            s_per_character=round(speech_s / len(text), 4),
            speaker_score=score,
        )

    def _speaker_score(self, audio: Audio) -> float | None:
        if self._reference is None:
            return None
        from afterwords.backends.lite.speaker import embed

        of_voice = _embed_reference(self._reference.samples.tobytes(), self._reference.sample_rate)
        return round(float(embed(audio.samples, audio.sample_rate) @ of_voice), 3)


@lru_cache(maxsize=4)
def _embed_reference(samples: bytes, sample_rate: int) -> Samples:
    """Return the embedding of a recording. Each sentence of a book has a checker of its own."""
    import numpy as np

    from afterwords.backends.lite.speaker import embed

    return embed(np.frombuffer(samples, np.float32), sample_rate)


def forget_voices() -> None:
    """Remove all recordings from memory."""
    _embed_reference.cache_clear()


def _word_faults(found: Recognition) -> list[SpeechFault]:
    """Return what is wrong with the words.

    Words that differ count only if the sound fits them clearly better than the text: what is misunderstood or spelled
    in another way fits both. But speech recognition neither moves a word nor leaves out the first or last one,
    unless it is short, such as "a".
    """
    given, recognized, runs = found.given, found.recognized, found.differences
    if not recognized:
        return [SpeechFault.WORDS]  # of a sound that fits no words, the likelihoods say nothing
    faults = []
    n_errors = sum(max(last - first, end - start) for first, last, start, end in runs)
    lost = {word for first, last, _, _ in runs for word in given[first:last]}
    found_elsewhere = lost.intersection(word for _, _, start, end in runs for word in recognized[start:end])
    n_extra = [end - start - (last - first) for first, last, start, end in runs if not _has_digit(given[first:last])]
    limit = max(MARGIN, MARGIN_PER_WORD * len(given))
    if (
        found.margin > limit
        or (found.margin > MARGIN_OF_WORDS and 2 * n_errors >= max(4, len(given)))
        or found_elsewhere
        or max(n_extra, default=0) >= EXTRA_WORDS
    ):
        faults.append(SpeechFault.WORDS)
    missing = []
    for first, last, start, end in runs:
        least = MARGIN_OF_WORDS
        if start == end:
            is_short = len("".join(given[first:last])) < LEAST_LETTERS and len(given) > FEW_WORDS
            least = MARGIN if is_short else 0.0
        if last - first > end - start and found.margin >= least:
            missing.append((first, last))
    if any(first == 0 for first, _ in missing):
        faults.append(SpeechFault.MISSING_START)
    if any(last == len(given) for _, last in missing):
        faults.append(SpeechFault.MISSING_END)
    in_text = Counter(pairwise(given))
    pairs = Counter(pairwise(recognized))
    if recognized == given * 2 or any(count > 1 and count > in_text[pair] for pair, count in pairs.items()):
        faults.append(SpeechFault.REPETITION)
    return faults


def _excess_s(found: Recognition, is_speech: list[bool], hop_s: float, lang: str) -> float:
    """Return the longest time that a word takes beyond what its length explains, in seconds.

    Speech recognition likes to leave out what does not fit: the words around it seem long then. A word that only seems
    long because its border is misplaced is not long together with its neighbor.
    """
    starts = [0, *(round(word.start_s / hop_s) for word in found.words[1:]), len(is_speech)]
    lengths_s = [sum(is_speech[start:end]) * hop_s for start, end in pairwise(starts)]
    n_chars = [len(_read_aloud(word.text, lang)) + 1 for word in found.words]
    pace = max(EXCESS_PACE, sum(lengths_s) / max(1, sum(n_chars)))
    alone = [length_s - pace * n for length_s, n in zip(lengths_s, n_chars, strict=False)]
    pairs = [first + second for first, second in pairwise(alone)]
    return max((min((each, *pairs[max(0, at - 1) : at + 1])) for at, each in enumerate(alone)), default=0.0)


def _read_aloud(text: str, lang: str) -> str:
    """Return a text of about the length that it has with its digits and symbols written out."""
    written_out = normalize(text, lang) or text
    return "".join(c * DIGIT_CHARS if c.isdecimal() or c in "$€£%&" else c for c in written_out)


def _has_digit(words: Iterable[str]) -> bool:
    return any(character.isdecimal() for word in words for character in word)


def _spoken_words(engine: Engine, sentence: str) -> str:
    """Return a sentence without the words that the engine leaves out; empty if it can't speak any."""
    try:
        left_out = unspoken(engine, sentence) if is_speakable(sentence) else sentence.split()
    except TextError:
        return ""
    return " ".join(word for word in sentence.split() if word not in left_out)


def _moved(word: WordTiming, offset: int, shift_s: float) -> WordTiming:
    times = {"start_s": word.start_s + shift_s, "end_s": word.end_s + shift_s}
    return word.model_copy(update={"start": word.start + offset, **times})
