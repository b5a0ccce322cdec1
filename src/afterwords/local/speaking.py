"""Say a text with a voice of the library, or stream it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from afterwords.audio.audio import Audio
from afterwords.backends import registry
from afterwords.backends.base import (
    Engine,
    Progress,
    continues_recording,
    ignore_progress,
    reads_ipa,
    timbre_only,
    unspoken,
)
from afterwords.backends.speech_check import SpeechChecker
from afterwords.errors import (
    AfterwordsError,
    InvalidOptionError,
    TextError,
    TextWarning,
    UnsupportedLangError,
    VoiceNotFoundError,
)
from afterwords.library.library import Library
from afterwords.library.prompts import find_equal_prompt, find_prompt, prompt_key
from afterwords.library.takes import NEUTRAL, find_take, takes
from afterwords.local.management import library
from afterwords.local.prompts import get_prompt, read_reference
from afterwords.markup import parse
from afterwords.models import Estimate, SpeechOptions, SpeechTask, Voice, now
from afterwords.provenance import mark_tags
from afterwords.speech import Aligner, Speech, speak, speak_live
from afterwords.text import MAX_LOCAL_CHARS, check_text, normalize_lang

if TYPE_CHECKING:
    from afterwords.backends.registry import Backend


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
        checker = SpeechChecker(read_reference(voices, speaker))
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
        prompt=get_prompt(voices, speaker, engine, chosen.name, progress),
        seed=options.seed,
        lexicon=named.lexicon,
    )
    tags = mark_tags(backend=chosen.name, voice_name=speaker.name, voice_id=speaker.voice_id, made_at=now())
    make_speech = partial(Speech, speaker, chosen.name, reason, engine.sample_rate, tags)
    if not isinstance(text, str):
        speech = make_speech(
            speak_live(engine, text, lambda unit: _task_of_unit(unit, engine, make_task, speech), options.speed),
            notices=notices,
        )
        return speech
    task = make_task(text=text)
    other_takes = {
        emotion: make_task(
            text=text, voice_id=take.voice_id, prompt=get_prompt(voices, take, engine, chosen.name, progress)
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
    speech.notices = (*dict.fromkeys(speech.notices + script.notices),)
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


def _find_voice(voices: Library, voice: Voice | str | None, emotion: str | None) -> tuple[Voice, Voice]:
    """Return the voice as the library stores it now, and the one that speaks: itself, or its take for an emotion.

    The take has the lexicon of the voice that was named.
    """
    if not isinstance(voice, Voice):
        found = voices.choose(voice)
    else:
        try:
            found = voices.get(voice.voice_id)
        except VoiceNotFoundError:
            raise VoiceNotFoundError.for_name(voice.name) from None
    if emotion is None:
        return found, found
    take = find_take(voices.list(), found, emotion)
    metadata = take.metadata | {"lexicon": found.metadata.get("lexicon", [])}
    return found, take.model_copy(update={"metadata": metadata})


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
