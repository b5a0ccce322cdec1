"""Words heard in a recording: faster-whisper behind one function, and a given transcript held against what was heard.

Apart because the model is heavy and optional: nothing of it loads until `transcribe` is called, and matching needs
none of it. The reference doctor, the studio and `say --verify` call here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afterwords.audio.audio import Audio
from afterwords.audio.effects import resample
from afterwords.config import load_config
from afterwords.errors import MissingExtraError, TranscriberError
from afterwords.telemetry import turn_off_telemetry

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

DEFAULT_MODEL = "small"
"""The smallest multilingual Whisper that spells names and other languages well; about 480 MB, fetched once."""

DOUBT_BELOW = 0.5
"""A word that the model gave less than this probability is marked for its owner to look at."""

_LANG_SURE, _LANG_RULED_OUT = 0.8, 0.1
"""Another language is heard where it is as likely as the first, and the expected one less likely than the second.

whisper-base on synthetic speech gave 0.95 and more for es, fr, hi and it, where "en" had at most 0.014; for English of
eleven voices, some with accents, "en" had 0.72 and more, also at 0 dB of noise; German by English voices had 0.5."""
_CONFIDENCE_MIN = 0.7
"""Mean of a transcript that can be trusted. whisper-tiny.en gave English 0.79 and more, also at 5 dB of noise, and what
it invented for German, Spanish, Dutch and Hindi 0.36 to 0.69, unless it repeated itself."""
_REPETITION_MAX = 2.4
"""How well a transcript may compress; Whisper's own limit, beyond which it takes its words for a loop."""
_WHISPER_RATE = 16_000  # Hz, all that Whisper takes
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai to Han
_UNIT = re.compile(rf"[{_UNSPACED}][^\w\s]*|[^\s{_UNSPACED}]+")
_PIECE = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:'[^\W_{_UNSPACED}]+)*")
_CLINGS = tuple("-'’‐‑")  # begins the second half of a word that Whisper has split, as in ill|-disposed
_SPELLED = {"mr": "mister", "mrs": "missus", "dr": "doctor"}  # Whisper writes these as titles, people as they sound


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it was heard, in seconds; `confidence` in [0, 1] is 0 for a word that was not heard as such."""

    text: str = field(repr=False)
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was heard: the text, its words with times, the language in two letters.

    `doubt` is a sentence on why it can't be trusted, empty where nothing speaks against it.
    """

    text: str = field(repr=False)
    words: tuple[Word, ...] = field(repr=False)
    lang: str
    doubt: str = ""

    def marked(self) -> str:
        """The text with `?` after each doubtful word, to be corrected by hand."""
        return join_words(f"{word.text}?" if word.confidence < DOUBT_BELOW else word.text for word in self.words)


def transcribe(
    audio: Audio,
    *,
    lang: str | None = None,
    check_lang: bool = False,
    model: str | None = None,
    progress: Callable[[float, str], None] = lambda _fraction, _step: None,
) -> Transcript:
    """Write down what is said in a recording, with the time of every word. The same audio gives the same text.

    Args:
        audio: mono, at any rate.
        lang: two letters; None lets the model tell.
        check_lang: first ask the model which language it hears, where it knows several. Where that clearly is not
            `lang`, nothing is written down, since the model would invent it, and `doubt` says so. That takes about as
            long as half a minute of transcribing.
        model: folder or hub name of a faster-whisper model; None takes the setting `whisper`, else DEFAULT_MODEL, which
            is downloaded when it is first needed. It stays loaded for the life of the process.
        progress: told how far the download is, if there is one, and that the listening has begun.

    Raises:
        MissingExtraError: faster-whisper is not installed.
        TranscriberError: the model can't be had or does not know the language, or it failed.
    """
    whisper = _model(model or load_config().whisper or DEFAULT_MODEL, progress)
    progress(0.0, "transcribing")
    if lang not in (None, "en") and not whisper.model.is_multilingual:
        raise TranscriberError(f"the Whisper model knows English only, and '{lang}' was asked for")
    if len(audio.samples) == 0:
        return Transcript("", (), lang or "en")
    samples = resample(audio.samples, audio.sample_rate, _WHISPER_RATE)
    try:
        if check_lang and lang is not None and whisper.model.is_multilingual:
            likeliest, probability, every = whisper.detect_language(samples)
            if likeliest != lang and probability >= _LANG_SURE and dict(every).get(lang, 0) <= _LANG_RULED_OUT:
                doubt = f'The recording sounds like the language "{likeliest}" ({probability:.0%} sure), not "{lang}".'
                return Transcript("", (), likeliest, doubt)
        segments, info = whisper.transcribe(
            samples,
            language=lang,
            word_timestamps=True,
            temperature=0.0,  # one value: no second try at a higher, random one
            condition_on_previous_text=False,  # keeps a slip from repeating through the rest
        )
        heard = list(segments)
        words = tuple(_whole_words(piece for segment in heard for piece in segment.words or ()))
    except Exception as error:
        raise TranscriberError(_first_line(error)) from error
    repetition = max((segment.compression_ratio for segment in heard), default=0.0)
    doubt = _doubt(words, repetition, info.language)
    return Transcript(join_words(word.text for word in words), words, info.language, doubt)


