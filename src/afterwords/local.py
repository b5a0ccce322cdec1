"""Use cases on this machine: clone a voice, say a text with it, stream it.

The command line and `import afterwords` both call these. Nothing leaves the machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from afterwords.audio.audio import Audio, decode
from afterwords.audio.output import write_atomically
from afterwords.audio.wav import read_wav
from afterwords.backends import registry
from afterwords.backends.base import (
    Engine,
    Progress,
    Reference,
    continues_recording,
    ignore_progress,
    reads_ipa,
    timbre_only,
    unspoken,
)
from afterwords.backends.speech_check import SpeechChecker
from afterwords.config import Config, load_config
from afterwords.disk import read_stream
from afterwords.errors import (
    AfterwordsError,
    ConsentRequiredError,
    InvalidOptionError,
    MissingExtraError,
    RecordingError,
    RecordingWarning,
    TextError,
    TextWarning,
    UnavailableError,
    UnsupportedLangError,
    VoiceExistsError,
    VoiceNotFoundError,
    pip_install,
)
from afterwords.library.bundle import Bundle, pack, read_bundle, unpack
from afterwords.library.library import Library
from afterwords.library.prompts import find_equal_prompt, find_prompt, prompt_key, save_bundled_prompts, usable_prompts
from afterwords.library.takes import NEUTRAL, check_emotion, find_take, takes
from afterwords.markup import parse
from afterwords.models import (
    Consent,
    ConsentKind,
    ConsentName,
    Estimate,
    ReferenceInfo,
    SpeechOptions,
    SpeechTask,
    Voice,
    now,
)
from afterwords.provenance import mark_tags, seal
from afterwords.reference import Finding, PreparedReference, Report, examine, prepare
from afterwords.reference.preparation import SURPLUS_MAX
from afterwords.speech import Aligner, Speech, speak, speak_live
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


def library(config: Config | None = None) -> Library:
    """Return the library of voices on this machine."""
    return Library((config or load_config()).home)


def voices() -> list[Voice]:
    """Return all voices of the library, by name. Damaged ones are left out; `library().scan()` reports them."""
    return library().list()


def rename(voice: Voice | str, new: str) -> Voice:
    """Rename a voice of the library, and return it.

    Raises:
        VoiceNotFoundError: The library has no such voice.
        InvalidInputError, VoiceExistsError: The new name is invalid or taken.
    """
    return library().rename(_id_or_name(voice), new)


def remove(voice: Voice | str) -> None:
    """Remove a voice from the library with its recordings, transcript and everything made from them.

    Raises:
        VoiceNotFoundError: The library has no such voice.
    """
    library().remove(_id_or_name(voice))


def default_voice(voice: Voice | str | None = None) -> Voice | None:
    """Set the voice to use when none is named, or return it; None if no default is set.

    Raises:
        VoiceNotFoundError: The library has no such voice.
    """
    return library().default() if voice is None else library().set_default(_id_or_name(voice))


def _id_or_name(voice: Voice | str) -> str:
    return voice.voice_id if isinstance(voice, Voice) else voice


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


def export_voice(voice: Voice | str, path: Path | str) -> Path:
    """Export a voice to one file that `import_voice` reads on any machine, and return its path.

    The file is readable only by its owner: anyone who has it can clone the speaker.

    Raises:
        VoiceNotFoundError: The library has no such voice.
        FileError, StorageFullError: The file can't be written.
    """
    _, data = export_bundle(_id_or_name(voice))
    write_atomically(Path(path), data, is_private=True)
    return Path(path)


def import_voice(file: Path | str | bytes | BinaryIO, *, name: str | None = None, replace: bool = False) -> Voice:
    """Import a voice that `export_voice` wrote into the library, and return it.

    Args:
        file: The file, its bytes, or an open binary file.
        name: New name of the voice; None keeps its own.
        replace: Replace the voice of that name.

    Raises:
        InvalidBundleError: The file is not a voice, or was altered.
        VoiceExistsError: The name is taken and `replace` is not set.
    """
    bundle = unpack(file if isinstance(file, bytes) else read_bundle(Path(file) if isinstance(file, str) else file))
    voice = bundle.voice if name is None else bundle.voice.model_copy(update={"name": check_name(name)})
    return import_bundle(voice, bundle, may_replace=lambda _: replace)[0]


def export_bundle(name_or_id: str) -> tuple[Voice, bytes]:
    """Return a voice of the library and its bundle.

    Raises:
        VoiceNotFoundError: The library has no such voice.
    """
    voices = library()
    voice = voices.get(name_or_id)
    return voice, pack(voice, voices.reference(voice), usable_prompts(voices, voice))


def import_bundle(voice: Voice, bundle: Bundle, *, may_replace: Callable[[Voice], bool]) -> tuple[Voice, list[str]]:
    """Store a bundle's voice in the library; return it, and notices about prompts that can't be used here.

    Args:
        voice: The voice of the bundle, perhaps under another name.
        may_replace: Called with a voice that has the same name; returns whether to replace it.

    Raises:
        VoiceExistsError: The name is taken and may not be replaced.
    """
    voices = library()
    taken = [other for other in voices.list() if other.name == voice.name or other.voice_id == voice.voice_id]
    if voice in taken:
        return voice, []
    if len(taken) > 1:
        error = VoiceExistsError.for_name(voice.name)
        error.hint = "the voice in the file is here under another name; rename or remove one of the two first."
        raise error
    if taken and not may_replace(taken[0]):
        raise VoiceExistsError.for_name(voice.name, where="`replace`")
    # A bundle has no original recording. If it replaces an earlier copy of the same voice, the copy's original stays.
    same = [other for other in taken if (other.voice_id, other.provenance) == (voice.voice_id, voice.provenance)]
    original = voices.original_path(same[0]) if same else None
    suffix = original.suffix if original else ""
    saved = voices.save(voice, reference_wav=bundle.wav, original=original, original_suffix=suffix, replace=bool(taken))
    return saved, save_bundled_prompts(voices, saved, bundle)


# -- clone ----------------------------------------------------------------------------------------------------


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

    reference = _reference(voices, speaker)
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


# -- say ------------------------------------------------------------------------------------------------------


def say(
    text: str | Iterable[str],
    *,
    voice: Voice | str | None = None,
    emotion: str | None = None,
    lang: str | None = None,
    backend: str | None = None,
    speed: float = 1.0,
    seed: int | None = None,
    timestamps: bool = False,
    verify: bool = False,
    progress: Progress = ignore_progress,
) -> Audio:
    """Speak a text with a voice of the library, and return the audio.

    Args:
        text: Up to 100,000 characters; long texts are spoken sentence by sentence. Or an iterable of pieces of a text
            that is still being written, such as the tokens of a language model, without a limit.
        voice: A Voice, its name or its id; None takes the default, or the only one.
        emotion: Speak with the voice's take for this emotion, see `clone`.
        lang: Language of the text; None takes the voice's.
        backend: Backend to use; None takes the voice's, or the best one here if that can't run.
        speed: Speaking rate, 0.25 to 4, 1 = the voice's own; the pitch is kept.
        seed: Makes a sampled result repeatable.
        timestamps: Set `alignment`: when each character and word is spoken. Backends other than lite need
            faster-whisper for it, which listens to the finished speech.
        verify: Compare each sentence with its text by speech recognition (faster-whisper), speak a faulty one again
            with another seed, at most twice, and keep the best; set `verification`. Sentences are the unit of the
            stream then.
        progress: Called with a fraction and a step.

    Raises:
        TextError: The text can't be spoken.
        VoiceNotFoundError, InvalidInputError: The voice is unknown or ambiguous.
        UnsupportedLangError: The backend does not speak the language.
        UnavailableError: No engine can run on this machine, or timestamps or `verify` need faster-whisper.
        SynthesisError: The engine failed.
    """
    return stream(
        text,
        voice=voice,
        emotion=emotion,
        lang=lang,
        backend=backend,
        speed=speed,
        seed=seed,
        timestamps=timestamps,
        verify=verify,
        progress=progress,
    ).audio()


def stream(
    text: str | Iterable[str],
    *,
    voice: Voice | str | None = None,
    emotion: str | None = None,
    lang: str | None = None,
    backend: str | None = None,
    speed: float = 1.0,
    seed: int | None = None,
    timestamps: bool = False,
    verify: bool = False,
    progress: Progress = ignore_progress,
) -> Speech:
    """Speak a text like `say`, but while it is read: iterate over the result for its chunks.

    Options are checked before the first chunk, and so is a text that is whole. Of an iterable, sentences are spoken
    while later ones are written. Warns with TextWarning if the backend leaves out words of the text,
    or its markup is spoken as text.
    """
    given = text if isinstance(text, str) else ""
    if isinstance(text, str):
        text = check_text(text, max_chars=MAX_LOCAL_CHARS)
    elif timestamps or verify:
        name = "timestamps" if timestamps else "verify"
        raise InvalidOptionError.for_option(name, value=True, allowed="False for a text that is being written")
    options = SpeechOptions.check(lang=lang, backend=backend, speed=speed, seed=seed)
    voices = library()
    named, speaker = _find_voice(voices, voice, emotion)
    lang = normalize_lang(options.lang or named.lang)
    chosen, reason = _choose_backend(named, options.backend, lang)
    engine = registry.engine_for(chosen)
    palette = takes(voices.list(), named) if named.family else {}
    read = partial(parse, lexicon=named.lexicon, reads_ipa=reads_ipa(engine))
    script = read(text, emotions=[*palette, NEUTRAL] if palette else ()) if isinstance(text, str) else None
    used = (
        {each.emotion: palette[each.emotion] for each in script.segments if each.emotion in palette} if script else {}
    )
    notices = script.notices if script else ()
    if (used or speaker.emotion) and not continues_recording(engine):
        notices += (timbre_only(chosen.name),)
    checker = None
    if verify:
        checker = SpeechChecker(_reference(voices, speaker))
        checker.load(lang, progress)
    if words := unspoken(engine, script.text) if script else []:
        _warn_left_out(chosen.name)
    for notice in notices:
        warnings.warn(notice, TextWarning, stacklevel=2)
    make_task = partial(
        SpeechTask,
        lang=lang,
        backend=chosen.name,
        voice_id=speaker.voice_id,
        prompt=_get_prompt(voices, speaker, engine, chosen.name, progress),
        seed=options.seed,
        lexicon=named.lexicon,
    )
    tags = mark_tags(backend=chosen.name, voice_name=speaker.name, voice_id=speaker.voice_id, made_at=now())
    make_speech = partial(Speech, speaker, chosen.name, reason, engine.sample_rate, tags)
    if not isinstance(text, str):
        speech = make_speech(
            speak_live(engine, text, lambda unit: _task_of_unit(unit, engine, make_task, speech), options.speed)
        )
        return speech
    task = make_task(text=text)
    other_takes = {
        emotion: make_task(
            text=text, voice_id=take.voice_id, prompt=_get_prompt(voices, take, engine, chosen.name, progress)
        )
        for emotion, take in used.items()
    }
    return make_speech(
        speak(engine, task, options.speed, progress, script=script, takes=other_takes, checker=checker),
        left_out=tuple(words),
        notices=notices,
        script=script,
        _aligner=Aligner(engine, task, given, script) if timestamps else None,
        _progress=progress,
        _checker=checker,
    )


def _task_of_unit(unit: str, engine: Engine, make_task: Callable[..., SpeechTask], speech: Speech) -> SpeechTask | None:
    """Return the task of a part of a live text, or None if the backend can't speak any of its words."""
    task = make_task(text=check_text(unit))
    script = parse(task.text, lexicon=task.lexicon, reads_ipa=reads_ipa(engine))
    try:
        words = unspoken(engine, script.text)
    except TextError:
        words = script.text.split()
    if words and not speech.left_out:
        _warn_left_out(speech.backend)
    speech.left_out += tuple(words)
    speech.notices += script.notices
    return None if words and words == script.text.split() else task


