"""The use-cases on this machine: clone a voice, say something with it, stream it.

The command line and `import afterwords` both call these, and nothing else decides here: a recording becomes a
voice in the library, a text becomes speech that carries its mark. Nothing leaves the machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from afterwords.audio.audio import Audio, decode
from afterwords.audio.output import write_atomically
from afterwords.audio.wav import read_wav
from afterwords.backends import registry
from afterwords.backends.base import Engine, Progress, Reference, ignore_progress, unspoken
from afterwords.config import Config, load_config
from afterwords.disk import read_stream
from afterwords.errors import (
    AfterwordsError,
    ConsentRequiredError,
    FileTooLargeError,
    InvalidOptionError,
    MissingExtraError,
    PoorRecordingError,
    RecordingWarning,
    TextWarning,
    TranscriberError,
    UnsupportedLangError,
    VoiceExistsError,
    VoiceNotFoundError,
)
from afterwords.install import pip_install
from afterwords.library.bundle import Bundle, pack, read_bundle, unpack_all
from afterwords.library.library import Library
from afterwords.library.prompts import keep_prompts, kept_prompt, known_prompt, prompt_key, prompts_of
from afterwords.models import (
    SPEED_MAX,
    SPEED_MIN,
    Consent,
    ConsentKind,
    ConsentName,
    ReferenceInfo,
    SpeechTask,
    Voice,
    now,
)
from afterwords.provenance import mark_tags, seal
from afterwords.reference import Finding, Prepared, Report, examine, prepare
from afterwords.reference.preparation import SURPLUS_MAX
from afterwords.speech import Speech, speak
from afterwords.text import MAX_LOCAL_CHARS, check_name, check_text, normalise_lang

if TYPE_CHECKING:
    from afterwords.backends.registry import Backend
    from afterwords.reference.transcription import Transcript

MAX_STREAM_BYTES: Final = 512 * 2**20
"""The most that is read from a pipe: half an hour of 48 kHz stereo in 24 bits."""

Confirm = Callable[["Transcript"], str]
"""Shown what was heard, returns the transcript as its owner wants it."""

Accept = Callable[[Prepared], bool]
"""Called with what is taken of a recording, before the work on it begins; returns whether an F is accepted."""


def library(config: Config | None = None) -> Library:
    """The voices on this disk."""
    return Library((config or load_config()).home)


def voices() -> list[Voice]:
    """All voices on this disk, by name. Damaged ones are left out; `library().scan()` names them."""
    return library().list()


def rename(voice: Voice | str, new: str) -> Voice:
    """Rename a voice of the library, and return it.

    Raises:
        VoiceNotFoundError: there is no such voice.
        InvalidNameError, VoiceExistsError: it can't have the new name.
    """
    return library().rename(_id_or_name(voice), new)


def remove(voice: Voice | str) -> None:
    """Remove a voice from the library with its recordings, its transcript and everything made of them.

    Raises:
        VoiceNotFoundError: there is no such voice.
    """
    library().remove(_id_or_name(voice))


def default_voice(voice: Voice | str | None = None) -> Voice | None:
    """Set the voice that speaks when none is named, or return it; None if no default is set.

    Raises:
        VoiceNotFoundError: there is no such voice.
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
    """Grade a recording from A to F for cloning, and say why. Nothing is kept.

    Args:
        recording: a file, its bytes, or an open binary file; any format the audio reader knows, 5 s to 30 min.
        text: transcript of the recording. Where faster-whisper is installed, it is compared with what is heard.
        lang: language of the recording.
        progress: called with a fraction and a step.

    Warns:
        RecordingWarning: its file is damaged, or something else about it should be known.

    Raises:
        RecordingError: the recording can't be read.
    """
    lang = normalise_lang(lang)
    text = check_text(text, max_chars=MAX_LOCAL_CHARS) if text is not None else None
    original, shown = _original(recording)
    audio = decode(original, name=shown)
    heard = heard_in(audio, lang, progress)[0] if text is not None else None
    for doubt in (*audio.notices, *doubts_about(heard, lang=lang, text=text)):
        warnings.warn(doubt, RecordingWarning, stacklevel=2)
    return examine(audio, transcript=text, words=heard.words if heard else None)


def export_voice(voice: Voice | str, path: Path | str) -> Path:
    """Write a voice of the library to one file that `import_voice` reads on any machine, and return its path.

    Its owner alone can read the file: anybody who has it can clone the speaker.

    Raises:
        VoiceNotFoundError: there is no such voice.
        UnwritableOutputError, StorageFullError: the file can't be written.
    """
    _, data = export_bundle(_id_or_name(voice))
    write_atomically(Path(path), data, is_private=True)
    return Path(path)