def _doubt(words: Sequence[Word], repetition: float, lang: str) -> str:
    if not words:
        return f'No words of the language "{lang}" were understood in the recording.'
    confidence = sum(word.confidence for word in words) / len(words)
    if confidence >= _CONFIDENCE_MIN and repetition <= _REPETITION_MAX:
        return ""
    return (
        f'The recording was hardly understood as the language "{lang}" '
        f"({confidence:.0%} sure{', and it repeats itself' if repetition > _REPETITION_MAX else ''})."
    )


def _model(name: str, progress: Callable[[float, str], None]) -> WhisperModel:
    """The model of that name or in that folder, downloaded if it is not here."""
    folder = Path(name).expanduser()
    if (folder.is_absolute() or name.startswith(".")) and not folder.is_dir():
        raise TranscriberError(f"there is no model folder {name}")
    try:
        if folder.is_dir():
            return _load(str(folder))
        try:
            return _load(name)
        except (OSError, RuntimeError):  # not here yet, or its download was broken off
            return _load(_download(name, progress))
    except MissingExtraError:
        raise
    except Exception as error:
        raise TranscriberError(f"the model {name} can't be loaded ({_first_line(error)})") from error


@lru_cache(maxsize=1)
def _load(place: str) -> WhisperModel:
    turn_off_telemetry()
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise MissingExtraError("transcribe", purpose="Transcribing") from error
    # Local files only: no call home for a model that is here. int8 on the CPU runs everywhere, and gives the same text.
    return WhisperModel(place, local_files_only=True, device="cpu", compute_type="int8")


def _download(name: str, progress: Callable[[float, str], None]) -> str:
    """Fetch a model from the hub, going on where an earlier try broke off, and return its folder."""
    turn_off_telemetry()
    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    from afterwords.network import checked_network

    reached = 0.0  # the total grows while files are found, and a bar must not run backwards
    is_over = False  # the client closes a bar whenever the interpreter collects it, which may be much later

    class Reported(tqdm):  # type: ignore[misc]  # tqdm has no types
        """A progress bar of the hub's client, told to `progress` and printed nowhere."""

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
        with checked_network():
            return str(
                snapshot_download(repository, allow_patterns=files, tqdm_class=Reported, local_files_only=is_offline)
            )
    finally:
        is_over = True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _whole_words(pieces: Iterable[Any]) -> Iterator[Word]:
    """Whisper's pieces as words: halves joined at their hyphen or apostrophe, pieces without a letter left out."""
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
    """Make a text of words: a space between them, save where the script has none."""
    joined = ""
    for text in texts:
        is_unspaced = bool(joined) and re.search(rf"[{_UNSPACED}]\W*$", joined) and re.match(rf"[{_UNSPACED}]", text)
        joined += text if not joined or is_unspaced else f" {text}"
    return joined


# -- a given transcript and what was heard -------------------------------------------------------------------


def coverage(given_text: str, words: Sequence[Word]) -> float:
    """Share of the heard words that a given transcript holds, in order, in [0, 1]; 1 where nothing was heard."""
    held = held_words(given_text, words)
    return sum(held) / len(held) if held else 1.0