def _warn_left_out(backend: str) -> None:
    warnings.warn(f"{backend} leaves out words of the text; `left_out` has them.", TextWarning, stacklevel=3)


def estimate(
    text: str,
    *,
    voice: Voice | str | None = None,
    emotion: str | None = None,
    lang: str | None = None,
    backend: str | None = None,
    speed: float = 1.0,
    seed: int | None = None,
) -> Estimate:
    """Return how long the speech of a text would be. Nothing is spoken, and no model is loaded.

    Args and errors are those of `say`.
    """
    text = check_text(text, max_chars=MAX_LOCAL_CHARS)
    options = SpeechOptions.check(lang=lang, backend=backend, speed=speed, seed=seed)
    named, _ = _find_voice(library(), voice, emotion)
    lang = normalize_lang(options.lang or named.lang)
    chosen, _ = _choose_backend(named, options.backend, lang)
    palette = takes(library().list(), named) if named.family else {}
    script = parse(text, emotions=[*palette, NEUTRAL] if palette else (), lexicon=named.lexicon)
    unspoken(registry.engine_for(chosen), script.text)  # raises if that is the whole text
    return Estimate(
        characters=len(text),
        charged_characters=0,
        is_cached=False,
        backend=chosen.name,
        lang=lang,
        duration_s=round(script.expected_s(speed=options.speed), 2),
        is_within_limit=True,
    )


