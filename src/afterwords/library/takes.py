"""The takes of a speaker: voices of one family, each from a recording with another emotion."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Protocol, TypeVar

from afterwords.errors import InvalidOptionError, VoiceNotFoundError
from afterwords.models import EMOTION_PATTERN

RESERVED = frozenset({"pause", "voice"})
"""Names that markup uses, and a take can't have."""

NEUTRAL = "neutral"
"""Returns to the voice itself in a text, unless a take has this name."""

_EMOTION = re.compile(EMOTION_PATTERN)


class Take(Protocol):
    """A voice of the library or of a server."""

    @property
    def name(self) -> str: ...
    @property
    def lang(self) -> str: ...
    @property
    def family(self) -> str | None: ...
    @property
    def emotion(self) -> str | None: ...
    @property
    def created_at(self) -> datetime: ...


T = TypeVar("T", bound=Take)


def check_emotion(emotion: str) -> str:
    """Validate the name of an emotion and return it in lower case.

    Raises:
        InvalidOptionError: It is not one or more words of a to z with hyphens between them, or longer than 30 letters.
    """
    name = emotion.strip().lower()
    if not _EMOTION.fullmatch(name) or name in RESERVED:
        raise InvalidOptionError.for_option(
            "emotion", value=emotion[:40], allowed="a word of up to 30 letters, such as happy or very-calm"
        )
    return name


def takes(voices: Iterable[T], speaker: T) -> dict[str, T]:
    """Return the takes of a speaker by emotion; of several, one in the speaker's own language, else the oldest."""
    found = [voice for voice in voices if voice.emotion and speaker.family and voice.family == speaker.family]
    found.sort(key=lambda voice: (voice.lang == speaker.lang, -voice.created_at.timestamp()))
    return {str(voice.emotion): voice for voice in found}


def find_take(voices: Iterable[T], speaker: T, emotion: str) -> T:
    """Return the take of a speaker for an emotion.

    Raises:
        VoiceNotFoundError: The speaker has no such take.
        InvalidOptionError: The emotion is invalid.
    """
    emotion = check_emotion(emotion)
    found = takes(voices, speaker)
    if emotion not in found:
        known = f"Its takes: {', '.join(sorted(found))}." if found else "It has no takes yet."
        raise VoiceNotFoundError(
            f"{speaker.name} has no take for the emotion {emotion}. {known}",
            hint=f"record one, and clone it: afterwords clone {emotion}.wav --name {speaker.name} --emotion {emotion}",
        )
    return found[emotion]
