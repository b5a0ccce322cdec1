"""Transcribe recordings with faster-whisper, and align a given transcript with the recognized words.

The model is optional (extra `transcribe`) and loads when `transcribe` is called; alignment doesn't need it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import lru_cache, partial
from importlib.util import find_spec
from io import StringIO
from itertools import product
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afterwords.audio.audio import Audio
from afterwords.audio.effects import resample
from afterwords.config import load_config
from afterwords.errors import MissingExtraError, UnavailableError, pip_install
from afterwords.models import UNSPACED, Alignment, WordTiming, word_spans
from afterwords.network import turn_off_telemetry
from afterwords.normalization import normalize

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

DEFAULT_MODEL = "small"
"""The smallest multilingual Whisper that spells names and other languages well; a download of about 480 MB."""

DOUBT_BELOW = 0.5
"""Words with a lower probability are marked for correction."""

_LANG_SURE, _LANG_RULED_OUT = 0.8, 0.1
"""Another language is reported at the first probability or more, with the expected one at the second or less.

whisper-base on synthetic speech gave 0.95 and more for es, fr, hi and it, where "en" had at most 0.014; for English of
eleven voices, some with accents, "en" had 0.72 and more, also at 0 dB of noise; German by English voices had 0.5."""
_CONFIDENCE_MIN = 0.7
"""Mean confidence of a reliable transcript. whisper-tiny.en gave English 0.79 and more, also at 5 dB of noise, and its
inventions for German, Spanish, Dutch and Hindi 0.36 to 0.69, unless it repeated itself."""
_REPETITION_MAX = 2.4
"""Compression ratio above which Whisper considers its own text a loop."""
_WHISPER_RATE = 16_000  # Hz; the only rate of Whisper
_WHISPER_FRAMES = 3000  # of 10 ms, in its window
_WINDOW_S = 30.0
_MARGIN_PER_WORD = 3.0  # nats; between those of words that are misunderstood and of words that are other ones
_UNIT = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+")
_PIECE = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*")
_BRACKET = re.compile(r"[][(){}<>]")
_CLINGS = tuple("-'’‐‑.,:@/")  # start of the second part of a word that Whisper splits, as in ill|-disposed and $1|,250
_SPELLED = {"mr": "mister", "mrs": "missus", "dr": "doctor"}  # Whisper writes titles, people write them out


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times in seconds; `confidence` is in [0, 1], and 0 if the word was not recognized."""

    text: str = field(repr=False)
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The recognized text, its words with times, and the language code.

    `doubt` is a sentence on why the transcript is unreliable, or empty.
    """

    text: str = field(repr=False)
    words: tuple[Word, ...] = field(repr=False)
    lang: str
    doubt: str = ""

    def marked(self) -> str:
        """Return the text with `?` after each doubtful word, for correction."""
        return join_words(f"{word.text}?" if word.confidence < DOUBT_BELOW else word.text for word in self.words)


def transcribe(
    audio: Audio,
    *,
    lang: str | None = None,
    check_lang: bool = False,
    model: str | None = None,
    progress: Callable[[float, str], None] = lambda _fraction, _step: None,
) -> Transcript:
    """Transcribe a recording with word times. Equal audio gives equal text.

    Args:
        audio: Mono, at any rate.
        lang: Language code; None: detected.
        check_lang: Detect the language first, with a multilingual model. If it clearly differs from `lang`, the text is
            empty, since the model would invent it, and `doubt` says so. Takes as long as transcribing half a minute.
        model: Folder or hub name of a faster-whisper model; None: the setting `whisper`, else DEFAULT_MODEL, which is
            downloaded on first use. The model stays loaded.
        progress: Called with the progress of a download and of transcription, which takes half a minute of audio at a
            time; an exception that it raises ends it.

    Raises:
        MissingExtraError: faster-whisper is not installed.
        UnavailableError: The model can't be loaded, does not know the language, or failed.
    """
    whisper = load_model(model, progress)
    progress(0.0, "transcribing")
    if lang not in (None, "en") and not whisper.model.is_multilingual:
        raise _failure(f"the Whisper model supports only English, not '{lang}'")
    if len(audio.samples) == 0:
        return Transcript("", (), lang or "en")
    samples = resample(audio.samples, audio.sample_rate, _WHISPER_RATE)
    try:
        if check_lang and lang is not None and whisper.model.is_multilingual:
            likeliest, probability, every = whisper.detect_language(samples)
            if likeliest != lang and probability >= _LANG_SURE and dict(every).get(lang, 0) <= _LANG_RULED_OUT:
                doubt = (
                    f'The language of the recording seems to be "{likeliest}" ({probability:.0%} sure), not "{lang}".'
                )
                return Transcript("", (), likeliest, doubt)
        segments, info = whisper.transcribe(
            samples,
            language=lang,
            word_timestamps=True,
            temperature=0.0,  # no retry at a higher, random temperature
            condition_on_previous_text=False,  # an error doesn't repeat in the rest
        )
    except Exception as error:
        raise _failure(_first_line(error)) from error
    found = []
    for segment in _recognized(segments):
        found.append(segment)
        progress(min(1.0, segment.end / audio.duration_s), "transcribing")
    words = tuple(_whole_words(piece for segment in found for piece in segment.words or ()))
    repetition = max((segment.compression_ratio for segment in found), default=0.0)
    confidence = sum(word.confidence for word in words) / max(1, len(words))
    doubt = ""
    if not words:
        doubt = f'No words of the language "{info.language}" were recognized in the recording.'
    elif confidence < _CONFIDENCE_MIN or repetition > _REPETITION_MAX:
        doubt = (
            f'The recording was recognized poorly as the language "{info.language}" '
            f"({confidence:.0%} sure{', with repetitions' if repetition > _REPETITION_MAX else ''})."
        )
    return Transcript(join_words(word.text for word in words), words, info.language, doubt)


def _recognized(segments: Iterable[Any]) -> Iterator[Any]:
    """Yield segments while they are recognized."""
    try:
        yield from segments
    except Exception as error:
        raise _failure(_first_line(error)) from error


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was recognized in speech whose text is known.

    Attributes:
        text: The recognized text.
        words: Its words, with their times.
        given: The words of the text for comparison: lowercase, without punctuation, split at hyphens, with words for
            numbers and other written forms.
        recognized: The same of the recognized words.
        differences: Runs that differ: from and to in `given`, from and to in `recognized`.
        margin: How much better the recognized words explain the sound than the text, as a difference of
            log-likelihoods in nats. About 0 to 5 if the text is spoken, also if its spelling differs.
    """

    text: str = field(repr=False)
    words: tuple[Word, ...] = field(repr=False)
    given: tuple[str, ...] = field(repr=False)
    recognized: tuple[str, ...] = field(repr=False)
    differences: tuple[tuple[int, int, int, int], ...]
    margin: float