def import_voice(file: Path | str | bytes | BinaryIO, *, name: str | None = None, replace: bool = False) -> Voice:
    """Add the voice of a file that `export_voice` wrote to the library, and return it.

    Args:
        file: the file, its bytes, or an open binary file.
        name: name of the voice; None keeps its own.
        replace: replace the voice of that name.

    Raises:
        InvalidBundleError: it is not such a file, or a byte of it was changed.
        VoiceExistsError: the name is taken and `replace` is not set.
    """
    bundle = unpack_all(file if isinstance(file, bytes) else read_bundle(Path(file) if isinstance(file, str) else file))
    voice = bundle.voice if name is None else bundle.voice.model_copy(update={"name": check_name(name)})
    return import_bundle(voice, bundle, may_replace=lambda _: replace)[0]


def export_bundle(name_or_id: str) -> tuple[Voice, bytes]:
    """Return a voice of the library, and the bytes of its file.

    Raises:
        VoiceNotFoundError: there is no such voice.
    """
    shelf = library()
    voice = shelf.get(name_or_id)
    return voice, pack(voice, shelf.reference(voice), prompts_of(shelf, voice))


def import_bundle(voice: Voice, bundle: Bundle, *, may_replace: Callable[[Voice], bool]) -> tuple[Voice, list[str]]:
    """Add the voice of a file to the library; returns it, and notices on prepared parts that were left out.

    Args:
        voice: the voice of the file, perhaps under another name.
        may_replace: asked whether this voice, which has the name, may be replaced.

    Raises:
        VoiceExistsError: it may not.
    """
    shelf = library()
    taken = [other for other in shelf.list() if other.name == voice.name or other.voice_id == voice.voice_id]
    if voice in taken:
        return voice, []
    if len(taken) > 1:
        error = VoiceExistsError(voice.name)
        error.hint = "the voice in the file is here under another name; rename or remove one of the two first."
        raise error
    if taken and not may_replace(taken[0]):
        raise VoiceExistsError(voice.name, where="`replace`")
    # The file carries no original recording: it is kept where this very voice has been here all along.
    same = [other for other in taken if (other.voice_id, other.provenance) == (voice.voice_id, voice.provenance)]
    original = shelf.original_path(same[0]) if same else None
    suffix = original.suffix if original else ""
    kept = shelf.save(voice, reference_wav=bundle.wav, original=original, original_suffix=suffix, replace=bool(taken))
    return kept, keep_prompts(shelf, kept, bundle)


