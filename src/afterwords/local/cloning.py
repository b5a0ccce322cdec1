"""Grade a recording, and clone a voice from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from afterwords.audio.audio import Audio, decode
from afterwords.backends import registry
from afterwords.backends.base import Progress, Reference, ignore_progress
from afterwords.disk import read_stream
from afterwords.errors import (
    ConsentRequiredError,
    InvalidOptionError,
    MissingExtraError,
    RecordingError,
    RecordingWarning,
    UnavailableError,
    VoiceExistsError,
    pip_install,
)
from afterwords.library.library import Library
from afterwords.library.prompts import find_equal_prompt, prompt_key
from afterwords.library.takes import check_emotion
from afterwords.local.management import library, voices
from afterwords.local.prompts import read_reference
from afterwords.models import Consent, ConsentKind, ConsentName, ReferenceInfo, Voice, now
from afterwords.provenance import seal
from afterwords.reference import Finding, PreparedReference, Report, examine, prepare
from afterwords.reference.preparation import SURPLUS_MAX
from afterwords.text import MAX_LOCAL_CHARS, check_name, check_text, normalize_lang

if TYPE_CHECKING:
    from afterwords.backends.registry import Backend
    from afterwords.reference.transcription import Transcript

MAX_STREAM_BYTES: Final = 512 * 2**20
"""Limit for a recording that is read from a pipe: half an hour of 48 kHz stereo in 24 bits."""

SAME_SPEAKER_MIN: Final = 0.7
"""Similarity of two recordings below which a take is doubted: the same person has about 0.92, another person 0.58."""

CorrectTranscript = Callable[["Transcript"], str]
"""Returns the transcript as the user corrected it."""

AcceptRecording = Callable[[PreparedReference], bool]
"""Called with the prepared recording before the slow work; returns whether to go on despite grade F."""


def inspect(
    recording: Path | str | bytes | BinaryIO,
    *,
    text: str | None = None,
    lang: str = "en",
    progress: Progress = ignore_progress,
) -> Report:
    """Grade a recording from A to F for cloning, with reasons. Nothing is stored.

    Args:
        recording: A file, its bytes, or an open binary file, in any supported audio format, 5 s to 30 min.
        text: Transcript of the recording. It is compared with the recording if faster-whisper is installed.
        lang: Language of the recording.
        progress: Called with a fraction and a step.

    Warns:
        RecordingWarning: The file is damaged, or the recording has another problem.

    Raises:
        RecordingError: The recording can't be read.
    """
    lang = normalize_lang(lang)
    text = check_text(text, max_chars=MAX_LOCAL_CHARS) if text is not None else None
    original, label = _read_source(recording)
    audio = decode(original, name=label)
    transcript = transcribe_recording(audio, lang, progress)[0] if text is not None else None
    for doubt in (*audio.notices, *transcript_doubts(transcript, lang=lang, text=text)):
        warnings.warn(doubt, RecordingWarning, stacklevel=2)
    return examine(audio, transcript=text, words=transcript.words if transcript else None)


@dataclass(frozen=True, slots=True)
class CloneResult:
    """A cloned voice, and what was found on the way.

    Attributes:
        voice: The voice as the library stores it.
        prepared: The window of the recording that was used, with its grade.
        backend: The backend that the voice was prepared for.
        notices: Sentences to show to the user.
        doubts: The notices about the recording, for example that its file is damaged.
    """

    voice: Voice
    prepared: PreparedReference
    backend: str
    notices: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def clone(
    source: Path | str | bytes | BinaryIO,
    *,
    name: str,
    consent: ConsentKind | ConsentName | None = None,
    text: str | None = None,
    lang: str = "en",
    backend: str = "auto",
    emotion: str | None = None,
    fast: bool = False,
    replace: bool = False,
    anyway: bool = False,
    progress: Progress = ignore_progress,
) -> Voice:
    """Clone a voice from a recording and store it in the library.

    Args:
        source: A file, its bytes, or an open binary file, in any supported audio format, 5 s to 30 min. An open file
            is read from its position, or from its start if it is at its end.
        name: Name of the voice.
        consent: The right to clone it: "self", "granted", "public-domain" or "synthetic".
        text: Transcript of the recording. If it is omitted and faster-whisper is installed, the recording is
            transcribed; engines that need a transcript otherwise use the sound alone.
        lang: Language of the recording.
        backend: Backend to prepare the voice for; "auto" takes the best one on this machine.
        emotion: Add a take to the voice of that name: a voice of the same family, called for example me-happy.
        fast: Prepare the voice in less time; it resembles the speaker less.
        replace: Replace the voice of that name.
        anyway: Clone a recording of grade F, too.
        progress: Called with a fraction and a step.

    Warns:
        RecordingWarning: The recording has a problem, for example a damaged file or grade D.

    Raises:
        RecordingError: The recording has grade F and `anyway` is not set.
        ConsentRequiredError: `consent` is missing.
        VoiceExistsError: The name is taken and `replace` is not set.
        VoiceNotFoundError: There is no voice of that name to add a take to.
        RecordingError: The recording can't be used.
        UnavailableError: No engine can run on this machine.
    """
    cloned = make_voice(
        source,
        name=name,
        consent=consent,
        text=text,
        lang=lang,
        backend=backend,
        emotion=emotion,
        fast=fast,
        replace=replace,
        progress=progress,
        accept=lambda _prepared: anyway,
    )
    report = cloned.prepared.report
    poor = [f"The recording is graded {report.grade}: {_worst(report).reason}"] if report.grade in "DF" else []
    for doubt in (*cloned.doubts, *poor):
        warnings.warn(doubt, RecordingWarning, stacklevel=2)
    return cloned.voice


def check_clone(
    name: str, *, lang: str = "en", backend: str = "auto", emotion: str | None = None, replace: bool = False
) -> Backend:
    """Check the options of `clone` before there is a recording; return the backend to prepare for.

    Raises:
        InvalidInputError, VoiceExistsError: The name is invalid or taken.
        VoiceNotFoundError: There is no voice to add a take to.
        UnsupportedLangError, InvalidInputError, BackendUnavailableError: No backend here speaks the language.
    """
    name = check_name(name if emotion is None else f"{library().get(name).name}-{check_emotion(emotion)}")
    if not replace and any(voice.name == name for voice in voices()):
        raise VoiceExistsError.for_name(name)
    return registry.choose(backend, lang=normalize_lang(lang))


def make_voice(
    source: Path | str | bytes | BinaryIO,
    *,
    name: str,
    consent: ConsentKind | str | None,
    text: str | None = None,
    lang: str = "en",
    backend: str = "auto",
    emotion: str | None = None,
    fast: bool = False,
    replace: bool = False,
    progress: Progress = ignore_progress,
    confirm: CorrectTranscript | None = None,
    accept: AcceptRecording = lambda _prepared: False,
) -> CloneResult:
    """Clone a voice like `clone`, and return everything that was found on the way.

    Args:
        confirm: Lets the user correct the transcript.
        accept: Lets the user see the grade before the slow work begins, and accept an F.
    """
    name, lang = check_name(name), normalize_lang(lang)
    stated = _state_consent(consent)
    text = check_text(text, max_chars=MAX_LOCAL_CHARS) if text is not None else None
    voices = library()
    chosen = check_clone(name, lang=lang, backend=backend, emotion=emotion, replace=replace)
    speaker = voices.get(name) if emotion is not None else None
    progress(0.0, "reading")
    original, label = _read_source(source)
    audio = decode(original, name=label)
    prepared, notices, doubts = _prepare(audio, label, text, lang, confirm, progress, accept)
    doubts = [*audio.notices, *doubts, *(_doubt_speaker(voices, speaker, prepared) if speaker else ())]
    info = ReferenceInfo(
        sha256=sha256(prepared.wav).hexdigest(),
        duration_s=round(len(prepared.samples) / prepared.sample_rate, 3),
        sample_rate=prepared.sample_rate,
        grade=prepared.report.grade,
    )
    with BytesIO(original) if isinstance(original, bytes) else original.open("rb") as file:
        provenance = seal(
            reference_sha256=info.sha256,
            original_sha256=file_digest(file, "sha256").hexdigest(),
            window_start_s=prepared.window.start_s,
            consent=stated,
        )
    fields: dict[str, Any] = {"name": name, "lang": lang, "backend": chosen.name, "ref_text": prepared.text}
    if speaker is not None and emotion is not None:
        emotion = check_emotion(emotion)
        fields["name"], fields["metadata"] = f"{speaker.name}-{emotion}", {"emotion": emotion}
        fields["family"] = speaker.family or speaker.name
    voice = Voice(**fields, reference=info, consent=stated, provenance=provenance)
    engine = registry.engine_for(chosen)
    key = prompt_key(chosen.name, engine.prompt_version, is_fast=fast)
    prompt = find_equal_prompt(voices, voice, key)
    if prompt is None:
        reference = Reference(prepared.samples, prepared.sample_rate, prepared.text, lang)
        prompt = engine.prepare(reference, progress, fast=fast)
    if isinstance(notice := engine.describe(prompt).get("notice"), str):
        notices.append(notice)
    suffix = Path(label).suffix
    if speaker is not None and speaker.family is None:
        voices.set_family(speaker.voice_id, speaker.name)
    voice = voices.save(voice, reference_wav=prepared.wav, original=original, original_suffix=suffix, replace=replace)
    voices.save_prompt(voice, key, prompt)
    return CloneResult(voice, prepared, chosen.name, (*doubts, *notices), tuple(doubts))


def _doubt_speaker(voices: Library, speaker: Voice, take: PreparedReference) -> list[str]:
    """Return a notice if the recording of a take does not sound like the speaker."""
    from afterwords.backends.lite.speaker import embed

    reference = read_reference(voices, speaker)
    similarity = float(embed(reference.samples, reference.sample_rate) @ embed(take.samples, take.sample_rate))
    if similarity >= SAME_SPEAKER_MIN:
        return []
    return [
        f"The recording may be of another person than {speaker.name}: its similarity is {similarity:.2f}, where the "
        "same person has about 0.9. A take needs the consent of the person who speaks."
    ]


def _state_consent(kind: ConsentKind | str | None) -> Consent:
    if kind is None:
        raise ConsentRequiredError
    try:
        return Consent(kind=ConsentKind(kind), stated_at=now())
    except ValueError:
        raise InvalidOptionError.for_option("consent", value=kind, allowed=", ".join(ConsentKind)) from None


def _read_source(source: Path | str | bytes | BinaryIO) -> tuple[Path | bytes, str]:
    """Return the path or the bytes of a recording, and how to name it in a message."""
    if isinstance(source, bytes):
        return source, "the recording"
    if isinstance(source, (str, Path)):
        return Path(source), Path(source).name
    content = read_stream(source, MAX_STREAM_BYTES + 1, name="The recording")
    if len(content) > MAX_STREAM_BYTES:
        raise RecordingError.too_large("The recording", size_bytes=len(content), maximum_bytes=MAX_STREAM_BYTES)
    name = getattr(source, "name", None)
    return content, Path(name).name if isinstance(name, str) and Path(name).suffix else "the recording"


def _prepare(
    audio: Audio,
    label: str,
    text: str | None,
    lang: str,
    confirm: CorrectTranscript | None,
    progress: Progress,
    accept: AcceptRecording,
) -> tuple[PreparedReference, list[str], list[str]]:
    """Return the reference with its transcript, notices, and doubts about the transcript.

    A given transcript is compared with the recording and cut with it. Without one, the chosen window is transcribed;
    a doubtful transcript is dropped unless the user can correct it.
    """
    if text is None:
        prepared = prepare(audio, source=label, transcript=None)
        _check_grade(prepared, label, accept)
        transcript, notices = transcribe_recording(Audio(prepared.samples, prepared.sample_rate), lang, progress)
        if transcript is None:
            return prepared, notices, []
        if confirm and transcript.text:
            text = confirm(transcript).strip() or None
        elif not transcript.doubt:
            text = transcript.text.strip() or None
        prepared = replace(prepared, text=text and check_text(text, max_chars=MAX_LOCAL_CHARS))
        return prepared, notices, transcript_doubts(transcript, lang=lang, text=text)
    transcript, notices = transcribe_recording(audio, lang, progress)
    prepared = prepare(audio, source=label, transcript=text, words=transcript.words if transcript else None)
    _check_grade(prepared, label, accept)
    if prepared.is_transcript_dropped:
        reason = (
            "it does not match the recording." if transcript else f"to keep one, first run: {pip_install('transcribe')}"
        )
        notices.append(f"The transcript could not be cut to the window that is kept, so it was left out: {reason}")
    return prepared, notices, transcript_doubts(transcript, lang=lang, text=text)


def _check_grade(prepared: PreparedReference, label: str, accept: AcceptRecording) -> None:
    is_accepted = accept(prepared)
    if prepared.report.grade == "F" and not is_accepted:
        worst = _worst(prepared.report)
        raise RecordingError(
            f"{label} is graded F for cloning: {worst.reason}",
            code="poor_recording",
            hint=f"{worst.advice or 'record again'}; or clone it anyway with --anyway (anyway=True in Python).",
        )


def _worst(report: Report) -> Finding:
    """Return the finding with the worst grade, the first of several; findings are sorted by importance."""
    return max((finding for finding in report.findings if finding.grade), key=lambda finding: str(finding.grade))


def transcript_doubts(transcript: Transcript | None, *, lang: str, text: str | None) -> list[str]:
    """Return a notice about a doubtful transcript, or nothing if the given text matches the recording."""
    from afterwords.reference.transcription import surplus

    if transcript is None or not transcript.doubt:
        return []
    if text and transcript.words and surplus(text, transcript.words) <= SURPLUS_MAX:
        return []
    dropped = "" if text else " So no transcript was kept; the backend lite needs none."
    if transcript.lang != lang:
        fix = f'If that is right, give it: --lang {transcript.lang}, or lang="{transcript.lang}" in Python.'
    else:
        fix = "If another language is spoken, name it: --lang de, or lang= in Python; if not, record it more clearly."
    return [f"{transcript.doubt}{dropped} {fix}"]


def transcribe_recording(audio: Audio, lang: str, progress: Progress) -> tuple[Transcript | None, list[str]]:
    """Transcribe a recording if faster-whisper is installed; return notices if that fails."""
    from afterwords.reference.transcription import transcribe

    try:
        return transcribe(audio, lang=lang, check_lang=True, progress=progress), []
    except MissingExtraError:
        return None, []
    except UnavailableError as error:
        return None, [error.message]