def recognize(audio: Audio, text: str, *, lang: str, model: str | None = None) -> Recognition:
    """Recognize speech whose text is known, and compare both.

    Recognition is greedy, since a search prefers fluent text and leaves out repetitions. The margin of speech over
    30 s, the window of the model, is estimated by the number of words.

    Args:
        audio: Mono, at any rate.
        text: What should be spoken.
        lang: Its two-letter language code.
        model: As for `transcribe`.

    Raises:
        MissingExtraError, UnavailableError: As for `transcribe`.
    """
    from faster_whisper.audio import pad_or_trim
    from faster_whisper.tokenizer import Tokenizer

    whisper = load_model(model)
    if lang != "en" and not whisper.model.is_multilingual:
        raise _failure(f"the Whisper model supports only English, not '{lang}'")
    samples = resample(audio.samples, audio.sample_rate, _WHISPER_RATE)
    readings = _readings(text, lang)
    try:
        options = {"language": lang, "temperature": 0.0, "condition_on_previous_text": False, "beam_size": 1}
        found = list(whisper.transcribe(samples, word_timestamps=True, **options)[0])
        words = tuple(_whole_words(piece for segment in found for piece in segment.words or ()))
        written = "".join(segment.text for segment in found).strip()
        compared = []
        for reading, spelled in product(readings, (normalize(written, lang), written)):
            given, recognized = _pieces(reading), _pieces(spelled)
            runs = tuple(
                (first, last, start, end)
                for tag, first, last, start, end in _opcodes(given, recognized)
                if tag != "equal" and "".join(given[first:last]) != "".join(recognized[start:end])  # email is e-mail
            )
            n_errors = sum(max(last - first, end - start) for first, last, start, end in runs)
            compared.append((n_errors, tuple(given), tuple(recognized), runs))
        best = min(compared, key=lambda each: each[0])
        n_errors, runs = best[0], best[-1]
        make = partial(Recognition, written, words, *best[1:])
        if not runs:
            return make(0.0)
        if audio.duration_s > _WINDOW_S:
            return make(_MARGIN_PER_WORD * n_errors)
        tokenizer = Tokenizer(whisper.hf_tokenizer, whisper.model.is_multilingual, task="transcribe", language=lang)
        features = whisper.feature_extractor(samples)[..., :-1]
        encoded = whisper.encode(pad_or_trim(features, _WHISPER_FRAMES))
        n_frames = min(features.shape[-1], _WHISPER_FRAMES)

        def log_likelihood(spoken: str) -> float:
            tokens = tokenizer.encode(f" {spoken.strip()}")
            (aligned,) = whisper.model.align(encoded, tokenizer.sot_sequence, [tokens], n_frames)
            return sum(log(max(probability, 1e-6)) for probability in aligned.text_token_probs)

        margin = log_likelihood(written) - max(map(log_likelihood, readings))
    except Exception as error:
        raise _failure(_first_line(error)) from error
    return make(max(0.0, margin))