# -- clone ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cloned:
    """What came of cloning.

    Attributes:
        voice: as it stands in the library.
        prepared: the window that was taken from the recording, with its grade and what was found.
        backend: the one that was prepared for.
        notices: what the owner should know, each a sentence or two.
        doubts: those of them that are about the recording, for example that its file is damaged.
    """

    voice: Voice
    prepared: Prepared
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
    fast: bool = False,
    replace: bool = False,
    anyway: bool = False,
    progress: Progress = ignore_progress,
) -> Voice:
    """Make a voice from a recording and keep it in the library.

    Args:
        source: a file, its bytes, or an open binary file, in any format the audio reader knows, 5 s to 30 min. An open
            file is read from where it stands, and from its beginning if it stands at its end.
        name: what to call it.
        consent: by what right: "self", "granted", "public-domain" or "synthetic".
        text: transcript of the recording. Where it is missing and faster-whisper is installed, it is written down
            here; without one, engines that need a transcript fall back to the sound alone.
        lang: language of the recording.
        backend: that shall speak with it; "auto" takes the best one here.
        fast: prepare in less time, for less likeness.
        replace: take the place of the voice of that name.
        anyway: clone a recording that is graded F, too.
        progress: told how far it is.

    Warns:
        RecordingWarning: something about the recording should be known, for example that its file is damaged or that it
            is graded D.

    Raises:
        PoorRecordingError: the recording is graded F and `anyway` is not set.
        ConsentRequiredError: consent was not stated.
        VoiceExistsError: the name is taken and `replace` is not set.
        RecordingError: the recording can't be used.
        UnavailableError: no engine can run here.
    """
    cloned = make_voice(
        source,
        name=name,
        consent=consent,
        text=text,
        lang=lang,
        backend=backend,
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


def check_clone(name: str, *, lang: str = "en", backend: str = "auto", replace: bool = False) -> Backend:
    """Refuse what can be refused of cloning before there is a recording; returns the backend that it would be for.

    Raises:
        InvalidNameError, VoiceExistsError: it can't be called so.
        UnsupportedLangError, InvalidBackendError, BackendUnavailableError: nothing here would speak with it.
    """
    name = check_name(name)
    if not replace and any(voice.name == name for voice in voices()):
        raise VoiceExistsError(name)
    return registry.choose(backend, lang=normalise_lang(lang))


def make_voice(
    source: Path | str | bytes | BinaryIO,
    *,
    name: str,
    consent: ConsentKind | str | None,
    text: str | None = None,
    lang: str = "en",
    backend: str = "auto",
    fast: bool = False,
    replace: bool = False,
    progress: Progress = ignore_progress,
    confirm: Confirm | None = None,
    accept: Accept = lambda _prepared: False,
) -> Cloned:
    """As `clone`, and return all that was found on the way.

    Args:
        confirm: lets a person correct the transcript.
        accept: lets a person see the grade before the work begins, and accept an F.
    """
    name, lang = check_name(name), normalise_lang(lang)
    stated = Consent(kind=_consent_kind(consent), stated_at=now())
    text = check_text(text, max_chars=MAX_LOCAL_CHARS) if text is not None else None
    shelf = library()
    chosen = check_clone(name, lang=lang, backend=backend, replace=replace)
    progress(0.0, "reading")
    original, shown = _original(source)
    audio = decode(original, name=shown)
    prepared, notices, transcript_doubts = _prepared(audio, shown, text, lang, confirm, progress, accept)
    doubts = (*audio.notices, *transcript_doubts)
    reference_sha256 = sha256(prepared.wav).hexdigest()
    voice = Voice(
        name=name,
        backend=chosen.name,
        lang=lang,
        ref_text=prepared.text,
        reference=ReferenceInfo(
            sha256=reference_sha256,
            duration_s=round(len(prepared.samples) / prepared.sample_rate, 3),
            sample_rate=prepared.sample_rate,
            grade=prepared.report.grade,
        ),
        consent=stated,
        provenance=seal(
            reference_sha256=reference_sha256,
            original_sha256=_sha256(original),
            window_start_s=prepared.window.start_s,
            consent=stated,
        ),
    )
    engine = registry.engine_for(chosen)
    key = prompt_key(chosen.name, engine.prompt_version, is_fast=fast)
    prompt = known_prompt(shelf, voice, key)
    if prompt is None:
        reference = Reference(prepared.samples, prepared.sample_rate, prepared.text, lang)
        prompt = engine.prepare(reference, progress, fast=fast)
    if isinstance(notice := engine.describe(prompt).get("notice"), str):
        notices.append(notice)
    suffix = Path(shown).suffix
    voice = shelf.save(voice, reference_wav=prepared.wav, original=original, original_suffix=suffix, replace=replace)
    shelf.save_prompt(voice, key, prompt)
    return Cloned(voice, prepared, chosen.name, (*doubts, *notices), doubts)


def _consent_kind(consent: ConsentKind | str | None) -> ConsentKind:
    if consent is None:
        raise ConsentRequiredError
    try:
        return ConsentKind(consent)
    except ValueError:
        raise InvalidOptionError("consent", value=consent, allowed=", ".join(ConsentKind)) from None


def _original(source: Path | str | bytes | BinaryIO) -> tuple[Path | bytes, str]:
    """Where a recording is, or its bytes; and what to call it in a message."""
    if isinstance(source, bytes):
        return source, "the recording"
    if isinstance(source, (str, Path)):
        return Path(source), Path(source).name
    content = read_stream(source, MAX_STREAM_BYTES + 1, name="The recording")
    if len(content) > MAX_STREAM_BYTES:
        raise FileTooLargeError("The recording", size_bytes=len(content), maximum_bytes=MAX_STREAM_BYTES)
    name = getattr(source, "name", None)
    return content, Path(name).name if isinstance(name, str) and Path(name).suffix else "the recording"


def _sha256(original: Path | bytes) -> str:
    if isinstance(original, bytes):
        return sha256(original).hexdigest()
    with original.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _prepared(
    audio: Audio,
    shown: str,
    text: str | None,
    lang: str,
    confirm: Confirm | None,
    progress: Progress,
    accept: Accept,
) -> tuple[Prepared, list[str], list[str]]:
    """The reference, its transcript as far as this machine can tell it, notices, and doubts about what is said.

    A transcript that was given is held against what is heard and cut with the recording; without one, what is heard in
    the chosen window is written down, unless it is doubtful and there is no one to correct it.
    """
    if text is None:
        prepared = prepare(audio, source=shown, transcript=None)
        _check_grade(prepared, shown, accept)
        heard, notices = heard_in(Audio(prepared.samples, prepared.sample_rate), lang, progress)
        if heard is None:
            return prepared, notices, []
        written = (confirm(heard) if confirm and heard.text else "" if heard.doubt else heard.text).strip()
        prepared = replace(prepared, text=check_text(written, max_chars=MAX_LOCAL_CHARS) if written else None)
        return prepared, notices, doubts_about(heard, lang=lang, text=written or None)
    heard, notices = heard_in(audio, lang, progress)
    prepared = prepare(audio, source=shown, transcript=text, words=heard.words if heard else None)
    _check_grade(prepared, shown, accept)
    if prepared.transcript_was_cut_away:
        notices.append(
            "The transcript could not be cut to the window that is kept, so it was left out: "
            + (
                "it does not match what is said there."
                if heard
                else f"to keep one, first run: {pip_install('transcribe')}"
            )
        )
    return prepared, notices, doubts_about(heard, lang=lang, text=text)


def _check_grade(prepared: Prepared, shown: str, accept: Accept) -> None:
    is_accepted = accept(prepared)
    if prepared.report.grade == "F" and not is_accepted:
        worst = _worst(prepared.report)
        raise PoorRecordingError(shown, reason=worst.reason, advice=worst.advice)


def _worst(report: Report) -> Finding:
    """The finding with the worst grade; of equals the first, since they stand in the order of their importance."""
    return max((finding for finding in report.findings if finding.grade), key=lambda finding: str(finding.grade))


def doubts_about(heard: Transcript | None, *, lang: str, text: str | None) -> list[str]:
    """What its owner should know of a transcript that can't be trusted; nothing where their own text matches it."""
    from afterwords.reference.transcription import surplus

    if heard is None or not heard.doubt or (text and heard.words and surplus(text, heard.words) <= SURPLUS_MAX):
        return []
    kept = "" if text else " So no transcript was kept; the backend lite needs none."
    if heard.lang != lang:
        fix = f'If that is right, give it: --lang {heard.lang}, or lang="{heard.lang}" in Python.'
    else:
        fix = "If another language is spoken, name it: --lang de, or lang= in Python; if not, record it more clearly."
    return [f"{heard.doubt}{kept} {fix}"]


def heard_in(audio: Audio, lang: str, progress: Progress) -> tuple[Transcript | None, list[str]]:
    """What is said in a recording, where something here can listen; and a notice where that fails."""
    from afterwords.reference.transcription import transcribe

    try:
        return transcribe(audio, lang=lang, check_lang=True, progress=progress), []
    except MissingExtraError:
        return None, []
    except TranscriberError as error:
        return None, [error.message]


# -- say ------------------------------------------------------------------------------------------------------


def say(
    text: str,
    *,
    voice: Voice | str | None = None,
    lang: str | None = None,
    backend: str | None = None,
    speed: float = 1.0,
    seed: int | None = None,
    progress: Progress = ignore_progress,
) -> Audio:
    """Speak a text with a voice of the library, and return all of it.

    Args:
        text: up to 100,000 characters; long ones are spoken sentence by sentence.
        voice: a Voice, its name or its id; None takes the default, or the only one.
        lang: of the text; None takes the voice's.
        backend: None takes the voice's, or the best one here where that can't run.
        speed: 0.25 to 4, 1 = as the voice speaks; the pitch is kept.
        seed: makes engines that sample repeat themselves.
        progress: told how far it is.

    Raises:
        TextError: the text can't be spoken.
        VoiceNotFoundError, VoiceRequiredError: which voice is not clear.
        UnsupportedLangError: the backend does not speak the language.
        UnavailableError: no engine can run here.
        SynthesisError: the engine failed.
    """
    return stream(text, voice=voice, lang=lang, backend=backend, speed=speed, seed=seed, progress=progress).audio()


def stream(
    text: str,
    *,
    voice: Voice | str | None = None,
    lang: str | None = None,
    backend: str | None = None,
    speed: float = 1.0,
    seed: int | None = None,
    progress: Progress = ignore_progress,
) -> Speech:
    """As `say`, but the speech is made while it is read: iterate over the result for its chunks.

    All that can be refused is refused here, before the first chunk. A TextWarning is given if the backend leaves out
    words of the text.
    """
    text = check_text(text, max_chars=MAX_LOCAL_CHARS)
    if not SPEED_MIN <= speed <= SPEED_MAX:
        raise InvalidOptionError("speed", value=speed, allowed=f"a number from {SPEED_MIN:g} to {SPEED_MAX:g}")
    if seed is not None and not 0 <= seed < 2**63:
        raise InvalidOptionError("seed", value=seed, allowed="a whole number from 0 to 2^63 - 1")
    shelf = library()
    who = _kept(shelf, voice) if isinstance(voice, Voice) else shelf.choose(voice)
    lang = normalise_lang(lang or who.lang)
    chosen, reason = _backend_for(who, backend, lang)
    engine = registry.engine_for(chosen)
    if words := unspoken(engine, text):
        warnings.warn(f"{chosen.name} leaves out words of the text; `left_out` has them.", TextWarning, stacklevel=2)
    prompt = _prompt(shelf, who, engine, chosen.name, progress)
    task = SpeechTask(text=text, lang=lang, backend=chosen.name, voice_id=who.voice_id, prompt=prompt, seed=seed)
    tags = mark_tags(backend=chosen.name, voice_name=who.name, voice_id=who.voice_id, made_at=now())
    chunks = speak(engine, task, speed, progress)
    return Speech(who, chosen.name, reason, engine.sample_rate, tags, chunks, left_out=tuple(words))


def _kept(shelf: Library, voice: Voice) -> Voice:
    """The voice as the library has it now."""
    try:
        return shelf.get(voice.voice_id)
    except VoiceNotFoundError:
        raise VoiceNotFoundError(voice.name) from None


def _backend_for(voice: Voice, name: str | None, lang: str) -> tuple[Backend, str]:
    """The backend that speaks, and why it is this one."""
    if name is not None:
        return registry.choose(name, lang=lang), "the best one here" if name == "auto" else "as asked"
    try:
        return registry.choose(voice.backend, lang=lang), "the voice's own"
    except UnsupportedLangError:
        raise
    except AfterwordsError as error:
        return registry.choose("auto", lang=lang), f"the voice's own, {voice.backend}, can't run here: {error.message}"


def likeness(voice: Voice) -> dict[str, float | str]:
    """What the engine of a voice says of the prompt it keeps, for example how alike it sounds; empty if nothing."""
    for backend in registry.backends():
        if backend.name == voice.backend and backend.engine is not None:
            kept = kept_prompt(library(), voice, backend.engine, backend.name)
            return {} if kept is None else backend.engine.describe(kept)
    return {}


# -- prompts --------------------------------------------------------------------------------------------------


def has_prompt(voice: Voice, backend: str) -> bool:
    """Whether what a backend needs to speak with a voice is kept.

    Raises:
        InvalidBackendError, BackendUnavailableError: the backend can't run here.
    """
    engine = registry.engine_for(registry.choose(backend))
    return kept_prompt(library(), voice, engine, backend) is not None


def must_prepare(
    *, voice: Voice | str | None = None, lang: str | None = None, backend: str | None = None
) -> str | None:
    """Return the backend that has to prepare a voice before it speaks, which happens once; None if it is prepared.

    Args and errors are those of `say`.
    """
    shelf = library()
    who = _kept(shelf, voice) if isinstance(voice, Voice) else shelf.choose(voice)
    chosen, _ = _backend_for(who, backend, normalise_lang(lang or who.lang))
    engine = registry.engine_for(chosen)
    key = prompt_key(chosen.name, engine.prompt_version, is_fast=False)
    if kept_prompt(shelf, who, engine, chosen.name) or known_prompt(shelf, who, key):
        return None
    shelf.reference(who)  # nothing can be prepared of one that was changed
    return chosen.name


def make_prompt(voice: Voice, backend: str, *, progress: Progress = ignore_progress) -> None:
    """Make what a backend needs to speak with a voice, unless it is kept.

    Raises:
        InvalidBackendError, BackendUnavailableError: the backend can't run here.
        RecordingError: the reference can't be used.
    """
    _prompt(library(), voice, registry.engine_for(registry.choose(backend)), backend, progress)


def _prompt(shelf: Library, voice: Voice, engine: Engine, backend: str, progress: Progress) -> bytes:
    """What the engine made of the voice's reference: kept from before, or made and kept now."""
    if (kept := kept_prompt(shelf, voice, engine, backend)) is not None:
        return kept
    key = prompt_key(backend, engine.prompt_version, is_fast=False)
    prompt = known_prompt(shelf, voice, key)
    if prompt is None:
        samples, sample_rate = read_wav(shelf.reference(voice), source=f"the reference of {voice.name}")
        prompt = engine.prepare(Reference(samples, sample_rate, voice.ref_text, voice.lang), progress)
    shelf.save_prompt(voice, key, prompt)
    return prompt
