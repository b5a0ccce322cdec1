"""Turn a book into sentences: which voice speaks each one, and how long the pause before it is."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from afterwords import disk
from afterwords.errors import FileError, InvalidOptionError, TextError
from afterwords.markup import parse
from afterwords.narration.book import Book, Chapter
from afterwords.text import check_name, split_chunks

SENTENCE_PAUSE_S, PARAGRAPH_PAUSE_S, HEADING_PAUSE_S, CHAPTER_PAUSE_S = 0.3, 0.7, 1.2, 2.0
"""Silence between sentences, before a paragraph, after a heading, and before a chapter."""
SCENE_PAUSE_S: Final = 1.5
"""Silence where a line such as "* * *" separates two paragraphs."""
MAX_PAUSE_S: Final = 60.0
"""Longest silence: several pauses in a row add up, and hours of silence would not fit into memory."""
SENTENCE_MAX_CHARS: Final = 400
"""Longer sentences are split at punctuation."""

Speaker = tuple[str | None, str | None]
"""Name of a voice, None for the narrator, and an emotion."""
NARRATOR: Final[Speaker] = (None, None)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a book, or a part of a long one.

    Attributes:
        text: What is spoken.
        chapter: Number of its chapter, from 0.
        paragraph: Number of its paragraph in the book, from 0.
        pause_s: Silence before it at a speed of 1, in seconds.
        voice: Name of the voice that a tag or the cast sets; None is the narrator.
        emotion: Emotion that a tag sets; None is the voice's own recording.
    """

    text: str = field(repr=False)
    chapter: int
    paragraph: int
    pause_s: float
    voice: str | None = None
    emotion: str | None = None

    @property
    def speaker(self) -> Speaker:
        """The voice and the emotion."""
        return self.voice, self.emotion


def read_cast(path: Path) -> dict[str, str]:
    """Read a cast from a TOML file with lines such as `ALICE = "anna"`.

    Raises:
        FileError: The file can't be read, or is not such a file.
        InvalidInputError: As for `check_cast`.
    """
    try:
        cast = tomllib.loads(disk.read(path).decode())
    except (OSError, ValueError) as error:  # ValueError: it is not TOML, or not UTF-8
        raise FileError.unreadable(path, why=getattr(error, "strerror", None) or f"{error}") from error
    if not all(isinstance(voice, str) for voice in cast.values()):
        raise FileError.unreadable(path, why="it has more than names", hint='write lines such as ALICE = "anna".')
    return check_cast(cast)


def check_cast(cast: Mapping[str, str]) -> dict[str, str]:
    """Return a cast: names of voices by the names of characters.

    Raises:
        InvalidOptionError: A character's name is empty or has a bracket, a colon or a line end.
        InvalidInputError: The name of a voice is invalid.
    """
    for character in cast:
        if not character.strip() or set(character) & set("[]:\n"):
            allowed = "without brackets, colons and line ends"
            raise InvalidOptionError.for_option("the name of a character", value=character[:40], allowed=allowed)
    return {character.strip(): check_name(voice) for character, voice in cast.items()}


def write_script(
    book: Book, cast: Mapping[str, str], emotions: Collection[str] = ()
) -> tuple[list[Sentence], list[str]]:
    """Return the sentences of a book, and notices about its markup.

    Tags of a voice, an emotion or a pause are those of `markup`; a voice speaks until the next tag, at most to the end
    of its chapter. A paragraph that begins with a character of the cast and a colon is spoken by that voice, without
    the name.

    Args:
        book: The book.
        cast: Names of voices by the names of characters.
        emotions: Names of emotions that a tag can set.

    Raises:
        TextError: There is nothing to speak.
    """
    sentences: list[Sentence] = []
    notices: list[str] = []
    n_paragraphs = 0
    for number, chapter in enumerate(book.chapters):
        try:
            script = parse("\n\n".join(_lines(chapter, cast)), emotions=emotions, has_voices=True)
        except TextError:  # only tags
            continue
        notices += [f"{chapter.title}: {notice}" for notice in script.notices]
        headings = {paragraph.text for paragraph in chapter.paragraphs if paragraph.is_heading}
        pause_s = CHAPTER_PAUSE_S if sentences else 0.0
        for segment in script.segments:
            pause_s = min(pause_s + segment.pause_s, MAX_PAUSE_S)
            voice = cast.get(segment.voice, segment.voice) if segment.voice else None
            for position, paragraph in enumerate(segment.text.split("\n\n")):
                if position:
                    n_paragraphs += 1
                    pause_s = max(pause_s, PARAGRAPH_PAUSE_S)
                for text in split_chunks(paragraph, max_chars=SENTENCE_MAX_CHARS):
                    sentences.append(Sentence(text, number, n_paragraphs, pause_s, voice, segment.emotion))
                    pause_s = SENTENCE_PAUSE_S
                if paragraph.strip() in headings:
                    pause_s = HEADING_PAUSE_S
        n_paragraphs += 1
    if not sentences:
        raise TextError(code="empty_text")
    return sentences, notices


def _lines(chapter: Chapter, cast: Mapping[str, str]) -> Iterator[str]:
    for paragraph in chapter.paragraphs:
        pause = f"[pause {SCENE_PAUSE_S - PARAGRAPH_PAUSE_S:.3f}s] " if paragraph.follows_break else ""
        character, colon, line = paragraph.text.partition(":")
        if colon and character.strip() in cast:
            yield f"{pause}[voice:{character.strip()}] {line.strip()} [voice:]"
        else:
            yield pause + paragraph.text.replace("\n\n", "\n")