def _readings(text: str, lang: str) -> list[str]:
    """Return how a text may be spoken and written: with words for its numbers, and emoji by name or left out."""
    plain = "".join(character for character in text if unicodedata.category(character) != "So")
    without_brackets = (
        _BRACKET.sub(" ", reading) for reading in (normalize(text, lang), normalize(plain, lang), plain)
    )
    return [*dict.fromkeys(filter(None, (" ".join(reading.split()) for reading in without_brackets)))] or [text]


def load_model(model: str | None = None, progress: Callable[[float, str], None] = lambda *_: None) -> WhisperModel:
    """Return the model that `transcribe` uses, downloaded and loaded if needed; arguments and errors are the same."""
    return _model(model or load_config().whisper or DEFAULT_MODEL, progress)


def _model(name: str, progress: Callable[[float, str], None]) -> WhisperModel:
    """Return the model with a name or in a folder, downloaded if needed."""
    folder = Path(name).expanduser()
    if (folder.is_absolute() or name.startswith(".")) and not folder.is_dir():
        raise _failure(f"there is no model folder {name}")
    try:
        if folder.is_dir():
            return _load(str(folder))
        try:
            return _load(name)
        except (OSError, RuntimeError):  # missing or partly downloaded
            return _load(_download(name, progress))
    except MissingExtraError:
        raise
    except Exception as error:
        raise _failure(f"the model {name} can't be loaded ({_first_line(error)})") from error


@lru_cache(maxsize=1)
def _load(place: str) -> WhisperModel:
    turn_off_telemetry()
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise MissingExtraError.for_extra("transcribe", purpose="Transcribing") from error
    # Local files only: no request to the hub for a model on disk. int8 on the CPU runs everywhere with equal results.
    return WhisperModel(place, local_files_only=True, device="cpu", compute_type="int8")