def _find_voice(voices: Library, voice: Voice | str | None, emotion: str | None) -> tuple[Voice, Voice]:
    """Return the voice as the library stores it now, and the one that speaks: itself, or its take for an emotion."""
    if not isinstance(voice, Voice):
        found = voices.choose(voice)
    else:
        try:
            found = voices.get(voice.voice_id)
        except VoiceNotFoundError:
            raise VoiceNotFoundError.for_name(voice.name) from None
    return found, found if emotion is None else find_take(voices.list(), found, emotion)


def _choose_backend(voice: Voice, name: str | None, lang: str) -> tuple[Backend, str]:
    """Return the backend to use, and why this one."""
    if name is not None:
        return registry.choose(name, lang=lang), "the best one here" if name == "auto" else "as asked"
    try:
        return registry.choose(voice.backend, lang=lang), "the voice's own"
    except UnsupportedLangError:
        raise
    except AfterwordsError as error:
        return registry.choose("auto", lang=lang), f"the voice's own, {voice.backend}, can't run here: {error.message}"


def likeness(voice: Voice) -> dict[str, float | str]:
    """Return what a voice's engine reports about its prompt, for example the speaker similarity; {} if nothing."""
    for backend in registry.backends():
        if backend.name == voice.backend and backend.engine is not None:
            prompt = find_prompt(library(), voice, backend.engine, backend.name)
            return {} if prompt is None else backend.engine.describe(prompt)
    return {}


