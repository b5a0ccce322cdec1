"""`afterwords lexicon`: how a voice pronounces words."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson, OutFile, complete_voice

if TYPE_CHECKING:
    from afterwords.models import LexiconEntry, Voice

lexicon = typer.Typer(cls=HelpGroup)

SpokenBy = Annotated[
    str | None,
    typer.Option("--voice", "-v", help="Voice, by name or ID. (default: as for say)", autocompletion=complete_voice),
]
Word = Annotated[str, typer.Argument(help="The word as written; in lower case, it matches any case.")]


@lexicon.command(cls=HelpCommand)
def add(
    word: Word,
    alias: Annotated[str | None, typer.Option("--alias", help="What to speak instead.")] = None,
    ipa: Annotated[str | None, typer.Option("--ipa", help="Its sounds in IPA, for backends that read them.")] = None,
    voice: SpokenBy = None,
) -> None:
    """Add a word, or replace it."""
    from pydantic import ValidationError

    from afterwords.models import LexiconEntry

    if alias is None and ipa is None:
        raise output.UsageError("A word needs an alias or its sounds.", hint="add --alias TEXT or --ipa SOUNDS.")
    try:
        entry = LexiconEntry(word=word, alias=alias, ipa=ipa)
    except ValidationError:
        raise output.UsageError(
            "The word or its pronunciation is empty or too long.", hint="use up to 100 characters, and 200."
        ) from None
    speaker = _find(voice)
    _save(speaker, [*(each for each in speaker.lexicon if each.word != word), entry])


@lexicon.command("list", cls=HelpCommand)
def list_words(voice: SpokenBy = None, as_json: AsJson = False) -> None:
    """List the words of a voice."""
    found = _find(voice).lexicon
    if as_json:
        output.result_json([entry.model_dump() for entry in found])
    elif found:
        output.result_table(
            ("word", "alias", "ipa"), [(each.word, each.alias or "-", each.ipa or "-") for each in found]
        )
    else:
        output.note("The lexicon is empty. Add a word: afterwords lexicon add nginx --alias 'engine x'")


@lexicon.command(cls=HelpCommand)
def remove(word: Word, voice: SpokenBy = None) -> None:
    """Remove a word."""
    speaker = _find(voice)
    rest = [each for each in speaker.lexicon if each.word != word]
    if len(rest) == len(speaker.lexicon):
        raise output.UsageError("The lexicon has no such word.", hint="afterwords lexicon list")
    _save(speaker, rest)


@lexicon.command("import", cls=HelpCommand)
def import_words(
    file: Annotated[Path, typer.Argument(help="A PLS 1.0 file; - reads stdin.")], voice: SpokenBy = None
) -> None:
    """Add the words of a PLS file; those that are there are replaced."""
    from afterwords.disk import read_pieces
    from afterwords.library.lexicon import PLS_MAX_BYTES, from_pls

    data = b""
    for piece in iter([sys.stdin.buffer.read(PLS_MAX_BYTES + 1)]) if str(file) == "-" else read_pieces(file):
        data += piece
        if len(data) > PLS_MAX_BYTES:
            break
    speaker = _find(voice)
    _save(speaker, {each.word: each for each in (*speaker.lexicon, *from_pls(data))}.values())


@lexicon.command(cls=HelpCommand)
def export(out: OutFile = None, voice: SpokenBy = None) -> None:
    """Write the words of a voice as a PLS file, to stdout without --out."""
    from afterwords.audio.output import write_atomically
    from afterwords.library.lexicon import to_pls

    speaker = _find(voice)
    data = to_pls(speaker.lexicon, lang=speaker.lang)
    if out in {None, "-"}:
        sys.stdout.buffer.write(data)
    else:
        write_atomically(Path(str(out)), data)


def _find(voice: str | None) -> Voice:
    from afterwords.local import library

    return library().choose(voice)


def _save(speaker: Voice, entries: Iterable[LexiconEntry]) -> None:
    from afterwords.local import library

    saved = library().set_lexicon(speaker.voice_id, [*entries])
    n_words = len(saved.lexicon)
    output.note(f"[bold green]✓[/bold green] {output.shown(saved.name)}: {n_words:,} word{'s' * (n_words != 1)}")