def _download(name: str, progress: Callable[[float, str], None]) -> str:
    """Download a model from the hub, resuming an earlier download, and return its folder."""
    turn_off_telemetry()
    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    from afterwords.network import explain_network_errors

    reached = 0.0  # the total grows during the download, and progress must not go back
    is_over = False  # the hub client closes a bar when it is garbage-collected, maybe much later

    class Reported(tqdm):  # type: ignore[misc]  # tqdm has no types
        """A progress bar of the hub client that calls `progress` and prints nothing."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": False, "file": StringIO()})

        def display(self, *_args: Any, **_options: Any) -> None:
            if self.unit == "B" and self.total and self.n and not is_over:
                nonlocal reached
                reached = max(reached, min(1.0, self.n / self.total))
                progress(reached, "downloading")

    files = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
    repository = name if "/" in name else f"Systran/faster-whisper-{name}"
    is_offline = load_config().is_offline
    try:
        with explain_network_errors():
            return str(
                snapshot_download(repository, allow_patterns=files, tqdm_class=Reported, local_files_only=is_offline)
            )
    finally:
        is_over = True


def _failure(why: str) -> UnavailableError:
    return UnavailableError(f"The recording can't be transcribed: {why}.", code="transcriber_unavailable")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _whole_words(pieces: Iterable[Any]) -> Iterator[Word]:
    """Join the pieces of Whisper into words at hyphens and apostrophes; drop pieces without a letter."""
    word: Word | None = None
    for piece in pieces:
        text = piece.word.strip()
        clings = text.startswith(_CLINGS) and not piece.word.startswith(" ")
        if word is not None and (clings or not _pieces(text)):
            doubt = min(word.confidence, piece.probability) if clings else word.confidence
            word = Word(word.text + text, word.start_s, max(word.end_s, float(piece.end)), float(doubt))
        elif _pieces(text):
            if word is not None:
                yield word
            word = Word(text, float(piece.start), float(piece.end), float(piece.probability))
    if word is not None:
        yield word


def join_words(texts: Iterable[str]) -> str:
    """Join words with spaces, except in scripts without spaces."""
    joined = ""
    for text in texts:
        is_unspaced = bool(joined) and re.search(rf"[{UNSPACED}]\W*$", joined) and re.match(rf"[{UNSPACED}]", text)
        joined += text if not joined or is_unspaced else f" {text}"
    return joined


# -- aligning a given transcript -----------------------------------------------------------------------------


def align(
    audio: Audio,
    text: str,
    *,
    lang: str,
    model: str | None = None,
    progress: Callable[[float, str], None] = lambda _fraction, _step: None,
) -> Alignment:
    """Return when each character of a text is spoken in audio, by the word times of faster-whisper.

    The recognized words are matched with those of the text; characters within a word have equal shares. Starts of words
    that were recognized are about 0.1 s off, and the times of others are interpolated: `confidence` is the share of the
    first. Numbers and abbreviations count as others where Whisper writes them differently.

    Args:
        audio: Mono, at any rate.
        text: What is spoken.
        lang: Its two-letter language code.
        model: As for `transcribe`, like `progress`.
        progress: Called with the progress.

    Raises:
        UnavailableError: faster-whisper is not installed, or recognizes no word; or as for `transcribe`.
    """
    check_aligner("The audio has")
    recognized = transcribe(audio, lang=lang, model=model, progress=progress).words
    spans = [span for span in word_spans(text) if _pieces(text[slice(*span)])]
    matched = match_words(" ".join(text[slice(*span)] for span in spans), recognized)
    if not matched:
        why = "The timestamps can't be found: no word was recognized in the speech."
        raise UnavailableError(why, code="timestamps_unavailable", hint="use a larger model: set AFTERWORDS_WHISPER.")
    words = [
        WordTiming(text=text[start:end], start=start, start_s=word.start_s, end_s=word.end_s)
        for (start, end), word in zip(spans, matched, strict=True)
    ]
    confidence = sum(word.confidence > 0 for word in matched) / len(matched)
    return Alignment.from_words(text, words, audio.duration_s, confidence=confidence)


def check_aligner(subject: str) -> None:
    """Raise if `align` can't run.

    Raises:
        UnavailableError: faster-whisper is not installed.
    """
    if find_spec("faster_whisper") is None:
        why = f"{subject} no timestamps, and faster-whisper, which finds them, is not installed."
        raise UnavailableError(why, code="timestamps_unavailable", hint=pip_install("transcribe"))


def coverage(given_text: str, words: Sequence[Word]) -> float:
    """Return the share of recognized words that a transcript has in order, in [0, 1]; 1 without words."""
    held = held_words(given_text, words)
    return sum(held) / len(held) if held else 1.0


def surplus(given_text: str, words: Sequence[Word]) -> float:
    """Return the share of the words of a transcript that were not recognized, in [0, 1]."""
    matched = match_words(given_text, words)
    return sum(word.confidence == 0 for word in matched) / len(matched) if matched else 0.0


def held_words(given_text: str, words: Sequence[Word]) -> tuple[bool, ...]:
    """Return which recognized words a transcript has, ignoring case, hyphens and punctuation."""
    recognized, home = _all_pieces([word.text for word in words])
    is_held = [True] * len(words)
    for tag, _, _, start, end in _opcodes(_all_pieces(_units(given_text))[0], recognized):
        if tag != "equal":
            for position in range(start, end):
                is_held[home[position]] = False
    return tuple(is_held)


def match_words(given_text: str, recognized: Sequence[Word]) -> tuple[Word, ...]:
    """Align the words of a transcript with the recognized words and their times.

    A word recognized differently shares the time of its counterpart; a missing one gets the time between its neighbors.
    Both have a confidence of 0.

    Returns:
        One Word per word of `given_text`, with its spelling and punctuation; () without recognized words.
    """
    if not recognized:
        return ()
    units = _units(given_text)
    given, home = _all_pieces(units)
    pieces, piece_home = _all_pieces([word.text for word in recognized])
    found: list[Word | None] = [None] * len(units)
    # A place between two positions, counted in pieces of the recognized words, in seconds:
    edges = [recognized[index].start_s for index in piece_home] + [recognized[index].end_s for index in piece_home[-1:]]
    for position, first, last, is_equal in _places(given, pieces):
        unit = home[position]
        if is_equal:
            place = replace(recognized[piece_home[int(first)]], text=units[unit])
        else:
            start_s, end_s = (
                edges[int(at)] + (at % 1) * (edges[min(int(at) + 1, len(piece_home))] - edges[int(at)])
                for at in (first, last)
            )
            place = Word(units[unit], start_s, end_s, 0.0)
        if (earlier := found[unit]) is not None:
            start_s, end_s = min(earlier.start_s, place.start_s), max(earlier.end_s, place.end_s)
            place = Word(place.text, start_s, end_s, max(earlier.confidence, place.confidence))
        found[unit] = place
    matched = []
    moment_s = next((word.start_s for word in found if word is not None), recognized[0].start_s)
    for unit_text, word in zip(units, found, strict=True):
        matched.append(word or Word(unit_text, moment_s, moment_s, 0.0))
        moment_s = matched[-1].end_s
    return tuple(matched)


def _opcodes(given: list[str], recognized: list[str]) -> list[tuple[str, int, int, int, int]]:
    return list(SequenceMatcher(None, given, recognized, autojunk=False).get_opcodes())


def _places(given: list[str], recognized: list[str]) -> Iterator[tuple[int, float, float, bool]]:
    """Yield the position (from, to) of each given piece among the recognized ones, and whether they are equal.

    Pieces that differ share the pieces in their place. At both ends of a transcript these are at most as many as the
    given ones: a transcript of one half must not spread over the other.
    """
    for tag, first, last, start, end in _opcodes(given, recognized):
        if tag == "equal":
            for step in range(last - first):
                yield first + step, start + step, start + step + 1, True
        elif tag == "replace":
            count = last - first
            low = max(start, end - count) if first == 0 and last < len(given) else start
            high = min(end, start + count) if last == len(given) and first > 0 else end
            for step in range(count):
                width = (high - low) / count
                yield first + step, low + step * width, low + (step + 1) * width, False


def _units(text: str) -> list[str]:
    """Return the words of a text with their punctuation; single characters in scripts without spaces."""
    units: list[str] = []
    for unit in _UNIT.findall(text):
        if units and not _pieces(unit):
            units[-1] += f" {unit}"  # a dash between spaces isn't a word
        else:
            units.append(unit)
    return units


def _pieces(word: str) -> list[str]:
    """Return a word for comparison: lowercase, without punctuation, split at hyphens."""
    plain = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    return [_SPELLED.get(piece, piece) for piece in _PIECE.findall(plain)]


def _all_pieces(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the pieces of all words, and the index of the word of each piece."""
    pairs = [(piece, index) for index, word in enumerate(words) for piece in _pieces(word)]
    return [piece for piece, _ in pairs], [index for _, index in pairs]