# -- prompts --------------------------------------------------------------------------------------------------


def has_prompt(voice: Voice, backend: str) -> bool:
    """Return whether a voice is prepared for a backend.

    Raises:
        InvalidInputError, BackendUnavailableError: The backend can't run on this machine.
    """
    engine = registry.engine_for(registry.choose(backend))
    return find_prompt(library(), voice, engine, backend) is not None


def must_prepare(
    *,
    voice: Voice | str | None = None,
    emotion: str | None = None,
    lang: str | None = None,
    backend: str | None = None,
) -> str | None:
    """Return the backend that has to prepare a voice before it speaks, or None if the voice is prepared.

    Args and errors are those of `say`.
    """
    voices = library()
    named, speaker = _find_voice(voices, voice, emotion)
    chosen, _ = _choose_backend(named, backend, normalize_lang(lang or named.lang))
    engine = registry.engine_for(chosen)
    key = prompt_key(chosen.name, engine.prompt_version, is_fast=False)
    if find_prompt(voices, speaker, engine, chosen.name) or find_equal_prompt(voices, speaker, key):
        return None
    voices.reference(speaker)  # raises if the recording was changed
    return chosen.name


def make_prompt(voice: Voice, backend: str, *, progress: Progress = ignore_progress) -> None:
    """Prepare a voice for a backend, unless it is prepared.

    Raises:
        InvalidInputError, BackendUnavailableError: The backend can't run on this machine.
        RecordingError: The reference can't be used.
    """
    _get_prompt(library(), voice, registry.engine_for(registry.choose(backend)), backend, progress)


def _get_prompt(voices: Library, voice: Voice, engine: Engine, backend: str, progress: Progress) -> bytes:
    """Return the engine's prompt for a voice; make and store it if there is none."""
    if (stored := find_prompt(voices, voice, engine, backend)) is not None:
        return stored
    key = prompt_key(backend, engine.prompt_version, is_fast=False)
    prompt = find_equal_prompt(voices, voice, key)
    if prompt is None:
        prompt = engine.prepare(_reference(voices, voice), progress)
    voices.save_prompt(voice, key, prompt)
    return prompt


def _reference(voices: Library, voice: Voice) -> Reference:
    samples, sample_rate = read_wav(voices.reference(voice), source=f"the reference of {voice.name}")
    return Reference(samples, sample_rate, voice.ref_text, voice.lang)