def surplus(given_text: str, words: Sequence[Word]) -> float:
    """Share of a given transcript's words that were not heard, in [0, 1]."""
    matched = match_words(given_text, words)
    return sum(word.confidence == 0 for word in matched) / len(matched) if matched else 0.0


def held_words(given_text: str, words: Sequence[Word]) -> tuple[bool, ...]:
    """Which of the heard words a given transcript holds, spelling of case, hyphens and punctuation aside."""
    heard, home = _all_pieces([word.text for word in words])
    is_held = [True] * len(words)
    for tag, _, _, start, end in _opcodes(_all_pieces(_units(given_text))[0], heard):
        if tag != "equal":
            for position in range(start, end):
                is_held[home[position]] = False
    return tuple(is_held)


def match_words(given_text: str, heard_words: Sequence[Word]) -> tuple[Word, ...]:
    """Give the words of a transcript the times at which they were heard, so that it can be cut with its recording.

    A word that was heard otherwise shares the time of what stands in its place; one that was not heard at all gets
    the moment between its neighbours. Both have a confidence of 0.

    Returns:
        One Word for each word of `given_text`, in its spelling, with its punctuation; () where nothing was heard.
    """
    if not heard_words:
        return ()
    units = _units(given_text)
    given, home = _all_pieces(units)
    heard, heard_home = _all_pieces([word.text for word in heard_words])
    found: list[Word | None] = [None] * len(units)
    for position, first, last, is_equal in _places(given, heard):
        unit = home[position]
        if is_equal:
            place = replace(heard_words[heard_home[int(first)]], text=units[unit])
        else:
            place = Word(units[unit], *_time_at(heard_words, heard_home, first, last), 0.0)
        found[unit] = _merged(found[unit], place)
    return tuple(_fill_gaps(units, found, heard_words))


def _opcodes(given: list[str], heard: list[str]) -> list[tuple[str, int, int, int, int]]:
    return list(SequenceMatcher(None, given, heard, autojunk=False).get_opcodes())


def _places(given: list[str], heard: list[str]) -> Iterator[tuple[int, float, float, bool]]:
    """For each given piece that has one, its place among the heard ones (from, to), and whether it was heard as such.

    Pieces that were heard otherwise share what stands in their place. At the beginning and the end of a transcript
    that is no more than their own number: a transcript of one half must not be spread over the other.
    """
    for tag, first, last, start, end in _opcodes(given, heard):
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
    """The words of a text as they stand, with their punctuation; one for each sign in scripts without spaces."""
    units: list[str] = []
    for unit in _UNIT.findall(text):
        if units and not _pieces(unit):
            units[-1] += f" {unit}"  # a dash between spaces is no word
        else:
            units.append(unit)
    return units


def _pieces(word: str) -> list[str]:
    """A word as it is compared: small letters, no punctuation, parted at hyphens."""
    plain = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    return [_SPELLED.get(piece, piece) for piece in _PIECE.findall(plain)]


def _all_pieces(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """The pieces of all words, and for each piece which word it comes from."""
    parted = [(piece, index) for index, word in enumerate(words) for piece in _pieces(word)]
    return [piece for piece, _ in parted], [index for _, index in parted]


def _time_at(words: Sequence[Word], home: Sequence[int], first: float, last: float) -> tuple[float, float]:
    """Start and end in seconds of the stretch between two places, counted in pieces of the heard words."""
    edges = [words[index].start_s for index in home] + [words[home[-1]].end_s]
    start, end = (
        edges[int(place)] + (place % 1) * (edges[min(int(place) + 1, len(home))] - edges[int(place)])
        for place in (first, last)
    )
    return start, end


def _merged(earlier: Word | None, later: Word) -> Word:
    if earlier is None:
        return later
    confidence = max(earlier.confidence, later.confidence)
    return Word(later.text, min(earlier.start_s, later.start_s), max(earlier.end_s, later.end_s), confidence)


def _fill_gaps(units: Sequence[str], found: Sequence[Word | None], heard: Sequence[Word]) -> Iterator[Word]:
    moment = next((word.start_s for word in found if word is not None), heard[0].start_s)
    for unit, word in zip(units, found, strict=True):
        yield word or Word(unit, moment, moment, 0.0)
        moment = word.end_s if word is not None else moment
